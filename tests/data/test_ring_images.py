"""The replay buffer of images: each frame is stored once, and observations are put together again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tdmpc2.data.ring import ReplayRing
from tdmpc2.data.ring_files import SavedRing
from tdmpc2.data.rows import FrameFormat

FORMAT = FrameFormat((9, 3, 5), action_dim=2)
Images = NDArray[np.uint8]


def episode(steps: int, seed: int) -> tuple[Images, NDArray[np.float32], NDArray[np.float32]]:
    """Make an episode as the environment shows it: the newest three frames, with the first one repeated."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(256, size=(steps + 1, 3, 3, 5), dtype=np.uint8)
    numbers = np.arange(steps + 1)
    stacks = [frames[np.maximum(numbers - age, 0)] for age in (2, 1, 0)]
    return np.concatenate(stacks, 1), rng.normal(size=(steps + 1, 2)), rng.normal(size=steps + 1)


def ring(capacity: int, file: Path | None = None) -> ReplayRing:
    return ReplayRing(FORMAT, capacity, 2, file=file)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), capacity=st.integers(10, 40))
def test_gather_of_images_gives_the_observations_that_were_seen(lengths: list[int], capacity: int) -> None:
    """Observations are right across the end of the ring and for the first rows of an episode."""
    buffer = ring(capacity)
    kept = {}
    for number, steps in enumerate(lengths):
        obs, action, reward = episode(steps, number)
        buffer.add(obs, action, reward)
        kept[number] = obs, action, reward
    drawn = [n for n in range(buffer.num_dropped, len(lengths)) if lengths[n] >= 2]
    for number, first, steps in zip(drawn, buffer.first_rows, buffer.lengths, strict=True):
        obs, action, reward = kept[number]
        for start in range(int(steps) - 1):
            batch = buffer.gather((first + start + torch.arange(3))[:, None])
            assert batch.obs.dtype == torch.uint8
            np.testing.assert_array_equal(batch.obs[:, 0], obs[start : start + 3])
            np.testing.assert_allclose(batch.action[:, 0], action[start + 1 : start + 3], rtol=1e-6)
            np.testing.assert_allclose(batch.reward[:, 0, 0], reward[start + 1 : start + 3], rtol=1e-6)


def test_frame_format_stores_a_frame_once() -> None:
    assert FrameFormat((9, 64, 64), action_dim=6).words * 4 == 3 * 64 * 64 + 4 * 7


@pytest.mark.parametrize("mapped", [False, True])
def test_saved_ring_of_images_is_restored(tmp_path: Path, mapped: bool) -> None:
    buffer = ring(30, tmp_path / "rows" if mapped else None)
    for number in range(4):
        buffer.add(*episode(6, number))
    state = SavedRing(buffer, tmp_path / "replay").state()
    again = ring(30)
    SavedRing(again, tmp_path / "replay").load_state(state)
    for step in range(5):
        first, second = (b.sampler.draw(step, 8, 2, 1) for b in (buffer, again))
        assert torch.equal(first.obs, second.obs)
        assert torch.equal(first.reward, second.reward)
