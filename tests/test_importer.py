"""Chunk files and stores into a store and back: what is kept, how it is checked, what disturbances do."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.data.chunks import Layout, chunk_paths, read_chunk, write_chunk
from tdmpc2.data.collect_record import Record
from tdmpc2.data.rows import RowFormat
from tdmpc2.data.source import chunk_tasks
from tdmpc2.data.store import selection, writer
from tdmpc2.data.store.export import export_chunks
from tdmpc2.data.store.importer import clean_leftovers, ensure_store, find_store, import_episodes
from tdmpc2.data.store.selection import Part, chunk_fingerprints
from tdmpc2.data.store.store import EpisodeStore, StoreMeta
from tdmpc2.data.store.writer import StoreWriter
from tdmpc2.tasks import TaskSpec
from tests.conftest import REPO, largest_file
from tests.kill import killed_at_random
from tests.test_chunks import BAD_FIELDS, BAD_VALUES
from tests.test_data import BAD_LAYOUTS, SPECS, L, fields, save_raw

TASKS = [0, 1, 2, 2, 1, 0, 1]


def make_chunks(root: Path, files: list[list[int]] | None = None, first: int = 0) -> Path:
    """Chunk files of episodes of these tasks, numbered on from ``first``."""
    for number, tasks in enumerate([TASKS[:3], TASKS[3:]] if files is None else files):
        write_chunk(root / f"chunk_{number}.pt", **fields(tasks, first))
        first += len(tasks)
    return root


def content(root: Path) -> dict[str, bytes]:
    """All files of a directory, by name."""
    return {path.name: path.read_bytes() for path in root.iterdir()}


def obvious_rows(data: dict[str, Tensor], dtype: str = "float32") -> bytes:
    """The values of ``rows.npy``, field by field with numpy."""
    record = [("obs", dtype, data["obs"].shape[2:]), ("action", dtype, data["action"].shape[2:]), ("reward", "<f4")]
    rows = np.zeros(data["reward"].shape, np.dtype(record, align=True))
    for name in ("obs", "action", "reward"):
        rows[name] = data[name].numpy()
    rows["action"][:, 0] = rows["reward"][:, 0] = np.nan
    return rows.tobytes()


# -- what is in the store ---------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(data=st.data(), block=st.integers(1, 9), dtype=st.sampled_from(["float32", "float16"]))
def test_any_split_and_selection_gives_the_obvious_bytes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, block: int, dtype: str
) -> None:
    root = tmp_path_factory.mktemp("any")
    files = data.draw(st.lists(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=6), min_size=1, max_size=3))
    tasks = [task for tasks in files for task in tasks]
    kept_tasks = data.draw(st.none() | st.lists(st.sampled_from(tasks), min_size=1, unique=True))
    limit = data.draw(st.none() | st.integers(1, 3))
    make_chunks(root / "chunks", files)
    store = import_episodes(
        [root / "chunks"], root / "out", "three", SPECS, dtype=dtype, task_ids=kept_tasks, max_per_task=limit,
        block=block, quiet=True,
    )  # fmt: skip
    kept = []
    for task in set(tasks if kept_tasks is None else kept_tasks):
        own = [episode for episode, own_task in enumerate(tasks) if own_task == task]
        count = len(own) if limit is None else min(limit, len(own))
        kept += [own[i * len(own) // count] for i in range(count)]
    kept.sort()
    whole = {name: values[kept] for name, values in fields(tasks).items()}
    assert (root / "out/rows.npy").read_bytes().endswith(expected := obvious_rows(whole, dtype))
    assert store.rows.nbytes == len(expected)
    assert store.task.tolist() == [tasks[episode] for episode in kept]
    everything = len(kept) == len(tasks)
    assert store.meta.source == (chunk_fingerprints(root / "chunks") if everything else {})
    assert store.meta.block == block
    assert sorted(content(root / "out")) == ["meta.json", "rows.npy", "task.npy"]
    assert sorted(os.listdir(root)) == [".out.lock", "chunks", "out"]


def test_equal_episodes_give_equal_bytes_whatever_the_filler_was(tmp_path: Path) -> None:
    data = fields(TASKS)
    for name, garbage in (("a", 1e30), ("b", -torch.inf)):
        data["action"][:, 0] = data["reward"][:, 0] = garbage
        (tmp_path / name).mkdir()
        save_raw(tmp_path / name / "chunk_0.pt", data)
        import_episodes([tmp_path / name], tmp_path / f"{name}.store", "three", SPECS, block=3, quiet=True)
    a, b = (content(tmp_path / f"{name}.store") for name in ("a", "b"))
    assert [a[name] for name in ("rows.npy", "task.npy")] == [b[name] for name in ("rows.npy", "task.npy")]
    assert EpisodeStore.open(tmp_path / "a.store").checksum == EpisodeStore.open(tmp_path / "b.store").checksum


def test_chunks_to_store_to_chunks_to_store(tmp_path: Path) -> None:
    make_chunks(tmp_path / "chunks")
    first = import_episodes([tmp_path / "chunks"], tmp_path / "first", "three", SPECS)
    paths = export_chunks(first, tmp_path / "back", episodes_per_file=4)
    assert [path.name for path in paths] == ["chunk_0.pt", "chunk_1.pt"]
    assert [len(read_chunk(path)["task"]) for path in paths] == [4, 3]
    second = import_episodes([tmp_path / "back"], tmp_path / "second", "three", SPECS)
    assert second.checksum == first.checksum
    for name in ("rows.npy", "task.npy"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    again = import_episodes([tmp_path / "first"], tmp_path / "third", "three", SPECS)  # a store from a store
    assert again.checksum == first.checksum
    assert again.meta.source == {}


def test_exported_files_are_those_that_were_imported(tmp_path: Path) -> None:
    make_chunks(tmp_path / "chunks", [TASKS])
    store = import_episodes([tmp_path / "chunks"], tmp_path / "store", "three", SPECS)
    export_chunks(store, tmp_path / "back")
    exported = content(tmp_path / "back")
    assert json.loads(exported.pop("collect.json"))["task"] == "three"
    assert exported == content(tmp_path / "chunks")


def test_an_export_is_a_directory_of_collected_files(tmp_path: Path) -> None:
    """It names its tasks, and collect.py takes it."""
    data = fields([0, 1, 1], length=500, obs_dim=24, action_dim=6)
    write_chunk(tmp_path / "chunks/chunk_0.pt", **data)
    cfg = Config(task="mt30")
    store = import_episodes([tmp_path / "chunks"], tmp_path / "store", "mt30", cfg.task_specs)
    export_chunks(store, tmp_path / "back", episodes_per_file=2)
    assert chunk_tasks(tmp_path / "back") == ("mt30", cfg.task_specs)
    record = Record.read(tmp_path / "back", cfg)
    assert (record.collections, record.next_number()) == ([], 2)
    other = Config(task="walker-stand")
    with pytest.raises(ValueError, match="holds data of task=mt30"):
        Record.read(tmp_path / "back", other)


def test_an_export_into_a_directory_of_other_tasks(tmp_path: Path) -> None:
    store = import_episodes([make_chunks(tmp_path / "chunks")], tmp_path / "store", "three", SPECS)
    two = import_episodes([make_chunks(tmp_path / "c", [[0, 1]])], tmp_path / "two", "two", SPECS[:2])
    export_chunks(two, tmp_path / "back")
    (tmp_path / "back/chunk_0.pt").unlink()
    with pytest.raises(ValueError, match=r"collect\.json is of other tasks than .*store: name an empty directory"):
        export_chunks(store, tmp_path / "back")


def test_what_a_killed_export_left_is_deleted(tmp_path: Path) -> None:
    store = import_episodes([make_chunks(tmp_path / "chunks")], tmp_path / "store", "three", SPECS)
    (tmp_path / "back").mkdir()
    for name in (".chunk_0.pt.0123abcd.tmp", ".chunk_9.pt.0123abcd.tmp"):
        (tmp_path / "back" / name).touch()
    export_chunks(store, tmp_path / "back")
    assert sorted(os.listdir(tmp_path / "back")) == [".chunk_9.pt.0123abcd.tmp", "chunk_0.pt", "collect.json"]


def test_an_export_to_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = import_episodes([make_chunks(tmp_path / "chunks")], tmp_path / "store", "three", SPECS)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"back/new needs 0\.00 GB more and its disk has 0\.00 GB free: make room"):
        export_chunks(store, tmp_path / "back/new")
    assert not (tmp_path / "back").exists()


def test_export_continues_and_overwrites_nothing(tmp_path: Path) -> None:
    store = import_episodes([make_chunks(tmp_path / "chunks")], tmp_path / "store", "three", SPECS)
    back = tmp_path / "back"
    export_chunks(store, back, episodes_per_file=2)
    whole = content(back)
    (back / "chunk_2.pt").unlink()
    before = (back / "chunk_1.pt").stat().st_mtime_ns
    export_chunks(store, back, episodes_per_file=2)
    assert content(back) == whole
    assert (back / "chunk_1.pt").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"chunk_2\.pt is not of this export of 2 files"):
        export_chunks(store, back, episodes_per_file=4)
    shutil.copy(back / "chunk_0.pt", back / "chunk_1.pt")
    with pytest.raises(ValueError, match=r"chunk_1\.pt exists and does not hold episodes 2 to 3"):
        export_chunks(store, back, episodes_per_file=2)
    assert (back / "chunk_1.pt").read_bytes() == whole["chunk_0.pt"]


def test_sources_follow_one_another(tmp_path: Path) -> None:
    make_chunks(tmp_path / "a", [TASKS[:2]])
    make_chunks(tmp_path / "b", [TASKS[2:4], TASKS[4:]], first=2)
    make_chunks(tmp_path / "whole", [TASKS])
    a = import_episodes([tmp_path / "a"], tmp_path / "a_store", "three", SPECS)
    whole = import_episodes([tmp_path / "whole"], tmp_path / "whole_store", "three", SPECS, block=3)
    for number, sources in enumerate(([tmp_path / "a", tmp_path / "b"], [a.path, tmp_path / "b"])):
        merged = import_episodes(sources, tmp_path / f"merged_{number}", "three", SPECS, block=3)
        assert merged.checksum == whole.checksum
        assert merged.meta.source == {}
    with pytest.raises(ValueError, match="each only once"):
        import_episodes([tmp_path / "a", tmp_path / "b/../a"], tmp_path / "twice", "three", SPECS)


def test_float16(tmp_path: Path) -> None:
    data = fields(TASKS)
    generator = torch.Generator().manual_seed(1)
    for name in ("obs", "action"):
        data[name] *= torch.rand(data[name].shape, generator=generator) * 20
        data[name] += torch.rand(data[name].shape, generator=generator)
    data["reward"] += torch.rand(data["reward"].shape, generator=generator)
    write_chunk(tmp_path / "chunk_0.pt", **data)
    store = import_episodes([tmp_path], tmp_path / "half", "three", SPECS, dtype="float16", block=2)
    obs, action, reward = store.meta.row_format.split(store.rows)
    for stored, name in ((obs, "obs"), (action, "action")):
        assert stored.dtype == torch.float16
        given = data[name][:, 1:].double()
        error = (stored[:, 1:].double() - given).abs()
        assert bool((error <= 2**-11 * given.abs() + 2**-25).all())  # half of the last bit
        assert error.max() > 0
    assert torch.equal(reward[:, 1:], data["reward"][:, 1:])
    # Once rounded, nothing is lost any more, in whatever form it is passed on.
    export_chunks(store, tmp_path / "back")
    again = import_episodes([tmp_path / "back"], tmp_path / "again", "three", SPECS, dtype="float16", block=2)
    assert again.checksum == store.checksum
    single = import_episodes([store.path], tmp_path / "single", "three", SPECS)
    assert import_episodes([single.path], tmp_path / "half2", "three", SPECS, dtype="float16", block=2).checksum == (
        store.checksum
    )


@pytest.mark.parametrize(("name", "value"), [("obs", 65505.0), ("obs", -7e4), ("action", 1e6)])
def test_values_beyond_float16_are_refused(tmp_path: Path, name: str, value: float) -> None:
    data = fields(TASKS)
    data["obs"][0, 0, 0], data[name][5, 2, 1] = 65504, value
    write_chunk(tmp_path / "chunk_0.pt", **data)
    message = rf"chunk_0\.pt: {name} is {value:g} in episode 5, row 2; float16 holds at most 65,504\. Import it as"
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        import_episodes([tmp_path], tmp_path / "half", "three", SPECS, dtype="float16", block=2)
    assert sorted(os.listdir(tmp_path)) == [".half.lock", ".half.partial", "chunk_0.pt"]
    assert len(import_episodes([tmp_path], tmp_path / "single", "three", SPECS).rows) == len(TASKS)


def test_a_layout_like_mt80s(tmp_path: Path) -> None:
    specs = Config(task="mt80").task_specs
    layout = Layout.of(specs)
    assert layout == (101, 39, 6, 80)
    data = fields([79, 3, 3, 50], length=100, obs_dim=39, action_dim=6)
    write_chunk(tmp_path / "chunk_0.pt", **data)
    for dtype in ("float32", "float16"):
        store = import_episodes([tmp_path], tmp_path / dtype, "mt80", specs, dtype=dtype)
        assert store.rows.shape == (4, 101, 46 if dtype == "float32" else 24)
        assert (store.path / "rows.npy").read_bytes().endswith(obvious_rows(data, dtype))
        assert store.task.tolist() == [79, 3, 3, 50]


def test_rows_are_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces smaller than a block, and episodes that do not follow one another."""
    make_chunks(tmp_path / "chunks", [TASKS * 3, TASKS * 2])
    monkeypatch.setattr("tdmpc2.data.store.importer._PIECE", 2 * (L + 1) * RowFormat(4, 2).record.itemsize)
    tasks = TASKS * 5
    for source in (tmp_path / "chunks", tmp_path / "all"):
        out = tmp_path / f"{source.name}_out"
        store = import_episodes([source], out, "three", SPECS, task_ids=[0, 2], block=5)
        kept = [episode for episode, task in enumerate(tasks) if task != 1]
        assert store.meta.row_format.split(store.rows)[0][:, 0, 0].tolist() == kept
        if source.name == "chunks":
            import_episodes([source], tmp_path / "all", "three", SPECS, block=5)
    for name in ("rows.npy", "task.npy"):
        assert (tmp_path / "chunks_out" / name).read_bytes() == (tmp_path / "all_out" / name).read_bytes()


def test_the_pieces_of_many_files_are_found_quickly() -> None:
    number = 6900
    parts = [Part(Path("chunk_0.pt"), torch.zeros(100, dtype=torch.int64)) for _ in range(number)]
    kept = torch.arange(0, 100 * number, 2)
    meta = StoreMeta("three", SPECS, len(kept))
    begin = time.perf_counter()
    found = list(selection.Selection(meta, parts, kept, torch.zeros_like(kept), [], "").pieces(0, 256))
    assert time.perf_counter() - begin < 4  # 0.1 s; a comparison of each block with each file takes 12 s
    offsets = {id(part): 100 * index for index, part in enumerate(parts)}
    assert torch.equal(torch.cat([episodes + offsets[id(part)] for part, episodes in found]), kept)


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_chunks(tmp_path / "chunks")
    import_episodes([tmp_path / "chunks"], tmp_path / "quiet", "three", SPECS, quiet=True)
    assert capsys.readouterr().out == ""
    import_episodes([tmp_path / "chunks"], tmp_path / "loud", "three", SPECS)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        f"Importing 7 episodes of 3 tasks from {tmp_path}/chunks to {tmp_path}/loud: 0.00 GB to write"
    )
    assert "GB free, about 0:00:00 at 300 MB/s" in first
    assert last.startswith("Importing: done, 7 episodes in 0:00:0")


# -- bad input --------------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, match: str, **arguments: Any) -> None:
    """Importing ``chunks`` fails with this message, and everything is as it was."""
    before = content(tmp_path / "chunks")
    with pytest.raises(ValueError, match=match):
        import_episodes([tmp_path / "chunks"], tmp_path / "out", "three", SPECS, **arguments)
    assert content(tmp_path / "chunks") == before
    assert set(os.listdir(tmp_path)) <= {"chunks", ".out.lock", ".out.partial"}


@pytest.mark.parametrize("case", BAD_FIELDS | BAD_VALUES)
def test_bad_data(tmp_path: Path, case: str) -> None:
    change, message = (BAD_FIELDS | BAD_VALUES)[case]
    make_chunks(tmp_path / "chunks", [TASKS])
    data = fields([0, 1, 2])
    change(data)
    save_raw(tmp_path / "chunks/chunk_4.pt", data)
    refused(tmp_path, rf"chunk_4\.pt.*{message}", block=2)


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_data_of_another_task_set(tmp_path: Path, case: str) -> None:
    data, message = BAD_LAYOUTS[case]
    make_chunks(tmp_path / "chunks")
    write_chunk(tmp_path / "chunks/chunk_5.pt", **data)
    refused(tmp_path, rf"chunk_5\.pt.*{message}")


def test_bad_values_are_named_by_their_episode_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_TASK_PIECE", 4)
    make_chunks(tmp_path / "chunks", [TASKS])
    data = fields(TASKS)
    data["reward"][5, 3] = torch.nan
    save_raw(tmp_path / "chunks/chunk_1.pt", data)
    refused(tmp_path, r"chunk_1\.pt: reward is nan in episode 5, row 3", block=3, task_ids=[0])
    assert len(import_episodes([tmp_path / "chunks"], tmp_path / "others", "three", SPECS, task_ids=[1, 2]).task) == 10
    shutil.rmtree(tmp_path / "others")
    (tmp_path / ".others.lock").unlink()
    for change, message in (((6, 2), "changes in episode 6, row 2"), ((5,), "is 9 in episode 5, row 0")):
        data = fields(TASKS)
        data["task"][change] = 9
        save_raw(tmp_path / "chunks/chunk_1.pt", data)
        refused(tmp_path, rf"chunk_1\.pt: the task id {message}")


@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_truncated_chunk(tmp_path: Path, part: float) -> None:
    path = make_chunks(tmp_path / "chunks") / "chunk_1.pt"
    os.truncate(path, int(part * path.stat().st_size))
    refused(tmp_path, r"chunk_1\.pt \([\d,]+ bytes\) cannot be read .* truncated")


def test_chunk_whose_arrays_are_shorter_than_it_says(tmp_path: Path) -> None:
    """An intact archive, but with the values of fewer episodes than its pickle speaks of."""
    path = make_chunks(tmp_path / "chunks") / "chunk_1.pt"
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in records.items():
            archive.writestr(name, values[: len(values) // 2] if name.endswith(("/data/0", "/data/3")) else values)
    torch.load(path, weights_only=False, mmap=True)  # nothing is noticed
    claims = "arrays of 448, 224, 112, 112 bytes and holds 224, 224, 112, 56"
    refused(tmp_path, rf"chunk_1\.pt \([\d,]+ bytes\) is shorter than it says: it claims {claims}")


@pytest.mark.parametrize("changed", [b"cpuq\nK\xf0tq\x0b", b"cpuq\nM\xff\xfftq\x0b"])
def test_chunk_that_claims_more_values(tmp_path: Path, changed: bytes) -> None:
    """84 numbers (K 84 in the pickle) of obs become 240, or 65535 and reach beyond the end of the file."""
    path = make_chunks(tmp_path / "chunks") / "chunk_0.pt"
    raw = path.read_bytes()
    before = b"cpuq\nK\x54tq\x0b"
    assert raw.count(before) == 1
    path.write_bytes(raw.replace(before, changed))
    refused(tmp_path, r"chunk_0\.pt.* (is shorter than it says|cannot be read)")


def test_stores_with_other_tasks(tmp_path: Path) -> None:
    other = (SPECS[0], TaskSpec("four-two", 4, 2, L), SPECS[2])
    make_chunks(tmp_path / "chunks")
    a = import_episodes([tmp_path / "chunks"], tmp_path / "a", "three", SPECS).path
    b = import_episodes([tmp_path / "chunks"], tmp_path / "b", "other", other).path
    shorter = import_episodes([tmp_path / "chunks"], tmp_path / "c", "four", (*SPECS, SPECS[0])).path
    before = content(a), content(b)
    match = rf"{b} holds other tasks than {a}; the first difference is id 1: .*four-two.* in {b}, .*four-one.* in {a}"
    with pytest.raises(ValueError, match=match):
        import_episodes([a, b], tmp_path / "out", "three", SPECS)
    with pytest.raises(ValueError, match=rf"{b} holds other tasks than task=three; the first difference is id 1"):
        import_episodes([b, a], tmp_path / "out", "three", SPECS)
    with pytest.raises(ValueError, match=rf"than {a}; the first difference is id 3: TaskSpec.* in {shorter}, none in"):
        import_episodes([a, shorter], tmp_path / "out", "three", SPECS)
    assert (content(a), content(b)) == before
    assert not (tmp_path / "out").exists()


def test_bad_arguments(tmp_path: Path) -> None:
    make_chunks(tmp_path / "chunks", [[0, 1]])
    refused(tmp_path, "dtype=int8", dtype="int8")
    refused(tmp_path, "max_per_task=0", max_per_task=0)
    refused(tmp_path, "task_ids names 3, but task=three has ids 0 to 2", task_ids=[0, 3])
    refused(tmp_path, "has no episodes of two-two", task_ids=[0, 2])
    for sources in ([], [tmp_path / "absent"]):
        with pytest.raises(ValueError, match=r"at least one directory|is not a directory"):
            import_episodes(sources, tmp_path / "out", "three", SPECS)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    make_chunks(tmp_path / "chunks")
    out = import_episodes([tmp_path / "chunks"], tmp_path / "out", "three", SPECS).path
    before = content(out)
    with pytest.raises(ValueError, match="out exists: name another directory"):
        import_episodes([tmp_path / "chunks"], out, "three", SPECS)
    assert content(out) == before
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial/thesis.txt").write_text("a")
    with pytest.raises(ValueError, match=r"\.new\.partial holds thesis\.txt, which is not of an episode store"):
        import_episodes([tmp_path / "chunks"], tmp_path / "new", "three", SPECS)
    assert content(tmp_path / ".new.partial") == {"thesis.txt": b"a"}


# -- a full disk ------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_chunks(tmp_path / "chunks")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(tmp_path, r"out needs 0\.00 GB more and its disk has 0\.00 GB free: make room.* Nothing was written")


def test_a_disk_that_refuses_the_reservation(tmp_path: Path) -> None:
    make_chunks(tmp_path / "chunks", [TASKS * 50])
    with largest_file(8192):
        refused(tmp_path, "Could not write .*out: .*File too large.*What was there before is unchanged")


@pytest.mark.parametrize("error", ["AttributeError", "EOPNOTSUPP"])
def test_without_reservation_zeros_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    def absent(*_: int) -> None:
        if error == "AttributeError":
            raise AttributeError
        raise OSError(getattr(errno, error), "not supported")

    make_chunks(tmp_path / "chunks", [TASKS * 50])
    expected = import_episodes([tmp_path / "chunks"], tmp_path / "reserved", "three", SPECS).checksum
    monkeypatch.setattr(os, "posix_fallocate", absent)
    assert import_episodes([tmp_path / "chunks"], tmp_path / "zeros", "three", SPECS).checksum == expected
    for name in ("zeros", "reserved"):
        shutil.rmtree(tmp_path / name)
        (tmp_path / f".{name}.lock").unlink()
    with largest_file(8192):
        refused(tmp_path, "Could not write .*out: .*File too large")


FULL_DISK = """
import shutil, sys
from pathlib import Path
from tdmpc2.data.store.importer import import_episodes
from tests.test_data import SPECS
root = Path(sys.argv[1])
if sys.argv[2] == "quota":
    much = shutil.disk_usage(root)._replace(free=1 << 40)
    shutil.disk_usage = lambda _: much
import_episodes([root / "small"], root / "disk/finished", "three", SPECS)
before = {path.name: path.read_bytes() for path in (root / "disk/finished").iterdir()}
try:
    import_episodes([root / "large"], root / "disk/out", "three", SPECS)
except ValueError as error:
    print("refused:", error)
assert before == {path.name: path.read_bytes() for path in (root / "disk/finished").iterdir()}
print("left:", sorted(path.name for path in (root / "disk").iterdir()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "message"), [("plain", "its disk has 0.00 GB free"), ("quota", "No space left")])
def test_a_small_disk(tmp_path: Path, kind: str, message: str) -> None:
    """A disk of 256 kB; with ``quota`` the system says there is room, and the reservation is what fails."""
    namespace = ["unshare", "-rm"]
    mount = "mount -t tmpfs -o size=256k tmpfs"
    (tmp_path / "disk").mkdir()
    trial = shutil.which("unshare") and subprocess.run(
        [*namespace, "sh", "-c", f"{mount} {tmp_path}/disk"], capture_output=True, text=True
    )
    if not trial or trial.returncode:
        pytest.skip(f"cannot mount a small disk: {trial.stderr if trial else 'unshare is not installed'}")
    make_chunks(tmp_path / "small")
    make_chunks(tmp_path / "large", [TASKS * 300])
    before = content(tmp_path / "large")
    command = f'{mount} {tmp_path}/disk && exec "$0" -c "$1" {tmp_path} {kind}'
    done = subprocess.run(
        [*namespace, "sh", "-c", command, sys.executable, FULL_DISK], capture_output=True, text=True, cwd=REPO
    )
    assert done.returncode == 0, done.stderr  # -7 would be the bus error
    assert "refused: " in done.stdout
    assert message in done.stdout
    assert done.stdout.splitlines()[-1] == "left: ['.finished.lock', '.out.lock', 'finished']"
    assert content(tmp_path / "large") == before


# -- interruptions ----------------------------------------------------------------------------------------------------


class _Interrupt(BaseException):
    """As a kill: nothing in the program handles it."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Number of episodes of each read."""
    counts: list[int] = []
    read = Part.read

    def note(self: Part, episodes: Tensor) -> dict[str, Tensor]:
        counts.append(len(episodes))
        return read(self, episodes)

    monkeypatch.setattr(Part, "read", note)
    return counts


def _write_until(monkeypatch: pytest.MonkeyPatch, blocks: int, error: BaseException) -> None:
    write = StoreWriter.write

    def stop(self: StoreWriter, records: Tensor) -> None:
        if len(self.finished) >= blocks:
            raise error
        write(self, records)

    monkeypatch.setattr(StoreWriter, "write", stop)


@pytest.mark.parametrize("error", [_Interrupt(), OSError(5, "Input/output error")])
@pytest.mark.parametrize("blocks", range(5))
def test_continues_with_the_first_unfinished_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reads: list[int],
    blocks: int, error: BaseException,
) -> None:  # fmt: skip
    tasks = TASKS + TASKS[:2]
    make_chunks(tmp_path / "chunks", [tasks])
    expected = import_episodes([tmp_path / "chunks"], tmp_path / "undisturbed", "three", SPECS, block=2).path
    with monkeypatch.context() as patch:
        _write_until(patch, blocks, error)
        with pytest.raises(_Interrupt if isinstance(error, _Interrupt) else ValueError) as raised:
            import_episodes([tmp_path / "chunks"], tmp_path / "out", "three", SPECS, block=2)
    assert ("Import again to continue" in str(raised.value)) == (isinstance(error, OSError) and blocks > 0)
    assert not (tmp_path / "out").exists()
    size = (expected / "rows.npy").stat().st_size
    assert (tmp_path / ".out.partial/rows.npy").stat().st_size == size  # reserved from the beginning
    reads.clear()
    capsys.readouterr()
    import_episodes([tmp_path / "chunks"], tmp_path / "out", "three", SPECS, block=2)
    assert sum(reads) == len(tasks) - 2 * blocks
    continued = f"Continuing: {2 * blocks} of 9 episodes are in {tmp_path}/.out.partial"
    assert (continued in capsys.readouterr().out) == (blocks > 0)
    assert content(tmp_path / "out") == content(expected)
    assert not (tmp_path / ".out.partial").exists()


def _interrupted(root: Path, monkeypatch: pytest.MonkeyPatch, blocks: int = 2) -> tuple[Path, dict[str, bytes]]:
    """Chunk files and an import of them that stopped, and what the whole store holds."""
    chunks = make_chunks(root / "chunks")
    whole = content(import_episodes([chunks], root / "undisturbed", "three", SPECS, block=2, quiet=True).path)
    with monkeypatch.context() as patch:
        _write_until(patch, blocks, _Interrupt())
        with pytest.raises(_Interrupt):
            import_episodes([chunks], root / "out", "three", SPECS, block=2, quiet=True)
    return chunks, whole


TORN: dict[str, tuple[Callable[[Path], Any], int]] = {
    "half a line": (lambda journal: journal.write_bytes(journal.read_bytes()[:-20]), 5),
    "no end of line": (lambda journal: journal.write_bytes(journal.read_bytes()[:-1]), 5),
    "zeros": (lambda journal: journal.write_bytes(journal.read_bytes() + bytes(65) + b"\n"), 3),
    "half of its first line": (lambda journal: journal.write_bytes(journal.read_bytes()[:50]), 7),
    "empty": (lambda journal: journal.write_bytes(b""), 7),
    "data gone": (lambda journal: (journal.parent / "rows.npy").unlink(), 7),
    "data short": (lambda journal: os.truncate(journal.parent / "rows.npy", 300), 7),
    "temporary file": (lambda journal: (journal.parent / ".meta.json.0123abcd.tmp").touch(), 3),
}


@pytest.mark.parametrize("case", TORN)
def test_torn_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int], case: str) -> None:
    tear, to_read = TORN[case]
    chunks, whole = _interrupted(tmp_path, monkeypatch)
    tear(tmp_path / ".out.partial/journal")
    reads.clear()
    import_episodes([chunks], tmp_path / "out", "three", SPECS, block=2)
    assert sum(reads) == to_read
    assert content(tmp_path / "out") == whole


@pytest.mark.parametrize("name", [".s.partial", ".s.replaced", "s.partial", "s.old", "s.replaced"])
@pytest.mark.parametrize("command", ["import", "ensure"])
def test_a_users_own_store_is_not_deleted_whatever_its_name(tmp_path: Path, name: str, command: str) -> None:
    make_chunks(tmp_path / "chunks")
    out = tmp_path / "s"
    if command == "ensure":
        make_chunks(tmp_path, [TASKS[:3]])
        name, out = name.replace("s", "store", 1), tmp_path / "store"
        ensure_store(tmp_path, "three", SPECS)
        write_chunk(tmp_path / "chunk_1.pt", **fields(TASKS[3:], first=3))
    own = import_episodes([tmp_path / "chunks"], tmp_path / name, "three", SPECS, max_per_task=1).path
    before = content(own)
    for _ in range(2):
        with suppress(ValueError):  # it may be in the way
            if command == "import":
                import_episodes([own], out, "three", SPECS, dtype="float16")
            else:
                ensure_store(tmp_path, "three", SPECS)
        assert content(own) == before


def test_blocks_of_files_that_did_not_change_are_kept(tmp_path: Path, reads: list[int]) -> None:
    """A bad value in the last file: once it is mended, only that file's blocks are read again."""
    make_chunks(tmp_path / "chunks", [TASKS, TASKS[:2]])
    data = fields(TASKS[:2], first=7)
    write_chunk(tmp_path / "good/chunk_0.pt", **data)
    data["obs"][1, 2, 0] = torch.nan
    save_raw(tmp_path / "chunks/chunk_1.pt", data)
    message = rf"chunk_1\.pt: obs is nan in episode 1.* 8 episodes are kept in {tmp_path}/\.out\.partial"
    with pytest.raises(ValueError, match=message):
        import_episodes([tmp_path / "chunks"], tmp_path / "out", "three", SPECS, block=2)
    shutil.copy(tmp_path / "good/chunk_0.pt", tmp_path / "chunks/chunk_1.pt")
    reads.clear()
    store = import_episodes([tmp_path / "chunks"], tmp_path / "out", "three", SPECS, block=2)
    assert sum(reads) == 3
    fresh = import_episodes([tmp_path / "chunks"], tmp_path / "fresh", "three", SPECS, block=2)
    assert content(store.path) == content(fresh.path)


def test_out_may_be_a_link_to_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = make_chunks(tmp_path / "chunks")
    disks: set[Path] = set()
    rename = os.rename

    def note(source: Path, target: Path) -> None:
        disks.update((Path(source).parent, Path(target).parent))
        rename(source, target)

    monkeypatch.setattr(os, "rename", note)
    (tmp_path / "other").mkdir()
    (chunks / "store").symlink_to(tmp_path / "other/large")
    assert len(ensure_store(chunks, "three", SPECS).task) == len(TASKS)
    write_chunk(chunks / "chunk_2.pt", **fields([1], first=7))
    assert len(ensure_store(chunks, "three", SPECS).task) == len(TASKS) + 1
    assert disks == {tmp_path / "other"}
    assert (chunks / "store").is_symlink()
    assert sorted(os.listdir(tmp_path / "other")) == [".large.lock", "large"]
    (tmp_path / "s").symlink_to(tmp_path / "other/s")
    import_episodes([chunks], tmp_path / "s", "three", SPECS)
    assert (tmp_path / "other/s/meta.json").exists()


@pytest.mark.parametrize("change", ["file changed", "file added", "dtype", "tasks", "block"])
def test_another_import_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    chunks, _ = _interrupted(tmp_path, monkeypatch)
    arguments: dict[str, Any] = {"block": 2}
    if change == "file changed":
        data = fields(TASKS[:3], first=70)
        (chunks / "chunk_0.pt").unlink()
        write_chunk(chunks / "chunk_0.pt", **data)  # of the same size
    elif change == "file added":
        write_chunk(chunks / "chunk_2.pt", **fields([1]))
    else:
        arguments.update({"dtype": {"dtype": "float16"}, "tasks": {"task_ids": [0]}, "block": {"block": 3}}[change])
    import_episodes([chunks], tmp_path / "out", "three", SPECS, **arguments)
    assert f"Starting afresh: {tmp_path}/.out.partial is of other files or choices" in capsys.readouterr().out
    fresh = import_episodes([chunks], tmp_path / "fresh", "three", SPECS, **arguments).path
    assert content(tmp_path / "out") == content(fresh)


def test_the_journal_never_runs_ahead_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the rows reach the disk, the journal does not yet speak of their block."""
    make_chunks(tmp_path / "chunks")
    journal = tmp_path / ".out.partial/journal"
    fsync, lines = os.fsync, []

    def record(descriptor: int) -> None:
        fsync(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/rows.npy") and journal.exists():
            lines.append(len(journal.read_text().splitlines()) - 1)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", record)
    import_episodes([tmp_path / "chunks"], tmp_path / "out", "three", SPECS, block=2)
    assert lines == [0, 0, 1, 2, 3]  # the first is of the header


def test_a_file_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = make_chunks(tmp_path / "chunks")
    write = StoreWriter.write

    def touch(self: StoreWriter, records: Tensor) -> None:
        os.utime(chunks / "chunk_0.pt", ns=(0, 0))
        write(self, records)

    monkeypatch.setattr(StoreWriter, "write", touch)
    refused(tmp_path, "chunks changed while it was imported")


# -- several processes ------------------------------------------------------------------------------------------------

SLOW_IMPORT = """
import sys, time
from pathlib import Path
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.data.store.selection import Part
from tests.test_data import SPECS
root, read = Path(sys.argv[1]), Part.read
def wait(self, episodes):
    (root / "reading").touch()
    while not (root / "go").exists():
        time.sleep(0.01)
    return read(self, episodes)
Part.read = wait
import_episodes([root / "chunks"], root / "out", "three", SPECS, block=2, max_per_task=MAX)
"""


def _slow_import(root: Path, max_per_task: int | None = None) -> subprocess.Popen[bytes]:
    """A process that holds the lock and waits for the file ``go``."""
    process = subprocess.Popen([sys.executable, "-c", SLOW_IMPORT.replace("MAX", str(max_per_task)), root], cwd=REPO)
    while not (root / "reading").exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_a_second_process_waits_and_takes_the_finished_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reads: list[int], same: bool
) -> None:
    make_chunks(tmp_path / "chunks")
    process = _slow_import(tmp_path, None if same else 1)
    result: list[Any] = []

    def import_too() -> None:
        try:
            result.append(import_episodes([tmp_path / "chunks"], tmp_path / "out", "three", SPECS, block=2))
        except ValueError as error:
            result.append(error)

    thread = threading.Thread(target=import_too)
    thread.start()
    said = ""
    while "\n" not in said:
        assert thread.is_alive()
        said += capsys.readouterr().out
        time.sleep(0.02)
    assert said == f"Another process is writing {tmp_path}/out: waiting for it\n"
    (tmp_path / "go").touch()
    thread.join(60)
    assert process.wait(60) == 0
    assert reads == []
    if same:
        assert len(result[0].task) == len(TASKS)
    else:  # what it waited for is something else
        assert "out exists: name another directory" in str(result[0])
        assert EpisodeStore.open(tmp_path / "out").meta.episodes == 3


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    killed_at_random("import", times=3, seed=1, root=tmp_path)


@pytest.mark.slow
def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    make_chunks(tmp_path / "chunks")
    process = _slow_import(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert (tmp_path / ".out.partial").exists()
    assert len(import_episodes([tmp_path / "chunks"], tmp_path / "out", "three", SPECS).task) == len(TASKS)
    assert not (tmp_path / ".out.partial").exists()


# -- the store of a directory of chunk files --------------------------------------------------------------------------


def test_the_store_of_a_directory(tmp_path: Path, reads: list[int]) -> None:
    assert find_store(tmp_path) is None
    with pytest.raises(ValueError, match="has no chunk files"):
        ensure_store(tmp_path, "three", SPECS)
    make_chunks(tmp_path)
    assert find_store(tmp_path) is None
    store = ensure_store(tmp_path, "three", SPECS, quiet=True)
    assert store.path == tmp_path / "store"
    reads.clear()
    for again in (find_store(tmp_path), find_store(store.path), ensure_store(tmp_path, "three", SPECS)):
        assert again is not None
        assert again.checksum == store.checksum
    assert reads == []
    for path in chunk_paths(tmp_path):
        path.unlink()
    found = find_store(tmp_path)
    assert found is not None
    assert found.checksum == store.checksum
    assert len(import_episodes([tmp_path], tmp_path / "copy", "three", SPECS).task) == len(TASKS)


def test_a_part_of_the_tasks_is_enough(tmp_path: Path) -> None:
    make_chunks(tmp_path, [[1, 1]])
    assert ensure_store(tmp_path, "three", SPECS).task.tolist() == [1, 1]


def test_a_store_of_fewer_files_is_replaced(tmp_path: Path) -> None:
    make_chunks(tmp_path)
    ensure_store(tmp_path, "three", SPECS)
    (tmp_path / "store/targets").mkdir()
    write_chunk(tmp_path / "chunk_2.pt", **fields([1], first=7))
    assert find_store(tmp_path) is None
    store = ensure_store(tmp_path, "three", SPECS)
    assert store.task.tolist() == [*TASKS, 1]
    assert len(store.meta.source) == 3
    assert sorted(os.listdir(tmp_path)) == [".store.lock", "chunk_0.pt", "chunk_1.pt", "chunk_2.pt", "store"]
    assert sorted(os.listdir(store.path)) == ["meta.json", "rows.npy", "task.npy"]


def test_a_store_of_files_of_equal_size_is_replaced(tmp_path: Path) -> None:
    make_chunks(tmp_path)
    before = chunk_fingerprints(tmp_path)
    ensure_store(tmp_path, "three", SPECS)
    size = (tmp_path / "chunk_1.pt").stat().st_size
    (tmp_path / "chunk_1.pt").unlink()
    write_chunk(tmp_path / "chunk_1.pt", **fields(TASKS[3:], first=100))
    assert (tmp_path / "chunk_1.pt").stat().st_size == size
    assert find_store(tmp_path) is None
    store = ensure_store(tmp_path, "three", SPECS)
    assert store.meta.row_format.split(store.rows)[0][:, 0, 0].tolist() == [0, 1, 2, 100, 101, 102, 103]
    (tmp_path / "chunk_1.pt").unlink()
    write_chunk(tmp_path / "chunk_1.pt", **fields(TASKS[3:], first=3))
    assert chunk_fingerprints(tmp_path) == before  # of equal data


def test_fingerprint_of_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (make_chunks(tmp_path) / "chunk_1.pt").write_text("version https://git-lfs")
    with pytest.raises(ValueError, match=r"chunk_1\.pt \(23 bytes\) cannot be read as a chunk file: .*BadZipFile"):
        chunk_fingerprints(tmp_path)


def test_a_store_with_episodes_that_are_nowhere_else_is_not_replaced(tmp_path: Path) -> None:
    make_chunks(tmp_path / "data")
    before = content(ensure_store(tmp_path / "data", "three", SPECS).path)
    (tmp_path / "data/chunk_1.pt").unlink()
    assert find_store(tmp_path / "data") is None
    message = r"holds chunk files and a store that was imported from chunk_1\.pt, which is gone"
    with pytest.raises(ValueError, match=message):
        ensure_store(tmp_path / "data", "three", SPECS)
    assert content(tmp_path / "data/store") == before
    make_chunks(tmp_path / "more")
    import_episodes([tmp_path / "data", tmp_path / "more"], tmp_path / "more/store", "three", SPECS)
    with pytest.raises(ValueError, match=r"a store that was not imported from them.* name .*more/store as data_dir"):
        ensure_store(tmp_path / "more", "three", SPECS)
    assert len(EpisodeStore.open(tmp_path / "more/store").task) == 3 + len(TASKS)


def test_an_empty_directory_in_the_way(tmp_path: Path) -> None:
    make_chunks(tmp_path)
    (tmp_path / "store").mkdir()
    assert len(ensure_store(tmp_path, "three", SPECS).task) == len(TASKS)


def test_something_else_in_the_way(tmp_path: Path) -> None:
    make_chunks(tmp_path, [TASKS[:3]])
    (tmp_path / "store").mkdir()
    (tmp_path / "store/thesis.txt").write_text("a")
    with pytest.raises(ValueError, match="store is in the way of the store to be made there, and is none"):
        ensure_store(tmp_path, "three", SPECS)
    (tmp_path / "store/thesis.txt").unlink()
    ensure_store(tmp_path, "three", SPECS)
    (tmp_path / "store/thesis.txt").write_text("a")
    write_chunk(tmp_path / "chunk_1.pt", **fields([1], first=3))
    with pytest.raises(ValueError, match=r"holds thesis\.txt, which is not of an episode store: move it away"):
        ensure_store(tmp_path, "three", SPECS)
    assert (tmp_path / "store/thesis.txt").read_text() == "a"
    assert sorted(os.listdir(tmp_path)) == [".store.lock", "chunk_0.pt", "chunk_1.pt", "store"]


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    make_chunks(tmp_path)
    (tmp_path / "store").symlink_to("/dev/null/x/store")
    message = rf"Could not write .*tdmpc2\.data convert {tmp_path} ELSEWHERE`.* data_device=cpu"
    with pytest.raises(ValueError, match=message):
        ensure_store(tmp_path, "three", SPECS)


def test_teachers_targets_that_will_be_deleted_are_announced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_chunks(tmp_path)
    targets = ensure_store(tmp_path, "three", SPECS, quiet=True).path / "targets/of_a_teacher"
    targets.mkdir(parents=True)
    (targets / "reward.npy").write_bytes(bytes(20_000_000))
    write_chunk(tmp_path / "chunk_2.pt", **fields([1], first=7))
    ensure_store(tmp_path, "three", SPECS)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"Replacing {tmp_path}/store: 0.02 GB of teachers' targets in it are deleted")
    assert second.startswith("Importing 8 episodes")


def test_what_a_kill_left_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_chunks(tmp_path)
    ensure_store(tmp_path, "three", SPECS, quiet=True)
    write_chunk(tmp_path / "chunk_2.pt", **fields([1], first=7))
    with monkeypatch.context() as patch:
        patch.setattr(writer, "clean", lambda *_: None)
        whole = content(ensure_store(tmp_path, "three", SPECS).path)
    assert (tmp_path / ".store.replaced/rows.npy").exists()
    with writer.locked(tmp_path / "store"):
        clean_leftovers(tmp_path)
    assert (tmp_path / ".store.replaced/rows.npy").exists()  # another process is writing there
    clean_leftovers(tmp_path / "store")
    clean_leftovers(tmp_path)
    clean_leftovers(tmp_path / "absent")
    assert sorted(os.listdir(tmp_path)) == [".store.lock", *(f"chunk_{i}.pt" for i in range(3)), "store"]
    assert content(tmp_path / "store") == {name: values for name, values in whole.items() if name != "journal"}


def test_a_store_of_other_tasks(tmp_path: Path) -> None:
    make_chunks(tmp_path)
    ensure_store(tmp_path, "three", SPECS)
    with pytest.raises(ValueError, match=r"store holds other tasks than task=two; the first difference is id 2"):
        ensure_store(tmp_path, "two", SPECS[:2])


def _stop_at_call(monkeypatch: pytest.MonkeyPatch, function: str, number: int) -> None:
    owner, name = function.rsplit(".", 1)
    target: Any = {"os": os, "shutil": shutil, "pathlib.Path": Path}[owner]
    original, calls = getattr(target, name), count()

    def stop(*args: Any, **keywords: Any) -> Any:
        if next(calls) >= number:
            raise _Interrupt
        return original(*args, **keywords)

    monkeypatch.setattr(target, name, stop)


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("function", ["os.rename", "os.fsync", "os.replace", "shutil.rmtree", "pathlib.Path.unlink"])
def test_stopped_anywhere_in_the_end_it_is_finished_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, replaces: bool
) -> None:
    """Stopped before each call of each function that changes files: the next call makes the same store."""
    make_chunks(tmp_path / "whole", [TASKS, [1]])
    whole = content(ensure_store(tmp_path / "whole", "three", SPECS, quiet=True).path)
    stopped, number = True, 0
    while stopped:
        root = tmp_path / f"{number}"
        make_chunks(root, [TASKS])
        if replaces:
            ensure_store(root, "three", SPECS, quiet=True)
        write_chunk(root / "chunk_1.pt", **fields([1], first=7))
        with monkeypatch.context() as patch:
            _stop_at_call(patch, function, number)
            try:
                ensure_store(root, "three", SPECS, quiet=True)
                stopped = False
            except _Interrupt:
                number += 1
        ensure_store(root, "three", SPECS, quiet=True)
        assert content(root / "store") == whole
        assert sorted(os.listdir(root)) == [".store.lock", "chunk_0.pt", "chunk_1.pt", "store"]
    assert number >= {"shutil.rmtree": int(replaces)}.get(function, 1)


def test_an_import_that_stopped_before_its_journal_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]
) -> None:
    chunks, _ = _interrupted(tmp_path, monkeypatch)

    def stop(*_: Any) -> None:
        raise _Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer, "clean", stop)
        with pytest.raises(_Interrupt):
            import_episodes([chunks], tmp_path / "out", "three", SPECS, block=2)
    assert (tmp_path / "out/journal").exists()
    reads.clear()
    store = import_episodes([chunks], tmp_path / "out", "three", SPECS, block=2)
    assert len(store.task) == len(TASKS)
    assert reads == []
    assert sorted(content(store.path)) == ["meta.json", "rows.npy", "task.npy"]


def test_a_finished_store_of_other_files_is_not_taken_for_the_one_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal names, sizes and tasks, and a journal that a kill left."""
    make_chunks(tmp_path / "big")
    make_chunks(tmp_path / "big2", first=50)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "clean", lambda *_: None)
        before = content(import_episodes([tmp_path / "big"], tmp_path / "out", "three", SPECS).path)
    with pytest.raises(ValueError, match="out exists: name another directory"):
        import_episodes([tmp_path / "big2"], tmp_path / "out", "three", SPECS)
    assert content(tmp_path / "out") == before
    assert len(import_episodes([tmp_path / "big"], tmp_path / "out", "three", SPECS).task) == len(TASKS)


# -- memory -----------------------------------------------------------------------------------------------------------

PEAK = """
import sys, threading, time
from pathlib import Path
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.tasks import TaskSpec
def resident():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssFile", "RssShmem")) * 1024
specs = (TaskSpec("long", 16, 2, 500), TaskSpec("other", 16, 2, 500))
import_episodes([sys.argv[2]], sys.argv[3] + ".first", "two", specs, quiet=True)  # what is loaded on first use
peak = before = resident()
running = True
def watch():
    global peak
    while running:
        peak = max(peak, resident())
        time.sleep(0.001)
thread = threading.Thread(target=watch)
thread.start()
choice = {"block": int(sys.argv[4]), "task_ids": eval(sys.argv[5])}
import_episodes([sys.argv[1]], sys.argv[3], "two", specs, **choice, quiet=True)
running = False
thread.join()
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux memory accounting")
@pytest.mark.parametrize("form", ["chunks", "every other episode", "store"])
def test_memory_is_less_than_two_slices(tmp_path: Path, form: str) -> None:
    specs, block = (TaskSpec("long", 16, 2, 500), TaskSpec("other", 16, 2, 500)), 1024
    make = {"length": 500, "obs_dim": 16, "action_dim": 2}
    write_chunk(tmp_path / "small/chunk_0.pt", **fields([0, 1], **make))
    for number in range(3):
        write_chunk(tmp_path / f"chunks/chunk_{number}.pt", **fields([0, 1] * 1024, **make))
    source = tmp_path / "chunks"
    if form == "store":
        source = import_episodes([source], tmp_path / "store", "two", specs).path
        shutil.rmtree(tmp_path / "chunks")
    arguments = [tmp_path / "small", tmp_path / "out", block, "[0]" if form == "every other episode" else "None"]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, source, *map(str, arguments)], capture_output=True, text=True, check=True, cwd=REPO
    )
    one_slice = block * 501 * RowFormat(16, 2).record.itemsize
    assert one_slice > 38e6
    assert int(done.stdout) < 2 * one_slice  # of a store of 6 slices, from 6 slices
    written = json.loads((tmp_path / "out/meta.json").read_text())["files"]["rows.npy"]["bytes"]
    assert written > (2.9 if form == "every other episode" else 5.9) * one_slice
    shutil.rmtree(tmp_path)
