"""Opening and reading a store, and what becomes of damaged ones."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tdmpc2.data.chunks import write_chunk
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.data.store.meta import BLOCK, StoreMeta
from tdmpc2.data.store.parts import Part
from tdmpc2.data.store.store import EpisodeStore
from tests.helpers.data import SPECS, L, fields
from tests.helpers.data_command import episodes, write_store
from tests.helpers.stores import make_chunks

TASKS = [0, 1, 2, 2, 1]
BLOCKS = [(0, 2), (2, 2), (4, 1)]


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    write_chunk(tmp_path / "chunks/chunk_0.pt", **fields(TASKS))
    return import_episodes([tmp_path / "chunks"], tmp_path / "store", "three", SPECS, block=2, quiet=True)


# -- reading ----------------------------------------------------------------------------------------------------------


def test_store_is_read_by_numpy_alone(store: EpisodeStore) -> None:
    rows = np.load(store.path / "rows.npy", mmap_mode="r")
    data = fields(TASKS)
    assert rows.shape == (5, L + 1)
    for name in ("obs", "action", "reward"):
        assert np.array_equal(rows[name], data[name].numpy(), equal_nan=True)
    assert np.load(store.path / "task.npy").tolist() == TASKS
    meta = json.loads((store.path / "meta.json").read_text())
    assert [task["name"] for task in meta["tasks"]] == ["three-two", "four-one", "two-two"]


def test_store_open_gives_rows_and_blocks(store: EpisodeStore) -> None:
    whole = EpisodeDataset.map(store)
    assert whole.obs[:, 3, 0].tolist() == [0, 1, 2, 3, 4]
    assert store.task.tolist() == TASKS
    for first in range(5):
        for count in range(1, 6 - first):
            assert torch.equal(store.read(first, count), store.rows[first : first + count])
    assert store.meta.episode_bytes == store.rows[0].nbytes


def test_store_replaced_while_open_is_read_to_its_end(store: EpisodeStore, tmp_path: Path) -> None:
    whole = store.rows.clone()
    write_chunk(tmp_path / "others/chunk_0.pt", **fields(TASKS, first=50))
    other = import_episodes([tmp_path / "others"], tmp_path / "other", "three", SPECS, block=2, quiet=True)
    os.rename(store.path, tmp_path / "old")
    os.rename(other.path, store.path)
    assert torch.equal(store.read(1, 4), whole[1:])
    os.truncate(tmp_path / "old/rows.npy", 500)
    with pytest.raises(ValueError, match=r"rows\.npy has become shorter"):
        store.read(1, 4)


def test_store_checksums_are_of_its_blocks(store: EpisodeStore) -> None:
    hashes = [hashlib.sha256(store.rows[i : i + n].numpy().tobytes()).hexdigest() for i, n in BLOCKS]
    assert store.meta.files["rows.npy"].sha256 == tuple(hashes)
    ids = [np.array(TASKS[i : i + n], "<i4").tobytes() for i, n in BLOCKS]
    assert store.meta.files["task.npy"].sha256 == tuple(hashlib.sha256(values).hexdigest() for values in ids)
    for name, file in store.meta.files.items():
        assert file.bytes == (store.path / name).stat().st_size


def test_store_checksum_changes_only_with_data(tmp_path: Path, store: EpisodeStore) -> None:
    write_chunk(tmp_path / "split/chunk_0.pt", **fields(TASKS[:1]))
    write_chunk(tmp_path / "split/chunk_1.pt", **fields(TASKS[1:], first=1))
    same = import_episodes([tmp_path / "split"], tmp_path / "same", "three", SPECS, block=2, quiet=True)
    assert same.meta.source != store.meta.source
    assert same.checksum == store.checksum
    for number, tasks in enumerate(([1, *TASKS[1:]], TASKS[:4])):
        write_chunk(tmp_path / f"{number}/chunk_0.pt", **fields(tasks))
        other = import_episodes([tmp_path / f"{number}"], tmp_path / f"o{number}", "three", SPECS, block=2, quiet=True)
        assert other.checksum != store.checksum


def test_store_meta_round_trip_is_equal(store: EpisodeStore) -> None:
    text = (store.path / "meta.json").read_text()
    assert StoreMeta.read(store.path / "meta.json").to_json() == text
    assert store.meta.tasks == SPECS
    assert StoreMeta("three", SPECS, 5).block == BLOCK


# -- damage -----------------------------------------------------------------------------------------------------------


def _truncate(name: str, change: int) -> Callable[[Path], None]:
    return lambda root: os.truncate(root / name, (root / name).stat().st_size + change)


def _edit(**values: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        plain = json.loads((root / "meta.json").read_text())
        (root / "meta.json").write_text(json.dumps(plain | values))

    return change


def _overwrite(name: str, position: int, values: bytes) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with open(root / name, "r+b") as file:
            file.seek(position)
            file.write(values)

    return change


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "short rows": (_truncate("rows.npy", -1), r"rows\.npy has 1,171 bytes instead of 1,172"),
    "empty rows": (lambda root: os.truncate(root / "rows.npy", 0), r"rows\.npy has 0 bytes instead of 1,172"),
    "long rows": (_truncate("rows.npy", 4), r"rows\.npy has 1,176 bytes instead of 1,172"),
    "short tasks": (_truncate("task.npy", -4), r"task\.npy has 144 bytes instead of 148"),
    "no rows": (lambda root: (root / "rows.npy").unlink(), r"rows\.npy cannot be read.*No such file"),
    "no tasks": (lambda root: (root / "task.npy").unlink(), r"task\.npy cannot be read.*No such file"),
    "no meta": (lambda root: (root / "meta.json").unlink(), r"meta\.json is damaged.*No such file"),
    "header": (_overwrite("rows.npy", 70, b"x"), r"rows\.npy does not hold \(5, 7\) of"),
    "tasks' header": (_overwrite("task.npy", 21, b"8"), r"task\.npy does not hold \(5,\) of int32"),
    "task id": (
        _overwrite("task.npy", 144, b"\x03\0\0\0"),
        r"task\.npy: the task id is 3 in episode 4, but .* 3 t",
    ),
    "negative id": (_overwrite("task.npy", 132, b"\xff\xff\xff\xff"), r"task id is -1 in episode 1"),
    "more episodes": (_edit(episodes=6), r"rows\.npy does not hold \(6, 7\) of"),
    "other dtype": (_edit(dtype="float16"), r"rows\.npy does not hold \(5, 7\) of"),
    "unknown dtype": (_edit(dtype="int8"), r"meta\.json is damaged"),
    "fewer tasks": (
        _edit(tasks=[{"name": "three-two", "obs_dim": 4, "action_dim": 2, "episode_length": L}]),
        r"task id is 1 in episode 1, but .* names 1 tasks",
    ),
    "no format": (lambda root: (root / "meta.json").write_text("{}"), r"meta\.json is damaged.*format"),
    "newer": (_edit(format=3), r"meta\.json has format 3, this version reads 1 and 2: update tdmpc2-opt"),
    "other form": (_edit(format=2), r"meta\.json is damaged.*rows is missing"),
    "rows of another form": (_edit(rows=35), r"meta\.json is damaged.*rows is not of its format"),
    "newer key": (_edit(codec="zstd"), r"meta\.json is damaged.*codec"),
    "not json": (_truncate("meta.json", -3), r"meta\.json is damaged"),
    "not text": (_overwrite("meta.json", 5, b"\xff\xfe"), r"meta\.json is damaged"),
    "a list": (lambda root: (root / "meta.json").write_text("[1]"), r"meta\.json is damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_store_open_of_damaged_store_is_refused(store: EpisodeStore, case: str) -> None:
    damage, message = DAMAGE[case]
    damage(store.path)
    with pytest.raises(ValueError, match=message) as error:
        EpisodeStore.open(store.path)
    assert str(store.path) in str(error.value)


VALUES = [None, True, -1, 0, 1, 2, 1.5, 10**30, "", "x", [], ["x"], [[]], {}, {"x": 1}, {"rows.npy": {}}]


def test_store_open_of_edited_meta_is_refused_or_harmless(store: EpisodeStore) -> None:
    """Every entry of meta.json, nested ones included, is replaced by values of all kinds."""
    text = (store.path / "meta.json").read_text()
    edits: list[tuple[Any, ...]] = []

    def walk(node: Any, path: tuple[Any, ...]) -> None:
        keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            edits.append((*path, key))
            walk(node[key], (*path, key))

    walk(json.loads(text), ())
    assert len(edits) > 30
    opened = 0
    for path in edits:
        for value in VALUES:
            plain = node = json.loads(text)
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
            (store.path / "meta.json").write_text(json.dumps(plain))
            try:
                found = EpisodeStore.open(store.path)
            except ValueError as error:
                if str(store.path) in str(error):
                    continue
                raise
            opened += 1
            assert torch.equal(found.rows, store.rows), (path, value)
            assert found.meta.episodes == 5, (path, value)
            assert all(len(file.sha256) == -(-5 // found.meta.block) for file in found.meta.files.values())
            assert found.checksum
    assert opened > 0


def open_rows(root: Path) -> int:
    """Count the descriptors of this process for the rows of a store."""
    return sum(Path(file.path) == root / "rows.npy" for file in psutil.Process().open_files())


def test_store_closes_its_file_with_itself(tmp_path: Path) -> None:
    """Descriptors used to wait for the garbage collector, which warned about each of them."""
    root = write_store(tmp_path / "d", episodes())
    store = EpisodeStore.open(root)
    rows = store.rows
    assert open_rows(root) == 2  # the file and its memory map
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del store
    assert open_rows(root) == 1
    assert rows.sum() != 0  # the map can still be read
    del rows
    assert open_rows(root) == 0


def test_store_that_is_refused_leaves_no_file_open(tmp_path: Path) -> None:
    root = write_store(tmp_path / "d", episodes())
    os.truncate(root / "rows.npy", 900)
    with pytest.raises(ValueError, match="900 bytes instead of"):
        EpisodeStore.open(root)
    assert open_rows(root) == 0


def test_damaged_block_is_refused_as_often_as_it_is_read(tmp_path: Path) -> None:
    store = import_episodes([make_chunks(tmp_path / "chunks")], tmp_path / "out", "three", SPECS, block=2, quiet=True)
    content = bytearray((store.path / "rows.npy").read_bytes())
    content[-1] ^= 1
    (store.path / "rows.npy").write_bytes(content)
    part = Part.of_store(EpisodeStore.open(store.path))
    for _ in range(2):
        with pytest.raises(ValueError, match="checksum"), part.verifying() as verify:
            verify(torch.tensor([len(store.index) - 1]))
