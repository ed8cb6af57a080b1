"""Drawing batches ahead, and the same slices through torchrl."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.data import SliceSampler as TorchrlSliceSampler

from tdmpc2.data.batches import Batches
from tdmpc2.data.dataset import Batch, EpisodeDataset, SliceSampler
from tdmpc2.data.replay import EpisodeSliceSampler, replay_buffer, to_batch
from tests.helpers.data import in_memory

CPU = torch.device("cpu")


def draw(step: int) -> Batch:
    return SliceSampler(in_memory([0, 1, 2, 0])).sample(step, 5, 3, seed=1)


@settings(max_examples=20, deadline=None)
@given(start=st.integers(0, 50), count=st.integers(0, 12), ahead=st.integers(0, 5))
def test_batches_come_in_order_however_many_are_drawn_ahead(start: int, count: int, ahead: int) -> None:
    steps = range(start, start + count)
    batches = list(Batches(draw, steps, CPU, ahead))
    assert len(batches) == count
    for step, batch in zip(steps, batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(draw(step)[:4], batch[:4], strict=True))


def test_threads_draw_at_the_same_time_and_no_further_than_asked() -> None:
    meeting = threading.Barrier(3, timeout=30)
    begun: list[int] = []

    def together(step: int) -> Batch:
        begun.append(step)
        if step < 3:
            meeting.wait()  # passes only if three are drawn at once
        return draw(step)

    batches = iter(Batches(together, range(10), CPU, ahead=3))
    next(batches)
    assert max(begun) <= 3
    batches.close()


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_is_raised_at_its_step(ahead: int) -> None:
    def fails(step: int) -> Batch:
        if step == 2:
            raise ValueError("rows.npy is gone")
        return draw(step)

    batches = iter(Batches(fails, range(5), CPU, ahead))
    next(batches), next(batches)
    with pytest.raises(ValueError, match=r"rows\.npy is gone"):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_threads_end_when_the_loop_is_left_early() -> None:
    for _ in Batches(draw, range(100), CPU, ahead=2):
        break
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("ahead", [0, 1])
def test_waiting_is_counted_as_a_share(ahead: int) -> None:
    """The first batch comes when it is let go of after a known time; what follows is measured anew."""
    release = threading.Event()

    def held(step: int) -> Batch:
        if step == 0:
            release.wait(30)
        return draw(step)

    batches = Batches(held, range(3), CPU, ahead)
    threading.Timer(0.3, release.set).start()
    iterator = iter(batches)
    next(iterator)
    assert batches.take_wait() > 0.9
    threading.Event().wait(0.2)  # the update
    next(iterator)
    assert batches.take_wait() < 0.5
    iterator.close()


def test_the_same_slices_through_torchrl() -> None:
    dataset = in_memory([0, 1, 2, 0, 1])
    own = SliceSampler(dataset)
    sampler = EpisodeSliceSampler(own, horizon=3, seed=4, rank=1)
    buffer = replay_buffer(dataset, sampler, batch_size=6, horizon=3)
    for step in range(3):
        expected, sample = own.sample(step, 6, 3, seed=4, rank=1), buffer.sample()
        assert torch.equal(sample["episode"].view(6, 4)[:, 0].float(), expected.obs[0, :, 0])
        assert all(torch.equal(a, b) for a, b in zip(expected[:4], to_batch(sample, 3)[:4], strict=True))
    state = sampler.state_dict()
    expected = to_batch(buffer.sample(), 3)
    again = EpisodeSliceSampler(own, horizon=3, seed=4, rank=1)
    again.load_state_dict(state)
    resumed = to_batch(replay_buffer(dataset, again, 6, 3).sample(), 3)
    assert all(torch.equal(a, b) for a, b in zip(expected[:4], resumed[:4], strict=True))
    with pytest.raises(ValueError, match="batch_size=7 is no multiple of the 4 rows"):
        buffer.sample(7)


@pytest.mark.parametrize("cached", [False, True])
def test_a_sampler_of_torchrl_in_its_place(cached: bool) -> None:
    dataset = in_memory([0, 1, 2, 0, 1])
    sampler = TorchrlSliceSampler(traj_key="episode", slice_len=4, cache_values=cached)
    batch = to_batch(replay_buffer(dataset, sampler, batch_size=50, horizon=3).sample(), 3)
    episode, row = batch.obs[..., 0], batch.obs[..., 1]
    assert torch.equal(row, row[:1] + torch.arange(4.0)[:, None])
    assert torch.equal(episode, episode[:1].expand_as(episode))
    assert torch.equal(batch.reward[..., 0], 100 * episode[1:] + row[1:])
    assert torch.equal(batch.task, torch.tensor([0, 1, 2, 0, 1])[episode[0].long()])


def test_buffer_copies_no_rows() -> None:
    dataset: EpisodeDataset = in_memory([0, 1])
    buffer = replay_buffer(dataset, EpisodeSliceSampler(SliceSampler(dataset), 3, seed=1), 2, 3)
    start = dataset.rows.untyped_storage().data_ptr()
    for name in ("obs", "action", "reward"):
        assert buffer[:][name].untyped_storage().data_ptr() == start
