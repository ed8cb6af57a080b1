"""The replay buffer of learning online: what it keeps, what it draws, what it drops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdmpc2.data.replay_buffer import replay_buffer, to_batch
from tdmpc2.data.ring import ReplayRing
from tdmpc2.data.ring_files import SavedRing
from tdmpc2.data.rows import RowFormat

FORMAT = RowFormat(2, 1)


def add(ring: ReplayRing, number: int, steps: int, task: int = 0, terminated: bool = False) -> None:
    """Add episode ``number`` with obs[t] = (number, t), reward[t] = action[t] = 1000 number + t and row 0 of NaN."""
    row = np.arange(steps + 1, dtype=np.float32)
    reward = 1000 * number + row
    reward[0] = np.nan
    assert ring.add(np.stack([np.full_like(row, number), row], 1), reward[:, None], reward, task, terminated) == number


def filled(lengths: list[int], capacity: int, horizon: int = 3, **options: object) -> ReplayRing:
    ring = ReplayRing(FORMAT, capacity, horizon, terminations=True, **options)  # type: ignore[arg-type]
    for number, steps in enumerate(lengths):
        add(ring, number, steps, task=number % 3, terminated=number % 2 == 1)
    return ring


def newest_that_fit(lengths: list[int], capacity: int) -> list[int]:
    """Compute plainly what a ring keeps: the newest episodes whose rows fit together."""
    kept: list[int] = []
    for number in reversed(range(len(lengths))):
        if sum(lengths[n] + 1 for n in [*kept, number]) > capacity:
            break
        kept.append(number)
    return kept[::-1]


episodes = st.lists(st.integers(1, 11), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(lengths=episodes, capacity=st.integers(12, 60), horizon=st.integers(1, 5))
def test_ring_keeps_the_newest_whole_episodes(lengths: list[int], capacity: int, horizon: int) -> None:
    """Episodes of any length are kept whole, even across the end of the ring; short ones are not drawn."""
    ring = filled(lengths, capacity, horizon)
    kept = newest_that_fit(lengths, capacity)
    assert len(ring) == len(kept)
    assert ring.num_dropped == len(lengths) - len(kept)
    assert ring.num_rows == sum(lengths[n] + 1 for n in kept) <= capacity
    drawn = [n for n in kept if lengths[n] >= horizon]
    assert ring.num_short == len(kept) - len(drawn)
    assert ring.lengths.tolist() == [lengths[n] for n in drawn]


@settings(max_examples=150, deadline=None)
@given(lengths=episodes, capacity=st.integers(12, 60), horizon=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_ring_draws_slices_of_whole_episodes_that_are_there(
    lengths: list[int], capacity: int, horizon: int, seed: int
) -> None:
    """No slice runs from one episode into another, even where an episode crosses the end of the ring."""
    ring = filled(lengths, capacity, horizon)
    drawn = [n for n in newest_that_fit(lengths, capacity) if lengths[n] >= horizon]
    if not drawn:
        return
    batch = ring.sampler.draw(0, 64, horizon, seed)
    assert [part.shape for part in batch[:4]] == [(horizon + 1, 64, 2), (horizon, 64, 1), (horizon, 64, 1), (64,)]
    number, row = batch.obs[..., 0], batch.obs[..., 1]
    assert torch.equal(number, number[:1].expand_as(number))
    assert torch.equal(row, row[:1] + torch.arange(horizon + 1.0)[:, None])
    assert torch.equal(batch.reward[..., 0], 1000 * number[1:] + row[1:])
    assert torch.equal(batch.action, batch.reward)
    assert set(number[0].int().tolist()) <= set(drawn)
    assert torch.equal(batch.task, number[0].long() % 3)
    assert batch.terminated is not None
    last = row[1:] == torch.tensor(lengths)[number[1:].long()]
    assert torch.equal(batch.terminated[..., 0], (last & (number[1:] % 2 == 1)).float())


def test_ring_draws_every_episode_equally_often_and_then_every_start() -> None:
    """An episode's length does not matter for its choice: 3 steps have one start, 9 steps have seven."""
    ring = filled([3, 9, 5, 2], 60)
    batch = ring.sampler.draw(0, 30_000, 3, seed=1)
    number, start = batch.obs[0].long().T
    counts = torch.zeros(4, 7).index_put_((number, start), torch.ones(len(number)), accumulate=True)
    expected = torch.zeros(4, 7)
    for episode, starts in ((0, 1), (1, 7), (2, 3)):
        expected[episode, :starts] = 10_000 / starts
    used = expected > 0
    assert not counts[~used].any()
    chi_square = float(((counts - expected)[used].square() / expected[used]).sum())
    assert chi_square < 10 + 4 * np.sqrt(20)


def test_ring_balanced_over_tasks_draws_every_task_equally_often() -> None:
    """Tasks with many short episodes would otherwise take most of a batch."""
    ring = ReplayRing(FORMAT, 1000, 3, balance="tasks")
    for number in range(20):
        add(ring, number, 4, task=0 if number else 2)
    counts = ring.sampler.draw(0, 10_000, 3, seed=1).task.bincount(minlength=3)
    assert counts[1] == 0
    assert abs(int(counts[0]) - 5000) < 250


def test_ring_with_a_single_slot_is_replaced_by_each_episode() -> None:
    ring = filled([9, 9, 9, 9], 10)
    assert [len(ring), ring.num_dropped] == [1, 3]
    assert set(ring.sampler.draw(0, 8, 3, 1).obs[0, :, 0].tolist()) == {3.0}


def test_ring_refuses_an_episode_larger_than_itself() -> None:
    with pytest.raises(ValueError, match="buffer_size=10 is less than the 11 rows of an episode of 10 steps"):
        add(ReplayRing(FORMAT, 10, 3), 0, 10)


def test_ring_without_a_long_enough_episode_has_nothing_to_draw() -> None:
    ring = filled([2, 1, 2], 60)
    assert [len(ring), ring.num_short, len(ring.sampler)] == [3, 3, 0]


def test_ring_in_a_file_is_the_ring_in_memory(tmp_path: Path) -> None:
    """A ring that exceeds the memory can lie in a file, which disappears with the process."""
    lengths = [5, 9, 4, 7, 3, 8]
    one, two = filled(lengths, 25), filled(lengths, 25, file=tmp_path / "rows.bin")
    assert not list(tmp_path.iterdir())  # however the process ends, no file is left
    for first, second in zip(one.sampler.draw(3, 32, 3, 7), two.sampler.draw(3, 32, 3, 7), strict=True):
        assert first is second or torch.equal(first, second)


def test_ring_of_a_full_disk_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No room for the replay buffer in .*set buffer_size lower"):
        ReplayRing(FORMAT, 2**58, 3, file=tmp_path / "rows.bin")
    assert not list(tmp_path.iterdir())


def test_torchrl_buffer_over_a_ring_samples_its_batches() -> None:
    ring = filled([5, 9, 4, 7, 3, 8], 25)
    buffer = replay_buffer(ring, ring.sampler, 8, 3)
    for step in range(3):
        batch, expected = to_batch(buffer.sample(), 3), ring.sampler.draw(step, 8, 3, seed=1)
        for one, two in zip(batch, expected, strict=True):
            assert one is two or torch.equal(one, two)


# -- files ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(lengths=episodes, saves=st.sets(st.integers(0, 39)), capacity=st.integers(12, 60))
def test_saved_ring_continues_as_it_was(
    lengths: list[int], saves: set[int], capacity: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A ring restored from its last save and filled further has the same episodes, numbers and batches."""
    directory = tmp_path_factory.mktemp("ring")
    ring = ReplayRing(FORMAT, capacity, 3, terminations=True)
    saved = SavedRing(ring, directory)
    state, at = saved.state(), 0
    for number, steps in enumerate(lengths):
        add(ring, number, steps, number % 3, number % 2 == 1)
        if number in saves:
            state, at = saved.state(), number + 1
    again = ReplayRing(FORMAT, capacity, 3, terminations=True)
    SavedRing(again, directory).load_state(state)
    for number in range(at, len(lengths)):
        add(again, number, lengths[number], number % 3, number % 2 == 1)
    assert [again.num_added, again.num_dropped, again.num_rows] == [ring.num_added, ring.num_dropped, ring.num_rows]
    if len(ring.sampler):
        for one, two in zip(ring.sampler.draw(1, 16, 3, 1), again.sampler.draw(1, 16, 3, 1), strict=True):
            assert torch.equal(one, two) if one is not None else two is None


def test_saved_ring_writes_only_what_is_new_and_deletes_what_was_dropped(tmp_path: Path) -> None:
    """The cost of a save does not grow with the buffer, and a full buffer does not fill the disk."""
    ring = ReplayRing(FORMAT, 50, 3)
    saved = SavedRing(ring, tmp_path)
    sizes = []
    for number in range(40):
        add(ring, number, 9)
        state = saved.state()
        newest = state["files"][-1]
        sizes.append((tmp_path / newest["name"]).stat().st_size)
        assert [newest["first"], newest["last"]] == [number, number + 1]
        assert {file["name"] for file in state["files"]} <= {path.name for path in tmp_path.iterdir()}
    assert max(sizes) - min(sizes) < 200
    assert len(list(tmp_path.iterdir())) <= 6
    assert saved.state()["files"] == state["files"]


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), r"episodes_0\.pt is missing"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-7]), r"episodes_0\.pt"),
    "another": (lambda path: SavedRing(filled([8, 7], 50), path.parent).state(), "is not the file that was saved"),
}


@pytest.mark.parametrize("harm", HARM)
def test_saved_ring_names_the_file_that_cannot_be_read(tmp_path: Path, harm: str) -> None:
    state = SavedRing(filled([9, 9], 50), tmp_path).state()
    (path,) = tmp_path.iterdir()
    change, message = HARM[harm]
    change(path)
    with pytest.raises(ValueError, match=message):
        SavedRing(ReplayRing(FORMAT, 50, 3), tmp_path).load_state(state)


@pytest.mark.parametrize(("entry", "value"), [
    ("name", "../../other.pt"), ("name", 7), ("first", -1), ("sha256", "x"), ("last", 1.5),
])  # fmt: skip
def test_saved_ring_refuses_a_state_that_leads_elsewhere(tmp_path: Path, entry: str, value: object) -> None:
    """A damaged state must not choose which files are read or deleted."""
    state = SavedRing(filled([9, 9], 50), tmp_path).state()
    damaged = {**state, "files": [{**state["files"][0], entry: value}]}
    with pytest.raises(ValueError, match=rf"state\.pt: replay: files: {entry} is .*, expected"):
        SavedRing(ReplayRing(FORMAT, 50, 3), tmp_path).load_state(damaged)


def test_saved_ring_of_other_tasks_is_refused(tmp_path: Path) -> None:
    """Task ids in the buffer of another run may mean other tasks here, or none."""
    state = SavedRing(filled([9, 9, 9], 50), tmp_path).state()
    SavedRing(ReplayRing(FORMAT, 50, 3), tmp_path, (0, 1, 2)).load_state(state)
    with pytest.raises(ValueError, match=r"episodes_0\.pt has an episode of task id 2, which is none of .*\(0, 1\)"):
        SavedRing(ReplayRing(FORMAT, 50, 3), tmp_path, (0, 1)).load_state(state)
