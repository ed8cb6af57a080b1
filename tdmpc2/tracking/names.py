"""Names of metrics: in the CSV files, in Weights & Biases and on the console, in one table.

========== ==================================================== ==================================================
W&B group  what is in it                                        file in the run directory
========== ==================================================== ==================================================
train/     losses and gradient norms of updates                 train.csv
distill/   losses of the distillation targets, named by target  train.csv, as ``distillation_...``
speed/     it_per_s, data_wait, wall_hours; learning online     speed.csv (wall_seconds)
           also updates_per_s and the shares of the time
episode/   returns of the episodes that are learned from, one   episodes.csv
           curve per task
eval/      normalized_score (or return, or mixed_score), low,   eval.csv, eval_tasks.csv
           high; one curve per task
video/     one video per task                                   videos/
========== ==================================================== ==================================================

All of them have ``step`` as their axis. :data:`METRICS` lists the metrics of an update, :data:`CSV_FILES` the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

#: The CSV files of a run; no other file of its directory is ever cut or deleted, since it may be the user's.
CSV_FILES = ("train", "speed", "episodes", "eval", "eval_tasks")


class Metric(NamedTuple):
    """A metric of an update."""

    name: str  # what the agent and train.csv call it
    wandb: str  # name in Weights & Biases
    label: str  # on the console; "": not shown there
    meaning: str


#: The metrics of an update, in the order of the console. Other targets than ``reward`` are named by their pattern.
METRICS = (
    Metric("total_loss", "train/total_loss", "total", "what the optimiser of model and Q heads minimises"),
    Metric("distillation_loss", "distill/reward_loss", "distill", "student's reward against the teacher's"),
    Metric("consistency_loss", "train/consistency_loss", "consistency", "predicted latents against encoded ones"),
    Metric("reward_loss", "train/reward_loss", "reward", "reward logits against the data's rewards"),
    Metric("value_loss", "train/value_loss", "value", "Q logits against TD targets"),
    Metric("termination_loss", "train/termination_loss", "termination", "logits of the termination head against ends"),
    Metric("termination_rate", "train/termination_rate", "", "share of the slices that end in a termination"),
    Metric("termination_f1", "train/termination_f1", "", "F1 of predicting these"),
    Metric("bc_loss", "train/bc_loss", "bc", "squared distance of the policy's actions from the demonstrations'"),
    Metric("pi_loss", "train/pi_loss", "pi", "the policy prior's: scaled values and entropy"),
    Metric("grad_norm", "train/grad_norm", "grad", "gradient norm of model and Q heads before clipping"),
    Metric("pi_grad_norm", "train/pi_grad_norm", "", "gradient norm of the policy prior before clipping"),
    Metric("pi_scale", "train/pi_scale", "", "running range of values that scales the policy loss"),
    Metric("distillation_factor", "distill/factor", "", "factor of the distillation weight, unless it is constant"),
)
_BY_NAME = {metric.name: metric for metric in METRICS}
_TARGET_LOSS = re.compile(r"distillation_(\w+)_loss")


def describe(name: str) -> Metric:
    """Look up a metric of an update; one that is not in the table is called by its own name everywhere."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    if match := _TARGET_LOSS.fullmatch(name):
        target = match[1]
        return Metric(name, f"distill/{target}_loss", f"distill {target}", f"student against teacher: target {target}")
    return Metric(name, f"train/{name}", name, "")


def wandb_name(group: str, name: str) -> str:
    """Name in Weights & Biases of column ``name`` of ``<group>.csv``."""
    return describe(name).wandb if group == "train" else f"{group}/{name}"


def console_order(names: Iterable[str]) -> list[Metric]:
    """Metrics that the console shows, in its order: total, distillation losses, the others."""
    order = [metric.name for metric in METRICS]

    def rank(metric: Metric) -> float:
        if metric.name in order:
            return order.index(metric.name)
        return 1.5 if metric.wandb.startswith("distill/") else len(order)

    return sorted((metric for name in names if (metric := describe(name)).label), key=rank)
