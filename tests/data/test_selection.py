"""Episodes that are drawn from, and their frequencies: tasks, limits, balance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdmpc2.data.dataset import EpisodeDataset, select_episodes
from tdmpc2.data.sampler import SliceSampler
from tests.helpers.data import SPECS, L, in_memory


def uneven(data: EpisodeDataset, balance: str, count: int, episodes: torch.Tensor | None = None) -> np.ndarray:
    """Count how often each episode was drawn, [N]."""
    sampler = SliceSampler(data, episodes, balance)
    rows = torch.cat([sampler.rows(step, 100, 3, seed=1)[0] for step in range(count)])
    return np.bincount((rows // (L + 1)).numpy(), minlength=len(data))


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Compute how many standard deviations the counts are from chance."""
    cells = len(counts) - 1
    return float(abs(((counts - expected) ** 2 / expected).sum() - cells) / np.sqrt(2 * cells))


def test_balance_decides_shares_of_tasks() -> None:
    tasks = [0] * 12 + [1] * 3 + [2]
    data = in_memory(tasks)
    by_episode = uneven(data, "episodes", 160)
    assert chi_square(by_episode, np.full(16, 1000.0)) < 4
    by_task = uneven(data, "tasks", 160)
    assert chi_square(by_task, 16000 / 3 / np.array([12.0] * 12 + [3.0] * 3 + [1.0])) < 4
    assert chi_square(np.bincount(tasks, by_task), np.full(3, 16000 / 3)) < 4


@settings(max_examples=60, deadline=None)
@given(
    tasks=st.lists(st.integers(0, 2), min_size=1, max_size=12), limit=st.none() | st.integers(1, 4),
    balance=st.sampled_from(["episodes", "tasks"]), step=st.integers(0, 1000), data=st.data(),
)  # fmt: skip
def test_selection_is_drawn_as_a_data_set_of_its_own(
    tasks: list[int], limit: int | None, balance: str, step: int, data: st.DataObject
) -> None:
    """Episodes picked by number on disk give the same batches as only those episodes in memory."""
    whole = in_memory(tasks)
    wanted = data.draw(st.lists(st.sampled_from(sorted(set(tasks))), min_size=1, unique=True))
    episodes = select_episodes(whole.task, SPECS, wanted, "there", limit)
    part = EpisodeDataset(whole.row_format, whole.rows[episodes], whole.task[episodes])
    picked = SliceSampler(whole, episodes, balance).draw(step, 9, 3, seed=2)
    kept = SliceSampler(part, None, balance).draw(step, 9, 3, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(picked[:4], kept[:4], strict=True))
    assert set(picked.task.tolist()) <= set(wanted)
    assert set(picked.obs[0, :, 0].long().tolist()) <= set(episodes.tolist())


@given(count=st.integers(1, 60), limit=st.integers(1, 70))
def test_selection_limit_keeps_evenly_spaced_episodes(count: int, limit: int) -> None:
    task = torch.tensor([0, 1] * count)
    kept = select_episodes(task, SPECS, (1,), "there", limit)
    assert len(kept) == min(count, limit)
    assert torch.equal(kept, kept.unique())
    assert (task[kept] == 1).all()
    assert kept[0] == 1
    gaps = kept.diff() // 2
    assert len(gaps) == 0 or int(gaps.max() - gaps.min()) <= 1


def test_selection_reaches_every_task_and_start() -> None:
    data = in_memory([2, 0, 1])
    sampler = SliceSampler(data, balance="tasks")
    drawn = torch.cat([sampler.rows(step, 50, 3, seed=3)[0] for step in range(20)])
    assert set(drawn.tolist()) == {episode * (L + 1) + start for episode in range(3) for start in range(L - 3 + 1)}


def test_selection_of_task_without_episode_is_refused() -> None:
    with pytest.raises(ValueError, match="there has no episodes of four-one: collect some"):
        select_episodes(torch.tensor([0, 2]), SPECS, (0, 1), "there")
