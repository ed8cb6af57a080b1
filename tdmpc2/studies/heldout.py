"""Errors of a model on episodes it was not trained on: another directory of data, collected with another seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import Checkpoint, load_file
from tdmpc2.checkpoints.hub import is_path
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.data.placement import data_record, open_data
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.source import CHUNKS, find_form, open_source
from tdmpc2.data.store.importer import find_store
from tdmpc2.distillation.outputs import check_teacher, teacher_columns
from tdmpc2.loading import load_agent
from tdmpc2.nn.math import decode, symlog
from tdmpc2.studies.agreement import RANKS, rank_correlations
from tdmpc2.studies.trust import STEPS, rollout_is_worse, trust_figures
from tdmpc2.support.entries import check_entries
from tdmpc2.support.files import read_json
from tdmpc2.support.tables import Cells
from tdmpc2.tasks import matching, nearest
from tdmpc2.tracking.progress import progress
from tdmpc2.training.run_record import RECORD, share_episodes


@torch.no_grad()
def heldout_errors(agent: TDMPC2, batches: Iterable[Batch], teacher: TDMPC2 | None = None) -> dict[str, float]:
    """Root mean squared errors of predicted rewards, latents and values over all slices of some batches.

    Args:
        agent: the model. Predictions start at the encoding of a slice's first observation and follow its actions.
        batches: slices of H steps, such as from :func:`heldout_batches`.
        teacher: an agent of the same tasks whose values are the reference; there is no other one for the values of a
            policy that did not play the episodes.

    Returns:
        ``reward_rmse`` of the first step and ``reward_horizon_rmse`` of all H, in units of the reward, and the same
        with ``_symlog`` in symlog space, where large rewards weigh less; ``latent_rmse`` of the H predicted latents
        against the encodings of the observations (between 0 and 1, not comparable over latent sizes). With a teacher
        ``value_rmse`` of the mean of the Q heads at the first step against its own, and ``value_horizon_rmse`` at all
        H, on predicted latents against its own of the observations, both also with ``_symlog``; and how far both agree
        on which action sequences are better: ``q_rank`` and ``plan_rank``, mean rank correlations of
        :func:`~tdmpc2.studies.agreement.rank_correlations`.

    Raises:
        ValueError: there is no batch, the teacher has other tasks or discounts, or an error is not finite.
    """
    return _errors([_rows(agent, batch, teacher) for batch in _checked(agent, batches, teacher)])


@torch.no_grad()
def heldout_figures(
    agent: TDMPC2, batches: Iterable[Batch], teacher: TDMPC2 | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure the errors of :func:`heldout_errors` and, on the same slices, the trust figures of each task.

    Returns:
        The errors, and what :func:`tdmpc2.studies.trust.trust_figures` says.

    Raises:
        ValueError: see there.
    """
    rows = [_rows(agent, batch, teacher) for batch in _checked(agent, batches, teacher)]
    errors = _errors(rows)
    squares = {name: torch.cat([row.squares[name] for row in rows]) for name in rows[0].squares}
    worse, task = (torch.cat([getattr(row, name) for row in rows]) for name in ("worse", "task"))
    return errors, trust_figures(worse, squares, task, agent.cfg.task_names, min(STEPS, agent.cfg.horizon))


def _checked(agent: TDMPC2, batches: Iterable[Batch], teacher: TDMPC2 | None) -> Iterable[Batch]:
    if teacher is not None:
        cfg = agent.cfg
        check_teacher(cfg.replace(distillation_targets=("reward",)), teacher.cfg)  # the same tasks, whatever was taught
        for task_id in cfg.task_ids:
            own, theirs = cfg.discounts[task_id], teacher.cfg.discounts[task_id]
            if not math.isclose(own, theirs):
                raise ValueError(
                    "Values of model and teacher do not compare: the discount of "
                    f"{cfg.task_names[task_id]} is {own:g}, the teacher's {theirs:g}. Leave out the teacher"
                )
    return batches


class _Rows(NamedTuple):
    """The slices of one batch, each measured, on the CPU: squared errors [B] float64, worse [B], task [B], ranks."""

    squares: dict[str, Tensor]
    worse: Tensor
    task: Tensor
    ranks: Tensor | None = None  # [2, N], with a teacher


def _errors(rows: Sequence[_Rows]) -> dict[str, float]:
    if not rows:
        raise ValueError("No batch to measure errors on: batches must be at least 1")
    errors = {
        name: float(torch.stack([row.squares[name].mean() for row in rows]).mean()) ** 0.5 for name in rows[0].squares
    }
    if ranks := [row.ranks for row in rows if row.ranks is not None]:
        errors |= dict(zip(RANKS, torch.cat(ranks, -1).mean(-1).tolist(), strict=True))
    if bad := [name for name, error in errors.items() if not math.isfinite(error)]:
        raise ValueError(f"{bad[0]} is {errors[bad[0]]}: the weights of the model or its teacher are too large to use")
    return errors


def _rows(agent: TDMPC2, batch: Batch, teacher: TDMPC2 | None) -> _Rows:
    """Measure the slices of one batch."""
    model, device = agent.model, agent.device
    obs, action, reward = batch.obs.to(device), batch.action.to(device), batch.reward.to(device)
    task = batch.task.to(device) if agent.cfg.multitask else None
    context = model.context(task)
    zs = [model.encode(obs[0], context)]
    for step in action:
        zs.append(model.next(zs[-1], step, context))
    predicted = torch.stack(zs)  # [H+1, B, D]
    encoded = torch.cat([predicted[:1], model.encode(obs[1:], context)])
    rewards = decode(model.reward(predicted[:-1], action, context), model.bins)  # [H, B, 1]
    pairs = {
        "reward_rmse": (rewards[:1], reward[:1]),
        "reward_horizon_rmse": (rewards, reward),
        "latent_rmse": (predicted[1:], encoded[1:]),
    }
    ranks = None
    if teacher is not None:
        ranks = rank_correlations(agent, teacher, obs[0], action, task).cpu()
        for name, steps in (("value_rmse", 1), ("value_horizon_rmse", len(action))):
            heads = decode(model.Q(predicted[:steps], action[:steps], context, "all"), model.bins)  # [Q, steps, B, 1]
            asked = [None if x is None else x.to(teacher.device) for x in (obs[:steps], action[:steps], task)]
            theirs = teacher_columns(teacher.model, ("value",), *asked)["value"]  # type: ignore[arg-type]
            pairs[name] = (heads.mean(0), theirs.to(device))
    squares = {name: (a.double() - b.double()).square() for name, (a, b) in pairs.items()}
    for name, (a, b) in pairs.items():
        if name != "latent_rmse":
            squares[f"{name}_symlog"] = (symlog(a.double()) - symlog(b.double())).square()
    return _Rows(
        {name: value.mean((0, 2)).cpu() for name, value in squares.items()},
        rollout_is_worse(predicted, encoded, min(STEPS, len(action))).cpu(),
        batch.task.cpu() if agent.cfg.multitask else torch.zeros(action.shape[1], dtype=torch.int64),
        ranks,
    )


def heldout_batches(sampler: SliceSampler, batches: int, batch_size: int, horizon: int, seed: int) -> Iterator[Batch]:
    """Draw batches of slices, always the same for the same arguments."""
    return (sampler.draw(step, batch_size, horizon, seed) for step in range(batches))


def shared_tasks(cfg: Config, data_dir: str, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Find the tasks that both a model and some data have, in the order of their ids.

    Args:
        cfg: the model's configuration.
        data_dir: an episode store or a directory of chunk files.
        wanted: only these of them, or patterns such as ``mw-*``; empty: all.

    Raises:
        ValueError: they have none in common, or one that is wanted is missing on either side.
    """
    _, form = find_form(data_dir)
    source = open_source(data_dir, cfg.task if form == CHUNKS else None)
    of_data = {source.specs[index].name for index in source.index.task.unique().tolist()}
    of_model = [cfg.task_specs[index].name for index in sorted(cfg.task_ids)]
    if common := [name for name in of_model if name in of_data]:
        wanted = matching(wanted, common, "model and data")
    _check_known(wanted, of_model)
    if absent := [name for name in wanted if name not in of_data]:
        raise ValueError(f"tasks: {data_dir} has no episodes of {', '.join(absent)}, only of {_listed(of_data)}")
    shared = tuple(name for name in common if not wanted or name in wanted)
    if not shared:
        raise ValueError(
            f"{data_dir} has episodes of {_listed(of_data)}, the model knows {_listed(of_model)}: collect episodes of "
            "one of its tasks"
        )
    return shared


def _check_known(wanted: Sequence[str], of_model: Sequence[str]) -> None:
    if strange := [name for name in wanted if name not in of_model]:
        raise ValueError(f"tasks: the model has no task '{strange[0]}'.{nearest(strange[0], of_model)}")


def measure(
    paths: Iterable[Path],
    data_dir: str,
    teacher_path: Path | None = None,
    *,
    tasks: Sequence[str] = (),
    batches: int = 50,
    batch_size: int = 256,
    seed: int = 12345,
    device: str = "auto",
) -> dict[Path, dict[str, Any]]:
    """Measure held-out errors of checkpoints, each with its own horizon, on the tasks that it and the data have.

    Args:
        paths: the checkpoints.
        data_dir: episodes that none of them was trained on.
        teacher_path: checkpoint whose values are the reference for value errors.
        tasks: names of the tasks to measure on; empty: all that a checkpoint and the data have in common.
        batches: how many are drawn.
        batch_size: slices in each.
        seed: of the slices.
        device: where the models compute.

    Returns:
        For each file what ``heldout.json`` holds: ``checkpoint`` and its ``sha256``, ``step``, ``errors`` and ``trust``
        as from :func:`heldout_figures`, ``tasks_trained``, the number of tasks it was trained on, and the ``protocol``,
        which names those it was measured on: two files' errors compare if theirs is the same.

    Raises:
        ValueError: unreadable file or data, no common task, a teacher of other tasks or discounts, or data that a
            checkpoint was trained on.
    """
    record = data_record(data_dir)
    teacher_file = load_file(teacher_path, identify=True) if teacher_path else None
    teacher = load_agent(teacher_file, device=device, precision="fp32") if teacher_file else None
    samplers: dict[str, SliceSampler] = {}
    results = {}
    for path in paths:
        if _trained_on(path, data_dir, record):
            raise ValueError(
                f"{path} was trained on {data_dir}: collect other episodes, with another seed and data_dir, "
                "for example `python collect.py seed=2 data_dir=data/heldout`"
            )
        file = load_file(path, identify=True)
        agent = load_agent(file, device=device, precision="fp32")
        if agent.cfg.observes_images:
            raise ValueError(f"{path} observes images (obs={agent.cfg.obs}), which stored episodes do not hold")
        cfg = agent.cfg.replace(data_dir=data_dir, task_balance="tasks")
        if cfg.multitask:
            cfg = cfg.replace(tasks=shared_tasks(cfg, data_dir, tasks))
        else:
            _check_known(matching(tasks, cfg.task_names, "the model"), cfg.task_names)
        key = str((cfg.task_specs, cfg.task_ids, cfg.horizon, cfg.episodic))
        if key not in samplers:
            samplers[key] = open_data(cfg, agent.device).sampler
        drawn = list(heldout_batches(samplers[key], batches, batch_size, cfg.horizon, seed))
        errors, trust = heldout_figures(agent, progress(drawn, path.name, unit="batches"), teacher)
        results[path] = {
            "checkpoint": path.name,
            "sha256": file.sha256,
            "step": file.step,
            "tasks_trained": len(agent.cfg.task_ids),
            "protocol": _protocol(cfg, record, teacher_file, batches, batch_size, seed),
            "errors": errors,
            "trust": trust,
        }
    return results


def error_table(results: Mapping[Path, Mapping[str, Any]]) -> Cells:
    """Arrange measured errors in a table with a row for each checkpoint."""
    names = list(next(iter(results.values()))["errors"])
    rows = [[str(path), *(f"{found['errors'][name]:.4f}" for name in names)] for path, found in results.items()]
    return Cells("Held-out errors", ["checkpoint", *(name.replace("_", " ") for name in names)], rows)


def trust_table(found: Mapping[str, Any]) -> Cells:
    """Arrange the trust figures of one checkpoint in a table with a row for each task."""
    trust = found["trust"]
    names = [name for name in next(iter(trust["tasks"].values())) if name.endswith("_rmse")]
    rows = [
        [task, str(one["starts"]), f"{one['rollout_worse']:.0%}", *(f"{one[name]:.4f}" for name in names)]
        for task, one in trust["tasks"].items()
    ]
    title = f"{found['checkpoint']}: starts at which a rollout of {trust['steps']} steps is worse than no change"
    total = ["median", str(trust["starts"]), f"{trust['rollout_worse']:.0%}", *("" for _ in names)]
    return Cells(title, ["task", "starts", "worse", *(name.replace("_", " ") for name in names)], rows, total)


def scored_tasks(results: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """Say in a line for each set of tasks which ones were measured, and of which checkpoints."""
    by_tasks: dict[tuple[str, ...], list[Path]] = {}
    for path, found in results.items():
        by_tasks.setdefault(tuple(found["protocol"]["tasks"]), []).append(path)
    lines = []
    for tasks, paths in by_tasks.items():
        whose = f" ({', '.join(map(str, paths))})" if len(by_tasks) > 1 else ""
        trained = {results[path]["tasks_trained"] for path in paths}
        of = f" of {min(trained)}" if len(trained) == 1 and trained != {len(tasks)} else ""
        lines.append(f"Measured on {len(tasks)}{of} tasks of the model{whose}: {', '.join(tasks)}")
    return lines


def _listed(names: Iterable[str]) -> str:
    """At most six names."""
    ordered = sorted(names)
    return ", ".join(ordered[:6]) + (f" and {len(ordered) - 6} more" if len(ordered) > 6 else "")


def _trained_on(path: Path, data_dir: str, record: dict[str, Any]) -> bool:
    """Tell if the run of a checkpoint names these data, or one of their files, as its own, wherever they lie now."""
    if not is_path(path):
        return False  # what lies in the current directory is none of its run
    file = path.resolve().parent / "run.json"
    run = check_entries(str(file), read_json(file, {}), {"data": RECORD["data"]}, others=True)
    store = find_store(data_dir)
    imported = {} if store is None else store.meta.source  # in half precision as well
    return share_episodes(run.get("data") or {}, record) or share_episodes(run.get("data") or {}, imported)


def _protocol(
    cfg: Config, record: dict[str, Any], teacher: Checkpoint | None, batches: int, batch_size: int, seed: int
) -> dict[str, Any]:
    return {
        "data": record,
        "tasks": [cfg.task_names[task_id] for task_id in cfg.task_ids],
        "horizon": cfg.horizon,
        "batches": batches,
        "batch_size": batch_size,
        "seed": seed,
        "teacher_sha256": None if teacher is None else teacher.sha256,
    }
