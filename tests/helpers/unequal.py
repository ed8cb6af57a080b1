"""Episodes of different lengths whose rows can be recognised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdmpc2.data.episodes import write_episodes
from tdmpc2.data.index import EpisodeIndex
from tdmpc2.data.unequal import unequal_fields, write_unequal
from tests.helpers.data import L
from tests.helpers.toy_envs import FALLS

LENGTHS = [4, 1, L, 3, 2]
TERMINATED = [True, False, False, True, False]
TASKS = [0, 1, 2, 2, 1]
ENDS = ((4, True), (9, False), (2, True), (6, True), (1, False), (5, False))


def index_of(lengths: list[int], terminated: list[bool], tasks: list[int]) -> EpisodeIndex:
    return EpisodeIndex(torch.tensor(tasks), torch.tensor(lengths), torch.tensor(terminated))


def unequal(index: EpisodeIndex, first: int = 0) -> dict[str, Tensor]:
    """Make the fields of a chunk: obs of row t of episode e is (e, t, ...), its reward 100 e + t."""
    number = (first + torch.arange(len(index)).repeat_interleave(index.counts)).float()
    row = torch.cat([torch.arange(count) for count in index.counts.tolist()]).float()
    obs, action, reward = torch.zeros(len(row), 4), torch.zeros(len(row), 2), 100 * number + row
    obs[:, 0], obs[:, 1], action[:, 0] = number, row, reward / 1e4
    action[index.first_rows] = reward[index.first_rows] = torch.nan
    return {"obs": obs, "action": action, "reward": reward, **unequal_fields(index)}


def write_parts(root: Path, index: EpisodeIndex, cut: int) -> Path:
    """Write two chunk files, the first with ``cut`` episodes; either may be left out."""
    parts = torch.arange(len(index)).split([cut, len(index) - cut])
    for number, own in enumerate(part for part in parts if len(part)):
        write_unequal(root / f"chunk_{number}.pt", **unequal(index.take(own), int(own[0])))
    return root


def write_logs(directory: Path, task: str = FALLS, ends: Sequence[tuple[int, bool]] = ENDS, seed: int = 0) -> Path:
    """Write episodes of a toy environment as a user's program may log them: steps, and whether it fell."""
    rng = np.random.default_rng(seed)
    logs = [
        (rng.standard_normal((steps + 1, 4)), rng.uniform(-1, 1, (steps, 2)), rng.uniform(size=steps))
        for steps, _ in ends
    ]
    write_episodes(directory, task, logs, terminated=[end for _, end in ends])
    return directory
