"""Drawing batches ahead of their use."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdmpc2.data.batch import Batch
from tdmpc2.data.batches import Batches
from tdmpc2.data.sampler import SliceSampler
from tests.helpers.data import in_memory

CPU = torch.device("cpu")


def draw(step: int) -> Batch:
    return SliceSampler(in_memory([0, 1, 2, 0])).draw(step, 5, 3, seed=1)


@settings(max_examples=20, deadline=None)
@given(start=st.integers(0, 50), count=st.integers(0, 12), ahead=st.integers(0, 5))
def test_batches_drawn_ahead_come_in_order(start: int, count: int, ahead: int) -> None:
    steps = range(start, start + count)
    batches = list(Batches(draw, steps, CPU, ahead))
    assert len(batches) == count
    for step, batch in zip(steps, batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(draw(step)[:4], batch[:4], strict=True))


def test_batches_threads_draw_no_further_than_asked() -> None:
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
def test_batches_error_is_raised_at_its_step(ahead: int) -> None:
    def fails(step: int) -> Batch:
        if step == 2:
            raise ValueError("rows.npy is gone")
        return draw(step)

    batches = iter(Batches(fails, range(5), CPU, ahead))
    next(batches), next(batches)
    with pytest.raises(ValueError, match=r"rows\.npy is gone"):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_batches_left_early_end_their_threads() -> None:
    for _ in Batches(draw, range(100), CPU, ahead=2):
        break
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("ahead", [0, 1])
def test_batches_waiting_is_counted_as_share(ahead: int) -> None:
    """The first batch is held back for a known time; each call measures anew since the last one."""
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
    threading.Event().wait(0.2)  # the time of an update
    next(iterator)
    assert batches.take_wait() < 0.5
    iterator.close()
