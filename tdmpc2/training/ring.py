"""The replay buffer of a run: how large it is and where it lies."""

from __future__ import annotations

import torch

from tdmpc2.config import IMAGES, Config
from tdmpc2.data.placement import choose_place
from tdmpc2.data.ring import ReplayRing
from tdmpc2.data.rows import FrameFormat, RowFormat
from tdmpc2.support.files import check_free_disk


def make_ring(cfg: Config, device: torch.device) -> ReplayRing:
    """Make the replay buffer of a run where it fits: on the GPU, in memory, or mapped from the run's directory.

    Args:
        cfg: ``buffer_size``, ``data_device``, ``task_balance``. No more rows are taken than the run can fill.
        device: the device that trains.

    Raises:
        ValueError: there is no room for it.
    """
    images = cfg.obs == "rgb"
    row_format = FrameFormat(IMAGES, cfg.action_dim) if images else RowFormat(cfg.obs_dim, cfg.action_dim)
    capacity = min(cfg.buffer_size, 2 * (cfg.steps + len(cfg.envs)))  # an episode has a row more than steps
    size = capacity * 4 * row_format.words
    place = choose_place(cfg.data_device, device, size)
    if cfg.save_agent:
        saved = sum(path.stat().st_size for path in (cfg.run_dir / "replay").glob("episodes_*.pt"))
        needed = max(size - saved, 0) + size * (place == "disk")
        check_free_disk(cfg.run_dir, needed, "set buffer_size lower")
    return ReplayRing(
        row_format,
        capacity,
        cfg.horizon,
        balance=cfg.task_balance,
        seed=cfg.seed,
        device=device if place == "cuda" else "cpu",
        terminations=cfg.episodic,
        file=cfg.run_dir / "replay" / "rows" if place == "disk" else None,
    )
