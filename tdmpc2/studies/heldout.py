"""Errors of a model on episodes it was not trained on: another directory of data, collected with another seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import file_sha256, load_file
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.data.placement import data_record, open_data
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.distillation.outputs import check_teacher, teacher_columns
from tdmpc2.loading import load_agent
from tdmpc2.nn.math import decode, symlog
from tdmpc2.support.files import read_json
from tdmpc2.tracking.progress import progress


@torch.no_grad()
def heldout_errors(agent: TDMPC2, batches: Iterable[Batch], teacher: TDMPC2 | None = None) -> dict[str, float]:
    """Root mean squared errors over all slices of some batches.

    Args:
        agent: the model. Predictions start at the encoding of a slice's first observation and follow its actions.
        batches: slices of H steps, such as from :func:`heldout_batches`.
        teacher: an agent of the same tasks whose values are the reference; there is no other one for the values of a
            policy that did not play the episodes.

    Returns:
        ``reward_rmse`` of the first step and ``reward_horizon_rmse`` of all H, in units of the reward, and the same
        with ``_symlog`` in symlog space, where large rewards weigh less; ``latent_rmse`` of the H predicted latents
        against the encodings of the observations (between 0 and 1, not comparable over latent sizes). With a teacher
        ``value_rmse`` and ``value_rmse_symlog`` of the mean of the Q heads at the first step against its own.

    Raises:
        ValueError: there is no batch, or the teacher has other tasks.
    """
    if teacher is not None:
        check_teacher(agent.cfg, teacher.cfg)
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        for name, value in _squares(agent, batch, teacher).items():
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value
        count += 1
    if not count:
        raise ValueError("No batch to measure errors on: batches must be at least 1")
    return {name: float(total / count) ** 0.5 for name, total in sums.items()}


def _squares(agent: TDMPC2, batch: Batch, teacher: TDMPC2 | None) -> dict[str, Tensor]:
    """Mean squared errors of one batch, on the CPU in float64."""
    model, device = agent.model, agent.device
    obs, action, reward = batch.obs.to(device), batch.action.to(device), batch.reward.to(device)
    task = batch.task.to(device) if agent.cfg.multitask else None
    context = model.context(task)
    zs = [model.encode(obs[0], context)]
    for step in action:
        zs.append(model.next(zs[-1], step, context))
    predicted = torch.stack(zs)  # [H+1, B, D]
    rewards = decode(model.reward(predicted[:-1], action, context), model.bins)  # [H, B, 1]
    pairs = {
        "reward_rmse": (rewards[0], reward[0]),
        "reward_horizon_rmse": (rewards, reward),
        "latent_rmse": (predicted[1:], model.encode(obs[1:], context)),
    }
    if teacher is not None:
        own = decode(model.Q(predicted[0], action[0], context, "all"), model.bins).mean(0)  # [B, 1]
        asked = [None if x is None else x.to(teacher.device) for x in (obs[0], action[0], task)]
        theirs = teacher_columns(teacher.model, ("value",), *asked)["value"]  # type: ignore[arg-type]
        pairs["value_rmse"] = (own, theirs.to(device))
    squares = {name: (a.double() - b.double()).square().mean().cpu() for name, (a, b) in pairs.items()}
    for name, (a, b) in pairs.items():
        if name != "latent_rmse":
            squares[f"{name}_symlog"] = (symlog(a.double()) - symlog(b.double())).square().mean().cpu()
    return squares


def heldout_batches(sampler: SliceSampler, batches: int, batch_size: int, horizon: int, seed: int) -> Iterator[Batch]:
    """Always the same batches for the same arguments."""
    return (sampler.draw(step, batch_size, horizon, seed) for step in range(batches))


def measure(
    paths: Iterable[Path],
    data_dir: str,
    teacher_path: Path | None = None,
    *,
    batches: int = 50,
    batch_size: int = 256,
    seed: int = 12345,
    device: str = "auto",
) -> dict[Path, dict[str, Any]]:
    """Held-out errors of checkpoints, each with the horizon and on the tasks it was trained with.

    Returns:
        For each file what ``heldout.json`` holds: ``checkpoint``, ``step``, ``errors`` as from :func:`heldout_errors`
        and the ``protocol``: two files' errors compare if theirs is the same.

    Raises:
        ValueError: unreadable file or data, a teacher of other tasks, or data that a checkpoint was trained on.
    """
    record = data_record(data_dir)
    teacher = load_agent(teacher_path, device=device, precision="fp32") if teacher_path else None
    samplers: dict[str, SliceSampler] = {}
    results = {}
    for path in paths:
        if _trained_on(path, data_dir, record):
            raise ValueError(
                f"{path} was trained on {data_dir}: collect other episodes, with another seed and data_dir, "
                "for example `python collect.py seed=2 data_dir=data/heldout`"
            )
        agent = load_agent(path, device=device, precision="fp32")
        cfg = agent.cfg.replace(data_dir=data_dir, task_balance="tasks")
        key = str((cfg.task_specs, cfg.task_ids))
        if key not in samplers:
            samplers[key] = open_data(cfg, agent.device).sampler
        drawn = list(heldout_batches(samplers[key], batches, batch_size, cfg.horizon, seed))
        results[path] = {
            "checkpoint": path.name,
            "step": load_file(path).step,
            "protocol": _protocol(cfg, record, teacher_path, batches, batch_size, seed),
            "errors": heldout_errors(agent, progress(drawn, path.name, unit="batches"), teacher),
        }
    return results


def _trained_on(path: Path, data_dir: str, record: dict[str, Any]) -> bool:
    run = read_json(path.parent / "run.json", {})
    # Chunk files are known by their sizes alone, which data of another seed may have, too.
    same = "checksum" in record or Path(run.get("data_dir", "")).expanduser().resolve() == Path(data_dir).resolve()
    return same and run.get("data") == record


def _protocol(
    cfg: Config, record: dict[str, Any], teacher: Path | None, batches: int, batch_size: int, seed: int
) -> dict[str, Any]:
    return {
        "data": record,
        "tasks": [cfg.task_names[task_id] for task_id in cfg.task_ids],
        "horizon": cfg.horizon,
        "batches": batches,
        "batch_size": batch_size,
        "seed": seed,
        "teacher_sha256": None if teacher is None else file_sha256(teacher),
    }
