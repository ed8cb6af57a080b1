"""Slices for training and for torchrl. Observations carry their episode and row, so that slices are recognised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.data import SliceSampler as TorchrlSliceSampler

from tdmpc2.data.batch import Batch
from tdmpc2.data.chunks import write_chunk
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.replay_buffer import replay_buffer, to_batch
from tdmpc2.data.sampler import SliceSampler, draw_slices
from tdmpc2.support.draws import continue_generator
from tests.helpers.data import ALL, SPECS, L, fields, in_memory


@settings(max_examples=60, deadline=None)
@given(
    episodes=st.integers(1, 7), length=st.integers(1, 9), batch_size=st.integers(1, 40), data=st.data(),
    seed=st.integers(0, 2**63), step=st.integers(0, 2**40),
)  # fmt: skip
def test_sampler_slices_lie_inside_one_episode(
    episodes: int, length: int, batch_size: int, data: st.DataObject, seed: int, step: int
) -> None:
    horizon = data.draw(st.integers(1, length))
    dataset = in_memory([i % 3 for i in range(episodes)], length)
    batch = SliceSampler(dataset).draw(step, batch_size, horizon, seed)
    assert batch.obs.shape == (horizon + 1, batch_size, 4)
    assert batch.action.shape == (horizon, batch_size, 2)
    assert batch.reward.shape == (horizon, batch_size, 1)
    assert batch.task.shape == (batch_size,)
    assert batch.task.dtype == torch.int64
    episode, row = batch.obs[..., 0], batch.obs[..., 1]
    assert torch.equal(episode, episode[:1].expand_as(episode))
    assert torch.equal(row, row[:1] + torch.arange(horizon + 1.0)[:, None])
    assert torch.equal(batch.task, episode[0].long() % 3)
    # Rewards and actions are those that led to obs[1:], hence never the filler of row 0.
    assert torch.equal(batch.reward[..., 0], 100 * episode[1:] + row[1:])
    assert torch.equal(batch.action[..., 0], batch.reward[..., 0])
    # The same arguments, the same batch, whatever was drawn in between.
    SliceSampler(dataset).draw(step + 1, batch_size, horizon, seed)
    again = SliceSampler(dataset).draw(step, batch_size, horizon, seed)
    assert all(torch.equal(a, b) for a, b in zip(batch[:4], again[:4], strict=True))


def test_sampler_draws_every_slice_equally_often() -> None:
    episodes, horizon, draws = 5, 3, 200
    starts = L - horizon + 1
    counts = np.zeros((episodes, starts))
    for step in range(draws):
        np.add.at(counts, draw_slices(episodes, L, step, 100, horizon, seed=1), 1)
    assert counts.min() > 0
    expected = draws * 100 / counts.size
    cells = counts.size - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - cells) < 4 * np.sqrt(2 * cells)


def test_sampler_order_is_that_of_the_documented_generator() -> None:
    """Another order would silently change the data of resumed runs."""
    seed, step = 3, 1234
    generator = np.random.Generator(np.random.Philox(key=seed, counter=step << 192))
    episode, start = draw_slices(690_000, 500, step, 256, 3, seed)
    assert np.array_equal(episode, generator.integers(690_000, size=256))
    assert np.array_equal(start, generator.integers(498, size=256))


def test_sampler_consecutive_batches_are_independent() -> None:
    """Pairs of draws at neighbouring steps and seeds fill their 8 x 8 table evenly."""
    for later, other_seed in ((1, 0), (0, 1)):
        table = np.zeros((8, 8))
        for step in range(1000, 2000, 10):
            one, _ = draw_slices(8, L, step, 64, 1, 7)
            other, _ = draw_slices(8, L, step + later, 64, 1, 7 + other_seed)
            np.add.at(table, (one, other), 1)
        expected = table.sum() / table.size
        assert abs(((table - expected) ** 2 / expected).sum() - 63) < 4 * np.sqrt(126)


pairs = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**40))


@given(a=pairs, b=pairs)
def test_draws_of_different_seed_or_step_differ(a: tuple[int, int], b: tuple[int, int]) -> None:
    one, other = (draw_slices(2**40, 500, step, 16, 3, seed)[0] for seed, step in (a, b))
    assert np.array_equal(one, other) == (a == b)


@pytest.mark.parametrize("swapped", [(1, 2), (2, 1), (2**32, 1), (0, 2**32)])
def test_draws_of_exchanged_seed_and_step_differ(swapped: tuple[int, int]) -> None:
    seed, step = swapped
    mine = draw_slices(2**40, 500, step, 16, 3, seed)[0]
    assert not np.array_equal(mine, draw_slices(2**40, 500, seed, 16, 3, step)[0])


def test_sampler_resumed_gives_the_same_batches() -> None:
    def run(first: int, last: int) -> list[Batch]:
        sampler = SliceSampler(in_memory([0, 1, 2, 1]))
        return [sampler.draw(step, 8, 3, seed=5) for step in range(first, last)]

    for whole, resumed in zip(run(0, 9)[4:], run(4, 9), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(whole[:4], resumed[:4], strict=True))


@pytest.mark.parametrize("horizon", [0, L + 1])
def test_sampler_horizon_beyond_episode_is_refused(horizon: int) -> None:
    with pytest.raises(ValueError, match=f"horizon={horizon} must be between 1 and {L}"):
        SliceSampler(in_memory([0])).draw(0, 4, horizon, seed=1)


def test_batch_to_device_moves_all_fields() -> None:
    batch = SliceSampler(in_memory([0, 1])).draw(0, 4, 3, seed=1)
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    assert {tensor.device.type for tensor in moved[:4]} == {"meta"}
    assert [tensor.shape for tensor in moved[:4]] == [tensor.shape for tensor in batch[:4]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sampler_on_gpu_gives_the_same_batches(tmp_path: Path) -> None:
    write_chunk(tmp_path / "chunk_0.pt", **fields([0, 1, 2]))
    for step in range(3):
        cpu, gpu = (
            SliceSampler(EpisodeDataset.load(tmp_path, SPECS, ALL, device)).draw(step, 8, 3, seed=1)
            for device in ("cpu", "cuda")
        )
        assert {tensor.device.type for tensor in gpu[:4]} == {"cuda"}
        assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu[:4], gpu[:4], strict=True))
        assert all(torch.equal(a, b.to("cuda").to("cpu")) for a, b in zip(cpu[:4], cpu[:4], strict=True))


# -- episodes of unequal length ---------------------------------------------------------------------------------------


class Ring:
    """A stand-in for the storage of online training: episodes of any length, end to end in a torchrl storage."""

    def __init__(self, capacity: int) -> None:
        self.storage = LazyTensorStorage(capacity)
        self.task = torch.zeros(0, dtype=torch.int64)
        self.first_rows = self.lengths = self.task

    def episode(self, length: int, task: int = 0) -> TensorDict:
        """Note one more episode and return its rows, which hold their episode and place."""
        last = self.first_rows[-1:] + self.lengths[-1:] + 1
        self.first_rows = torch.cat([self.first_rows, last if len(last) else torch.zeros(1, dtype=torch.int64)])
        self.lengths = torch.cat([self.lengths, torch.tensor([length])])
        self.task = torch.cat([self.task, torch.tensor([task])])
        row = torch.arange(length + 1)
        return TensorDict({"number": torch.full_like(row, len(self.task) - 1), "row": row}, batch_size=[length + 1])

    def gather(self, rows: Tensor) -> Batch:
        raise NotImplementedError


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=6), balance=st.sampled_from(["episodes", "tasks"]))
def test_slices_of_unequal_episodes_stay_inside_one(lengths: list[int], balance: str) -> None:
    ring = Ring(100)
    rows = torch.cat([ring.episode(length, task=i % 2) for i, length in enumerate(lengths)])
    slices = rows[SliceSampler(ring, balance=balance).rows(0, 200, 2, seed=1)]
    assert torch.equal(slices["number"], slices["number"][:1].expand(3, -1))
    assert torch.equal(slices["row"], slices["row"][:1] + torch.arange(3)[:, None])
    last = torch.tensor(lengths)[slices["number"][0]]
    assert (slices["row"][-1] <= last).all()


def test_starts_of_unequal_episodes_are_uniform_within_each() -> None:
    lengths, horizon = np.array([3, 6]), 2
    counts = np.zeros((2, 5))
    for step in range(100):
        np.add.at(counts, draw_slices(2, lengths, step, 100, horizon, seed=1), 1)
    expected = np.array([[2500, 2500, 0, 0, 0], [1000] * 5])
    assert (counts[expected == 0] == 0).all()
    used = expected > 0
    assert ((counts - expected)[used] ** 2 / expected[used]).sum() < 6 + 4 * np.sqrt(12)


@settings(deadline=None)
@given(length=st.integers(3, 600), step=st.integers(0, 2**40), tasks=st.booleans())
def test_equal_lengths_one_by_one_give_the_draws_of_one_length(length: int, step: int, tasks: bool) -> None:
    """Equal episodes are drawn as they were before lengths could differ."""
    count = np.array([3, 4]) if tasks else 7
    one, each = (draw_slices(count, lengths, step, 32, 3, 5) for lengths in (length, np.full(7, length)))
    assert all(np.array_equal(a, b) for a, b in zip(one, each, strict=True))


def test_horizon_longer_than_the_shortest_episode_is_refused() -> None:
    ring = Ring(100)
    for length in (9, 2):
        ring.episode(length)
    with pytest.raises(ValueError, match="horizon=3 must be between 1 and 2, the length of the shortest episode"):
        SliceSampler(ring).rows(0, 4, 3, seed=1)


# -- through torchrl --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", ["episodes", "tasks"])
@pytest.mark.parametrize("episodes", [None, torch.tensor([0, 2, 3])])
def test_buffer_samples_the_batches_of_training(episodes: Tensor | None, balance: str) -> None:
    dataset = in_memory([0, 1, 2, 0, 1])
    sampler = SliceSampler(dataset, episodes, balance, horizon=3, seed=4)
    buffer = replay_buffer(dataset, sampler, batch_size=6, horizon=3)
    for step in range(3):
        expected, sample = sampler.draw(step, 6, 3, seed=4), buffer.sample()
        assert torch.equal(sample["episode"].view(6, 4)[:, 0].float(), expected.obs[0, :, 0])
        assert all(torch.equal(a, b) for a, b in zip(expected[:4], to_batch(sample, 3)[:4], strict=True))


def test_buffer_resumes_from_seed_and_step() -> None:
    dataset = in_memory([0, 1, 2, 0, 1])
    sampler = SliceSampler(dataset, seed=4)
    buffer = replay_buffer(dataset, sampler, 6, 3)
    buffer.sample()
    again = SliceSampler(dataset, seed=1)
    again.load_state_dict(sampler.state_dict())
    expected, resumed = to_batch(buffer.sample(), 3), to_batch(replay_buffer(dataset, again, 6, 3).sample(), 3)
    assert all(torch.equal(a, b) for a, b in zip(expected[:4], resumed[:4], strict=True))


def test_buffer_of_the_same_seed_and_step_starts_there() -> None:
    dataset = in_memory([0, 1, 2, 0, 1])
    buffer = replay_buffer(dataset, SliceSampler(dataset, seed=4, step=17), 6, 3)
    expected = SliceSampler(dataset).draw(17, 6, 3, seed=4)
    assert torch.equal(to_batch(buffer.sample(), 3).obs, expected.obs)


def test_position_is_written_and_read(tmp_path: Path) -> None:
    sampler, again = (SliceSampler(in_memory([0]), seed=seed, step=seed) for seed in (3, 9))
    sampler.dumps(tmp_path / "sampler")
    again.loads(tmp_path / "sampler")
    assert again.state_dict() == {"seed": 3, "step": 3}


def test_buffer_that_grows_draws_from_new_episodes() -> None:
    """Online, the buffer grows while it is drawn from, so new episodes must be drawn, too."""
    ring = Ring(100)
    first = ring.episode(4)
    sampler = SliceSampler(ring, horizon=2)
    buffer = ReplayBuffer(storage=ring.storage, sampler=sampler, batch_size=3 * 40)
    buffer.extend(first)
    assert set(buffer.sample()["number"].tolist()) == {0}
    buffer.extend(ring.episode(7))
    sample = buffer.sample().reshape(-1, 3)
    assert set(sample["number"][:, 0].tolist()) == {0, 1}
    assert torch.equal(sample["row"], sample["row"][:, :1] + torch.arange(3))


def test_buffer_refuses_parts_of_slices() -> None:
    dataset = in_memory([0, 1])
    buffer = replay_buffer(dataset, SliceSampler(dataset), 6, 3)
    with pytest.warns(match="batch_sizes"), pytest.raises(ValueError, match="batch_size=7 is no multiple of the 4"):
        buffer.sample(7)


def test_buffer_refuses_a_sampler_of_another_horizon() -> None:
    dataset = in_memory([0, 1])
    with pytest.raises(ValueError, match="horizon=3, but the sampler draws slices of horizon=2"):
        replay_buffer(dataset, SliceSampler(dataset, horizon=2), 6, 3)


@pytest.mark.parametrize("cached", [False, True])
def test_sampler_of_torchrl_takes_its_place(cached: bool) -> None:
    dataset = in_memory([0, 1, 2, 0, 1])
    sampler = TorchrlSliceSampler(traj_key="episode", slice_len=4, cache_values=cached)
    batch = to_batch(replay_buffer(dataset, sampler, batch_size=50, horizon=3).sample(), 3)
    episode, row = batch.obs[..., 0], batch.obs[..., 1]
    assert torch.equal(row, row[:1] + torch.arange(4.0)[:, None])
    assert torch.equal(episode, episode[:1].expand_as(episode))
    assert torch.equal(batch.reward[..., 0], 100 * episode[1:] + row[1:])
    assert torch.equal(batch.task, torch.tensor([0, 1, 2, 0, 1])[episode[0].long()])


def test_torchrl_buffer_copies_no_rows() -> None:
    dataset = in_memory([0, 1])
    buffer = replay_buffer(dataset, SliceSampler(dataset), 2, 3)
    start = dataset.rows.untyped_storage().data_ptr()
    for name in ("obs", "action", "reward"):
        assert buffer[:][name].untyped_storage().data_ptr() == start


def test_slices_of_another_form_of_the_episodes_are_the_same() -> None:
    dataset = in_memory([0, 1, 2])
    sampler = SliceSampler(dataset, torch.tensor([0, 2]), "tasks", horizon=2, seed=5, step=3)
    other = sampler.over(EpisodeDataset(dataset.row_format, dataset.rows.clone(), dataset.task))
    assert repr(other) == repr(sampler)
    assert torch.equal(other.rows(1, 9, 2, 5), sampler.rows(1, 9, 2, 5))


def test_generator_of_another_device_does_not_begin_anew() -> None:
    """The state of a CPU's generator begins with its seed, however much was drawn."""
    states = [torch.Generator().manual_seed(1) for _ in range(2)]
    torch.rand(1000, generator=states[1])
    drawn = []
    for state in states:
        generator = torch.Generator()
        continue_generator(generator, torch.cat([state.get_state(), torch.zeros(1, dtype=torch.uint8)]))
        drawn.append(torch.rand(4, generator=generator))
    assert not torch.equal(*drawn)
