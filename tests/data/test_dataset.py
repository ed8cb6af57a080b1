"""Slices and loading. Observations carry their episode and row, so that every slice can be recognised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdmpc2.config import Config
from tdmpc2.data.chunks import Layout, chunk_paths, write_chunk
from tdmpc2.data.dataset import Batch, EpisodeDataset, SliceSampler, draw_slices
from tdmpc2.tasks import TaskSpec
from tests.helpers.data import ALL, BAD_LAYOUTS, SPECS, L, fields, in_memory, save_raw

# -- sampling ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    episodes=st.integers(1, 7), length=st.integers(1, 9), batch_size=st.integers(1, 40), data=st.data(),
    seed=st.integers(0, 2**63), step=st.integers(0, 2**40), rank=st.integers(0, 1000),
)  # fmt: skip
def test_slices_are_contiguous_and_inside_one_episode(
    episodes: int, length: int, batch_size: int, data: st.DataObject, seed: int, step: int, rank: int
) -> None:
    horizon = data.draw(st.integers(1, length))
    dataset = in_memory([i % 3 for i in range(episodes)], length)
    batch = SliceSampler(dataset).sample(step, batch_size, horizon, seed, rank)
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
    SliceSampler(dataset).sample(step + 1, batch_size, horizon, seed, rank)
    again = SliceSampler(dataset).sample(step, batch_size, horizon, seed, rank)
    assert all(torch.equal(a, b) for a, b in zip(batch[:4], again[:4], strict=True))


def test_every_slice_is_drawn_equally_often() -> None:
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


def test_order_is_that_of_the_documented_generator() -> None:
    """Changing it would silently change the data of resumed runs."""
    seed, step, rank = 3, 1234, 2
    generator = np.random.Generator(np.random.Philox(key=seed + (rank << 64), counter=step << 192))
    episode, start = draw_slices(690_000, 500, step, 256, 3, seed, rank)
    assert np.array_equal(episode, generator.integers(690_000, size=256))
    assert np.array_equal(start, generator.integers(498, size=256))


def test_consecutive_batches_are_independent() -> None:
    """Pairs of draws at neighbouring steps, ranks and seeds fill their 8 x 8 table evenly."""
    origin = (1000, 3, 7)
    for neighbour in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        table = np.zeros((8, 8))
        for k in range(100):
            step, rank, seed = origin[0] + 10 * k, origin[1], origin[2]
            one, _ = draw_slices(8, L, step, 64, 1, seed, rank)
            other, _ = draw_slices(8, L, step + neighbour[0], 64, 1, seed + neighbour[2], rank + neighbour[1])
            np.add.at(table, (one, other), 1)
        expected = table.sum() / table.size
        assert abs(((table - expected) ** 2 / expected).sum() - 63) < 4 * np.sqrt(126)


triples = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(0, 2**20))


@given(a=triples, b=triples)
def test_different_seed_step_or_rank_differ(a: tuple[int, int, int], b: tuple[int, int, int]) -> None:
    one, other = (draw_slices(2**40, 500, step, 16, 3, seed, rank)[0] for seed, step, rank in (a, b))
    assert np.array_equal(one, other) == (a == b)


@pytest.mark.parametrize("swapped", [(1, 2, 3), (2, 1, 3), (1, 3, 2), (3, 2, 1), (2**32, 1, 0), (0, 2**32, 1)])
def test_order_of_seed_step_and_rank_matters(swapped: tuple[int, int, int]) -> None:
    seed, step, rank = swapped
    others = {(1, 2, 3), (2, 1, 3), (1, 3, 2), (3, 2, 1), (0, 1, 2**32), (1, 2**32, 0)} - {swapped}
    mine = draw_slices(2**40, 500, step, 16, 3, seed, rank)[0]
    for seed, step, rank in others:
        assert not np.array_equal(mine, draw_slices(2**40, 500, step, 16, 3, seed, rank)[0])


def test_resuming_gives_the_batches_of_an_uninterrupted_run() -> None:
    def run(first: int, last: int) -> list[Batch]:
        sampler = SliceSampler(in_memory([0, 1, 2, 1]))
        return [sampler.sample(step, 8, 3, seed=5, rank=1) for step in range(first, last)]

    for whole, resumed in zip(run(0, 9)[4:], run(4, 9), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(whole[:4], resumed[:4], strict=True))


@pytest.mark.parametrize("horizon", [0, L + 1])
def test_horizon_must_fit_into_an_episode(horizon: int) -> None:
    with pytest.raises(ValueError, match=f"horizon={horizon} must be between 1 and {L}"):
        SliceSampler(in_memory([0])).sample(0, 4, horizon, seed=1)


def test_batch_moves_to_a_device() -> None:
    batch = SliceSampler(in_memory([0, 1])).sample(0, 4, 3, seed=1)
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    assert {tensor.device.type for tensor in moved[:4]} == {"meta"}
    assert [tensor.shape for tensor in moved[:4]] == [tensor.shape for tensor in batch[:4]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_data_on_the_gpu_gives_the_same_batches(tmp_path: Path) -> None:
    write_chunk(tmp_path / "chunk_0.pt", **fields([0, 1, 2]))
    for step in range(3):
        cpu, gpu = (
            SliceSampler(EpisodeDataset.load(tmp_path, SPECS, ALL, device)).sample(step, 8, 3, seed=1)
            for device in ("cpu", "cuda")
        )
        assert {tensor.device.type for tensor in gpu[:4]} == {"cuda"}
        assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu[:4], gpu[:4], strict=True))
        assert all(torch.equal(a, b.to("cuda").to("cpu")) for a, b in zip(cpu[:4], cpu[:4], strict=True))


# -- loading ----------------------------------------------------------------------------------------------------------


def test_chunks_are_joined_in_numerical_order(tmp_path: Path) -> None:
    for number, first in ((0, 0), (2, 2), (10, 4)):
        write_chunk(tmp_path / f"chunk_{number}.pt", **fields([0, 1], first))
    assert [path.name for path in chunk_paths(tmp_path)] == ["chunk_0.pt", "chunk_2.pt", "chunk_10.pt"]
    calls: list[int] = []
    dataset = EpisodeDataset.load(tmp_path, SPECS, (0, 1), progress=calls.append)
    expected = fields([0, 1, 0, 1, 0, 1])
    for name in ("obs", "action", "reward"):
        assert torch.equal(getattr(dataset, name).nan_to_num(-1), expected[name].nan_to_num(-1))
    assert dataset.task.tolist() == [0, 1, 0, 1, 0, 1]
    assert (len(dataset), dataset.episode_length) == (6, L)
    assert calls == [2, 2, 2]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_only_wanted_tasks_are_loaded(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    tmp_path = tmp_path_factory.mktemp("subset")
    files = data.draw(st.lists(st.lists(st.sampled_from(ALL), min_size=1, max_size=5), min_size=1, max_size=3))
    ids = [task for tasks in files for task in tasks]
    wanted = data.draw(st.lists(st.sampled_from(sorted(set(ids))), min_size=1, unique=True))
    first = 0
    for number, tasks in enumerate(files):
        write_chunk(tmp_path / f"chunk_{number}.pt", **fields(tasks, first))
        first += len(tasks)
    dataset = EpisodeDataset.load(tmp_path, SPECS, wanted)
    kept = [episode for episode, task in enumerate(ids) if task in wanted]
    assert dataset.obs[:, 0, 0].tolist() == kept
    assert dataset.task.tolist() == [ids[episode] for episode in kept]
    steps = sum(range(1, L + 1))
    returns = {task: [100.0 * L * e + steps for e in kept if ids[e] == task] for task in wanted}
    assert {task: values.tolist() for task, values in dataset.episode_returns().items()} == returns


def test_a_damaged_episode_of_an_unwanted_task_does_not_matter(tmp_path: Path) -> None:
    data = fields([0, 1])
    data["obs"][0, 2, 0] = torch.nan
    save_raw(tmp_path / "chunk_0.pt", data)
    assert len(EpisodeDataset.load(tmp_path, SPECS, (1,))) == 1


def test_garbage_in_row_zero_is_never_seen(tmp_path: Path) -> None:
    data = fields([0, 1])
    data["action"][:, 0], data["reward"][:, 0] = 1e30, torch.inf
    save_raw(tmp_path / "chunk_0.pt", data)
    dataset = EpisodeDataset.load(tmp_path, SPECS, (0, 1))
    assert all(values.isfinite().all() for values in dataset.episode_returns().values())
    batch = SliceSampler(dataset).sample(0, 200, L, seed=1)
    assert batch.action.max() < 1e3
    assert batch.reward.max() < 1e3


def test_large_finite_values_are_accepted(tmp_path: Path) -> None:
    data = fields([0])
    data["obs"][...] = 3e38  # their sum overflows
    write_chunk(tmp_path / "chunk_0.pt", **data)
    assert EpisodeDataset.load(tmp_path, SPECS, (0,)).obs.max() > 2.9e38


def test_layout_of_task_sets() -> None:
    assert Layout.of(Config(task="mt30").task_specs) == (501, 24, 6, 30)
    assert Layout.of(Config(task="mt80").task_specs) == (101, 39, 6, 80)
    assert Layout.of(Config(task="walker-walk").task_specs) == (501, 24, 6, 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux memory accounting")
def test_loading_needs_no_second_copy(tmp_path: Path) -> None:
    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

    specs = (TaskSpec("long", 16, 2, 500),)
    for number in range(3):
        write_chunk(tmp_path / f"chunk_{number}.pt", **fields([0] * 1200, length=500, obs_dim=16))
    peak, before = 0, anonymous()

    def watch(episodes: int) -> None:
        nonlocal peak
        peak = max(peak, anonymous() - before)

    dataset = EpisodeDataset.load(tmp_path, specs, (0,), progress=watch)
    size = dataset.obs.nbytes + dataset.action.nbytes + dataset.reward.nbytes
    assert size > 100e6
    assert peak < 4 / 3 * size  # the whole and less than one of its three chunks


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True])
def test_missing_data_says_what_is_expected(tmp_path: Path, there: bool) -> None:
    root = tmp_path if there else tmp_path / "no"
    with pytest.raises(ValueError, match="has no chunk files" if there else "is not a directory") as error:
        EpisodeDataset.load(root, SPECS, ALL)
    for part in (f"data_dir={root}", f"python collect.py data_dir={root}", "nicklashansen/tdmpc2", "mt30", "44 GB"):
        assert part in str(error.value)


def test_bad_value_is_named_by_its_episode_in_the_file(tmp_path: Path) -> None:
    """Also with a subset of the tasks and beyond the first block of episodes."""
    tasks = [0, 1] * 400
    data = fields(tasks)
    data["reward"][777, 2] = torch.nan
    save_raw(tmp_path / "chunk_0.pt", data)
    with pytest.raises(ValueError, match=r"chunk_0\.pt: reward is nan in episode 777, row 2"):
        EpisodeDataset.load(tmp_path, SPECS, (1,))


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_data_of_another_task_set(tmp_path: Path, case: str) -> None:
    data, message = BAD_LAYOUTS[case]
    write_chunk(tmp_path / "chunk_0.pt", **fields([0, 1, 2]))
    write_chunk(tmp_path / "chunk_1.pt", **data)  # so the two files differ from each other
    with pytest.raises(ValueError, match=rf"chunk_1\.pt.*{message}"):
        EpisodeDataset.load(tmp_path, SPECS, ALL)


def test_task_without_data_is_named(tmp_path: Path) -> None:
    write_chunk(tmp_path / "chunk_0.pt", **fields([1, 1]))
    with pytest.raises(ValueError, match="has no episodes of three-two,two-two: collect some"):
        EpisodeDataset.load(tmp_path, SPECS, ALL)
