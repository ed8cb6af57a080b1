"""Names of metrics in the CSV files, in Weights & Biases and on the console."""

from __future__ import annotations

import pytest

from tdmpc2.distillation.targets import TARGETS
from tdmpc2.tracking.names import METRICS, console_order, describe, wandb_name


@pytest.mark.parametrize("target", TARGETS)
def test_wandb_name_distillation_loss_says_its_target(target: str) -> None:
    """The reward target's loss used to be ``distill/distillation_loss``, and others repeated the word."""
    name = "distillation_loss" if target == "reward" else f"distillation_{target}_loss"
    assert wandb_name("train", name) == f"distill/{target}_loss"


def test_wandb_names_are_unique() -> None:
    names = [metric.wandb for metric in METRICS]
    assert len(set(names)) == len(names)


def test_wandb_name_unknown_metric_keeps_its_name() -> None:
    assert wandb_name("train", "entropy") == "train/entropy"
    assert wandb_name("eval", "normalized_score") == "eval/normalized_score"
    assert describe("entropy").label == "entropy"


def test_console_order_total_and_distillation_come_first() -> None:
    names = (
        "entropy",
        "pi_loss",
        "value_loss",
        "distillation_value_loss",
        "distillation_loss",
        "pi_scale",
    )
    labels = [metric.label for metric in console_order((*names, "total_loss"))]
    assert labels == ["total", "distill", "distill value", "value", "pi", "entropy"]
