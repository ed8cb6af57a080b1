"""Stores and chunk files of episodes that differ in length and may terminate."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tdmpc2.data.chunks import read_chunk, write_chunk
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store.export import export_chunks
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.tools.verify import verify
from tdmpc2.data.unequal import write_unequal
from tests.helpers.data import ALL, SPECS, L, fields, save_raw
from tests.helpers.data_command import flip
from tests.helpers.stores import make_chunks
from tests.helpers.unequal import LENGTHS, TASKS, TERMINATED, index_of, unequal, write_parts

COLUMNS = ("task.npy", "length.npy", "terminated.npy")


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    chunks = write_parts(tmp_path / "chunks", index_of(LENGTHS, TERMINATED, TASKS), 3)
    return import_episodes([chunks], tmp_path / "store", "three", SPECS, block=2, quiet=True)


def test_unequal_store_is_read_by_numpy_alone(store: EpisodeStore) -> None:
    rows = np.load(store.path / "rows.npy", mmap_mode="r")
    assert rows.shape == (sum(LENGTHS) + 5,)
    assert np.load(store.path / "length.npy").tolist() == LENGTHS
    assert np.load(store.path / "terminated.npy").tolist() == TERMINATED
    expected = unequal(index_of(LENGTHS, TERMINATED, TASKS))
    for name in ("obs", "action", "reward"):
        assert np.array_equal(rows[name], expected[name].numpy(), equal_nan=True)
    assert json.loads((store.path / "meta.json").read_text())["format"] == 2


EPISODES = st.lists(st.tuples(st.integers(1, L), st.booleans(), st.integers(0, 2)), min_size=1, max_size=9)


@settings(max_examples=6, deadline=None)
@given(EPISODES, st.integers(0, 9), st.integers(1, 4), st.sampled_from(["float32", "float16"]))
def test_unequal_round_trip_keeps_every_episode(
    episodes: list[tuple[int, bool, int]], cut: int, block: int, dtype: str
) -> None:
    """Episodes survive chunk files, stores and their copies in any split and precision."""
    index = index_of(*map(list, zip(*episodes, strict=True)))  # type: ignore[arg-type]
    with TemporaryDirectory() as name:
        root = Path(name)
        chunks = write_parts(root / "chunks", index, min(cut, len(index)))
        first = import_episodes([chunks], root / "first", "three", SPECS, dtype=dtype, block=block, quiet=True)
        assert first.index.task.tolist() == index.task.tolist()
        assert first.index.lengths.tolist() == index.lengths.tolist()
        assert first.index.terminated.tolist() == index.terminated.tolist()
        export_chunks(first, root / "back", episodes_per_file=block, quiet=True)
        for other in ("back", "first"):
            again = import_episodes(
                [root / other], root / f"of_{other}", "three", SPECS, dtype=dtype, block=block, quiet=True
            )
            assert again.checksum == first.checksum
        assert not verify(root / "first").problems
        assert not verify(root / "back").problems
        for dataset in (
            EpisodeDataset.map(first),
            EpisodeDataset.read(first, torch.arange(len(index))),
            EpisodeDataset.load(chunks, SPECS, sorted(set(index.task.tolist()))),
        ):
            assert dataset.lengths.tolist() == index.lengths.tolist()
            assert torch.equal(dataset.columns()["obs"].float(), unequal(index)["obs"])


def test_equal_episodes_without_terminations_give_the_former_format(tmp_path: Path) -> None:
    """Such a store has the bytes of older versions, whichever form of file its episodes come from."""
    index = index_of([L] * 5, [False] * 5, TASKS)
    write_parts(tmp_path / "chunks", index, 2)
    write_chunk(
        tmp_path / "others/chunk_0.pt", **fields(TASKS) | {"action": unequal(index)["action"].view(5, L + 1, 2)}
    )
    for name in ("chunks", "others"):
        import_episodes([tmp_path / name], tmp_path / f"{name}.store", "three", SPECS, quiet=True)
    there, other = tmp_path / "chunks.store", tmp_path / "others.store"
    assert sorted(os.listdir(there)) == ["meta.json", "rows.npy", "task.npy"]
    for name in ("rows.npy", "task.npy"):
        assert (there / name).read_bytes() == (other / name).read_bytes()
    meta = json.loads((there / "meta.json").read_text())
    assert meta["format"] == 1
    assert "rows" not in meta


@pytest.mark.parametrize(("dtype", "checksum"), [
    ("float32", "215a60829a42ef45e66804fa28db16ad4b96eedfab11ed15cbd0b720d71993f9"),
    ("float16", "f1d6836d575b321b5bf11ddfd152bd73e49828cf810f3e51ab1aab3756895e18"),
])  # fmt: skip
def test_store_of_equal_episodes_is_that_of_the_version_before(tmp_path: Path, dtype: str, checksum: str) -> None:
    """The checksums were computed by commit 00f05a5, which only knew format 1."""
    chunks = make_chunks(tmp_path / "chunks")
    assert (
        import_episodes([chunks], tmp_path / "s", "three", SPECS, dtype=dtype, block=3, quiet=True).checksum == checksum
    )


def test_slices_stay_inside_episodes_and_end_where_they_terminate(store: EpisodeStore) -> None:
    dataset = EpisodeDataset.map(store, terminations=True)
    drawn = torch.tensor([0, 2, 3, 4])  # episode 1 is too short
    batch = SliceSampler(dataset, drawn).draw(0, 4000, 2, seed=1)
    episode, row = batch.obs[..., 0], batch.obs[..., 1]
    assert torch.equal(episode, episode[:1].expand_as(episode))
    assert torch.equal(row, row[:1] + torch.arange(3.0)[:, None])
    ends = torch.tensor(LENGTHS)[episode[0].long()]
    expected = torch.tensor(TERMINATED)[episode[0].long()] & (row[1:] == ends)
    assert batch.terminated is not None
    assert torch.equal(batch.terminated[..., 0], expected.float())
    shares = torch.bincount(episode[0].long(), minlength=5)[drawn] / 4000
    assert (shares - 0.25).abs().max() < 0.03  # equal shares, whatever the lengths
    starts = torch.bincount(row[0, episode[0] == 2].long()) / (episode[0] == 2).sum()
    assert (starts - 1 / (L - 1)).abs().max() < 0.06
    assert torch.equal(batch.task, torch.tensor(TASKS)[episode[0].long()])


@pytest.mark.parametrize("name", ["rows.npy", *COLUMNS])
def test_flipped_bit_is_found(store: EpisodeStore, name: str) -> None:
    flip(store.path / name, -1)
    problems = verify(store.path).problems
    assert any(
        problem.startswith(f"{store.path / name}, episodes 4-4: checksum") or name in problem for problem in problems
    )
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        EpisodeDataset.read(EpisodeStore.open(store.path), torch.arange(5))


def _numbers(name: str, values: list[int]) -> Callable[[Path], None]:
    """Write other numbers and renew their checksums, as somebody with intent would."""

    def change(root: Path) -> None:
        meta = json.loads((root / "meta.json").read_text())
        array = np.load(root / name)
        array[:] = values
        np.save(root / name, array)
        meta["files"][name]["sha256"] = [
            hashlib.sha256(array[first : first + 2].tobytes()).hexdigest() for first in range(0, 5, 2)
        ]
        (root / "meta.json").write_text(json.dumps(meta))

    return change


def _entry(**values: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        plain = json.loads((root / "meta.json").read_text())
        (root / "meta.json").write_text(json.dumps(plain | values))

    return change


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "negative length": (
        _numbers("length.npy", [-1, 4, L, 4, 3]),
        r"length\.npy: .* of steps is -1 in episode 0",
    ),
    "no step": (_numbers("length.npy", [4, 0, L, 4, 2]), r"length\.npy: .* of steps is 0 in episode 1"),
    "longer than the task": (
        _numbers("length.npy", [4, 1, 9, 1, 1]),
        r"length\.npy: .* of steps is 9 .*1 to 6",
    ),
    "largest length": (_numbers("length.npy", [2**31 - 1] * 5), r"length\.npy: .* of steps is 2147483647"),
    "other sum": (_numbers("length.npy", [4, 1, L, 3, 3]), r"length\.npy is of 22 rows, but .*meta\.json has 21"),
    "neither": (
        _numbers("terminated.npy", [1, 0, 0, 2, 0]),
        r"terminated\.npy: the mark .* is 2 in episode 3",
    ),
    "task": (_numbers("task.npy", [0, 1, 2, 3, 1]), r"task\.npy: the task id is 3 in episode 3"),
    "more rows": (_entry(rows=22), r"rows\.npy does not hold \(22,\)"),
    "rows no number": (_entry(rows=2.5), "rows is 2.5"),
    "former format": (_entry(format=1), "rows is not of its format"),
    "no lengths": (lambda root: (root / "length.npy").unlink(), r"length\.npy cannot be read"),
    "short lengths": (lambda root: os.truncate(root / "length.npy", 140), r"length\.npy has 140 bytes instead of 148"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_store_with_hostile_index_is_refused_in_one_line(store: EpisodeStore, case: str) -> None:
    damage, message = HOSTILE[case]
    damage(store.path)
    with pytest.raises(ValueError, match=message) as error:
        EpisodeStore.open(store.path)
    assert "\n" not in str(error.value)
    assert verify(store.path).problems


def _field(name: str, index: int, value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(data: dict[str, Tensor]) -> None:
        data[name][index] = value

    return change


def _cut(data: dict[str, Tensor]) -> None:
    data.update({name: values[:-2] for name, values in data.items()})


BAD_CHUNKS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "not from 0": (lambda data: data["episode"].add_(1), "not those of episodes 0, 1"),
    "a gap": (_field("episode", -1, 7), "not those of episodes 0, 1"),
    "largest number": (_field("episode", -1, 2**31 - 1), "not those of episodes 0, 1"),
    "backwards": (_field("episode", 6, 0), "not those of episodes 0, 1"),
    "one row": (_cut, "episode 4 has 0 steps, but the task set's have 1 to 6"),
    "too long": (lambda data: data["episode"].zero_(), "the task id changes in episode 0"),
    "another task within": (_field("task", 2, 1), "the task id changes in episode 0"),
    "unknown task": (lambda data: data["task"].add_(1), "the task id is 3 in episode 2"),
    "terminates early": (_field("terminated", 1, True), "episode 0 terminates before its last row"),
    "terminated twice": (lambda data: data["terminated"].view(torch.uint8).fill_(2), "terminates before its last row"),
    "no terminations": (lambda data: data.pop("terminated"), "has the fields .*a chunk has .*terminated"),
    "terminated a number": (lambda data: data.update(terminated=data["reward"]), "terminated is torch.float32"),
    "reward of another shape": (lambda data: data.update(reward=data["reward"][:, None]), "has shapes"),
    "nan": (_field("reward", 3, torch.nan), "reward is nan in episode 0, row 3"),
    "nan in a later one": (_field("obs", -1, torch.nan), "obs is nan in episode 4, row 2"),
}


@pytest.mark.parametrize("case", BAD_CHUNKS)
def test_bad_unequal_chunk_is_refused_wherever_it_is_read(tmp_path: Path, case: str) -> None:
    change, message = BAD_CHUNKS[case]
    data = unequal(index_of(LENGTHS, TERMINATED, TASKS))
    change(data)
    save_raw(tmp_path / "chunk_0.pt", data)
    (tmp_path / "collect.json").write_text(
        json.dumps({"format": 1, "task": "three", "tasks": [vars(spec) for spec in SPECS], "collections": []})
    )
    with pytest.raises(ValueError, match=message) as error:
        EpisodeDataset.load(tmp_path, SPECS, ALL)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        import_episodes([tmp_path], tmp_path / "out", "three", SPECS, quiet=True)
    assert verify(tmp_path).problems


@pytest.mark.parametrize("case", ["terminates early", "backwards", "nan", "filler"])
def test_bad_unequal_chunk_is_not_written(tmp_path: Path, case: str) -> None:
    change, message = {**BAD_CHUNKS, "filler": (_field("reward", 0, 0.0), "row 0 of reward must be NaN")}[case]
    data = unequal(index_of(LENGTHS, TERMINATED, TASKS))
    change(data)
    with pytest.raises(ValueError, match=message):
        write_unequal(tmp_path / "chunk_1.pt", **data)
    assert not list(tmp_path.iterdir())


def test_files_of_both_forms_are_read_together(tmp_path: Path) -> None:
    data = fields([1, 2])
    data["action"] /= 1e4
    write_chunk(tmp_path / "chunk_0.pt", **data)
    index = index_of(LENGTHS, TERMINATED, TASKS)
    write_unequal(tmp_path / "chunk_1.pt", **unequal(index, first=2))
    dataset = EpisodeDataset.load(tmp_path, SPECS, ALL, terminations=True)
    assert dataset.lengths.tolist() == [L, L, *LENGTHS]
    assert dataset.terminated is not None
    assert dataset.terminated.tolist() == [False, False, *TERMINATED]
    assert dataset.numbers is not None
    starts = dataset.columns()["obs"][dataset.first_rows]
    assert starts[:, 0].tolist() == list(range(7))
    some = EpisodeDataset.load(tmp_path, SPECS, [2], max_per_task=2)
    assert some.lengths.tolist() == [L, L]


def test_returns_of_unequal_episodes_leave_out_first_rows(store: EpisodeStore) -> None:
    returns = EpisodeDataset.map(store).episode_returns()
    assert returns[1].tolist() == [101.0, 401.0 + 402.0]
    assert "episode" in read_chunk(store.path.parent / "chunks/chunk_0.pt")
