"""The replay buffer of a run: how large it is and where it lies."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from tdmpc2.config import STACKED, Config
from tdmpc2.data.placement import choose_place
from tdmpc2.data.ring import ReplayRing
from tdmpc2.data.rows import FrameFormat, RowFormat
from tdmpc2.distributed import ProcessGroup
from tdmpc2.envs.registry import family_of
from tdmpc2.support.files import check_free_disk
from tdmpc2.support.runtime import local_processes
from tdmpc2.tasks import TASKS
from tdmpc2.training.demonstrations import demonstrations_bytes

_PLACES = ("cuda", "cpu", "disk")  # the slower one for all, where one process has no room


class RingPlan(NamedTuple):
    """Size and place of a replay buffer, before anything is allocated."""

    row_format: RowFormat | FrameFormat
    capacity: int  # rows
    bytes: int
    file_bytes: int  # of what is saved of it, at most
    place: str  # cuda, memory or disk


def sharing_in_words(cfg: Config) -> str:
    """Say for how many tasks a step is stored, as the end of a line; nothing where it is for its own alone."""
    counts = _stored(cfg)
    mean = sum(counts) / len(counts)
    average = " on average" if min(counts) < max(counts) else ""
    return f", each step stored for {mean:.3g} tasks{average}" if mean > 1 else ""


def _stored(cfg: Config) -> list[int]:
    """Count the tasks that a step of each environment is stored for."""
    return [len(cfg.stored_for[task_id]) for task_id in cfg.envs]


def row_format_of(cfg: Config) -> RowFormat | FrameFormat:
    """Choose what a record of a run's replay buffer holds."""
    if not cfg.observes_images:
        return RowFormat(cfg.obs_dim, cfg.action_dim)
    return FrameFormat(cfg.image_shape, cfg.action_dim, STACKED, cfg.obs_dim * cfg.observes_state)


def plan_ring(cfg: Config, device: torch.device, group: ProcessGroup | None = None) -> RingPlan:
    """Choose size and place of a run's replay buffer: the GPU, memory, or a file in the run's directory.

    Args:
        cfg: ``buffer_size``, ``data_device``. No more rows are taken than the run can fill, an episode counting for
            each task that it is stored for.
        device: the device that trains.
        group: the processes that train together, each of which has the whole buffer: what it saves is one's alone.

    Raises:
        ValueError: there is no room for it.
    """
    group = group or ProcessGroup()
    row_format = row_format_of(cfg)
    steps = (cfg.steps + len(cfg.envs)) * sum(_stored(cfg)) // len(cfg.envs)
    capacity = min(cfg.buffer_size, steps + _most_episodes(cfg, steps))  # an episode has a row more than steps
    size = capacity * 4 * row_format.words
    files = size
    if cfg.buffer_size < steps:
        # Files are deleted a save later than what is in them, and one that is dropped in part stays whole. A turn may
        # store an episode of every environment, so that a file may have these, even if a save follows every step.
        turn = sum(
            count * (cfg.task_specs[task_id].episode_length + 1)
            for task_id, count in zip(cfg.envs, _stored(cfg), strict=True)
        )
        between = min(capacity, max(cfg.save_freq * max(_stored(cfg)), turn))
        files += 2 * between * 4 * row_format.words
    beside = local_processes() if group.world_size > 1 else 1  # on this machine
    shown = demonstrations_bytes(cfg)  # drawn from beside it, so that there must be room for both
    what = "the replay buffer and the demonstrations" if shown else "the replay buffer"
    place = choose_place(cfg.data_device, device, size + shown, what, "or a lower buffer_size")
    place = max(group.collect(place), key=_PLACES.index)
    if cfg.save_agent and group.main:
        saved = sum(path.stat().st_size for path in (cfg.run_dir / "replay").glob("episodes_*.pt"))
        needed = max(files - saved, 0) + size * beside * (place == "disk")
        check_free_disk(cfg.run_dir, needed, "set buffer_size lower")
    return RingPlan(row_format, capacity, size, files, place)


def _most_episodes(cfg: Config, steps: int) -> int:
    """The most episodes that so many stored steps may be of; tasks of the table but Gymnasium's never end early."""
    specs = [cfg.task_specs[task_id] for task_id in cfg.task_ids]
    if any(spec.name not in TASKS or family_of(spec.name).name == "Gymnasium" for spec in specs):
        return steps
    return math.ceil(steps / min(spec.episode_length for spec in specs)) + sum(_stored(cfg))


def make_ring(cfg: Config, device: torch.device, group: ProcessGroup | None = None) -> ReplayRing:
    """Make the replay buffer of a run where :func:`plan_ring` has it.

    Raises:
        ValueError: there is no room for it.
    """
    plan = plan_ring(cfg, device, group)
    name = f"rows_{group.rank}" if group and group.world_size > 1 else "rows"
    return ReplayRing(
        plan.row_format,
        plan.capacity,
        cfg.horizon,
        balance=cfg.task_balance,
        seed=cfg.seed,
        device=device if plan.place == "cuda" else "cpu",
        terminations=cfg.episodic,
        file=cfg.run_dir / "replay" / name if plan.place == "disk" else None,
    )
