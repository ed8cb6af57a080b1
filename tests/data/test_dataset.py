"""Loading episodes from chunk files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdmpc2.config import Config
from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.chunks import chunk_paths, write_chunk
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.tasks import TaskSpec
from tests.helpers.data import ALL, BAD_LAYOUTS, SPECS, L, fields, save_raw


def test_dataset_load_joins_chunks_in_numerical_order(tmp_path: Path) -> None:
    for number, first in ((0, 0), (2, 2), (10, 4)):
        write_chunk(tmp_path / f"chunk_{number}.pt", **fields([0, 1], first))
    assert [path.name for path in chunk_paths(tmp_path)] == ["chunk_0.pt", "chunk_2.pt", "chunk_10.pt"]
    calls: list[int] = []
    dataset = EpisodeDataset.load(tmp_path, SPECS, (0, 1), progress=calls.append)
    expected = fields([0, 1, 0, 1, 0, 1])
    for name in ("obs", "action", "reward"):
        assert torch.equal(getattr(dataset, name).nan_to_num(-1), expected[name].nan_to_num(-1))
    assert dataset.task.tolist() == [0, 1, 0, 1, 0, 1]
    assert dataset.lengths.tolist() == [L] * 6
    assert calls == [2, 2, 2]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_dataset_load_of_chosen_tasks_keeps_only_them(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
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


def test_dataset_load_ignores_damage_in_unwanted_tasks(tmp_path: Path) -> None:
    data = fields([0, 1])
    data["obs"][0, 2, 0] = torch.nan
    save_raw(tmp_path / "chunk_0.pt", data)
    assert len(EpisodeDataset.load(tmp_path, SPECS, (1,))) == 1


def test_dataset_load_hides_values_of_row_zero(tmp_path: Path) -> None:
    data = fields([0, 1])
    data["action"][:, 0], data["reward"][:, 0] = 1e30, torch.inf
    save_raw(tmp_path / "chunk_0.pt", data)
    dataset = EpisodeDataset.load(tmp_path, SPECS, (0, 1))
    assert all(values.isfinite().all() for values in dataset.episode_returns().values())
    batch = SliceSampler(dataset).draw(0, 200, L, seed=1)
    assert batch.action.max() < 1e3
    assert batch.reward.max() < 1e3


def test_dataset_load_of_large_finite_values_works(tmp_path: Path) -> None:
    data = fields([0])
    data["obs"][...] = 3e38  # their sum overflows
    write_chunk(tmp_path / "chunk_0.pt", **data)
    assert EpisodeDataset.load(tmp_path, SPECS, (0,)).obs.max() > 2.9e38


def test_layout_of_task_set_has_its_sizes() -> None:
    assert Layout.of(Config(task="mt30").task_specs) == (501, 24, 6, 30, 500)
    assert Layout.of(Config(task="mt80").task_specs) == (101, 39, 6, 80, 500)
    assert Layout.of(Config(task="walker-walk").task_specs) == (501, 24, 6, 1, 500)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux memory accounting")
def test_dataset_load_needs_no_second_copy(tmp_path: Path) -> None:
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
    assert peak < 4 / 3 * size  # the data and less than one of the three chunks


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True])
def test_dataset_load_of_missing_data_says_what_is_expected(tmp_path: Path, there: bool) -> None:
    root = tmp_path if there else tmp_path / "no"
    with pytest.raises(ValueError, match="has no chunk files" if there else "is not a directory") as error:
        EpisodeDataset.load(root, SPECS, ALL)
    for part in (
        str(root),
        f"python collect.py data_dir={root}",
        "nicklashansen/tdmpc2",
        "mt30",
        "44 GB",
    ):
        assert part in str(error.value)


def test_dataset_load_of_bad_value_names_file_and_episode(tmp_path: Path) -> None:
    """The episode is named correctly with a subset of the tasks and beyond the first block of episodes."""
    tasks = [0, 1] * 400
    data = fields(tasks)
    data["reward"][777, 2] = torch.nan
    save_raw(tmp_path / "chunk_0.pt", data)
    with pytest.raises(ValueError, match=r"chunk_0\.pt: reward is nan in episode 777, row 2"):
        EpisodeDataset.load(tmp_path, SPECS, (1,))


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_dataset_load_of_other_task_set_is_refused(tmp_path: Path, case: str) -> None:
    data, message = BAD_LAYOUTS[case]
    write_chunk(tmp_path / "chunk_0.pt", **fields([0, 1, 2]))
    write_chunk(tmp_path / "chunk_1.pt", **data)  # so the two files differ from each other
    with pytest.raises(ValueError, match=rf"chunk_1\.pt.*{message}"):
        EpisodeDataset.load(tmp_path, SPECS, ALL)


def test_dataset_load_of_task_without_data_names_it(tmp_path: Path) -> None:
    write_chunk(tmp_path / "chunk_0.pt", **fields([1, 1]))
    with pytest.raises(ValueError, match="has no episodes of three-two,two-two: collect some"):
        EpisodeDataset.load(tmp_path, SPECS, ALL)
