"""Exporting a store to chunk files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tdmpc2.config import Config
from tdmpc2.data.chunks import read_chunk, write_chunk
from tdmpc2.data.collect_record import Record
from tdmpc2.data.source import chunk_tasks
from tdmpc2.data.store.export import export_chunks
from tdmpc2.data.store.importer import import_episodes
from tests.helpers.data import SPECS, fields
from tests.helpers.stores import TASKS, content, make_chunks


def test_export_round_trip_is_exact(tmp_path: Path) -> None:
    make_chunks(tmp_path / "chunks")
    first = import_episodes([tmp_path / "chunks"], tmp_path / "first", "three", SPECS)
    paths = export_chunks(first, tmp_path / "back", episodes_per_file=4)
    assert [path.name for path in paths] == ["chunk_0.pt", "chunk_1.pt"]
    assert [len(read_chunk(path)["task"]) for path in paths] == [4, 3]
    second = import_episodes([tmp_path / "back"], tmp_path / "second", "three", SPECS)
    assert second.checksum == first.checksum
    for name in ("rows.npy", "task.npy"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    again = import_episodes([tmp_path / "first"], tmp_path / "third", "three", SPECS)  # from a store
    assert again.checksum == first.checksum
    assert again.meta.source == {}


def test_export_files_equal_imported_files(tmp_path: Path) -> None:
    make_chunks(tmp_path / "chunks", [TASKS])
    store = import_episodes([tmp_path / "chunks"], tmp_path / "store", "three", SPECS)
    export_chunks(store, tmp_path / "back")
    exported = content(tmp_path / "back")
    assert json.loads(exported.pop("collect.json"))["task"] == "three"
    assert exported == content(tmp_path / "chunks")


def test_export_writes_a_record(tmp_path: Path) -> None:
    """The record of an export names its tasks, and collect.py can add to it."""
    data = fields([0, 1, 1], length=500, obs_dim=24, action_dim=6)
    write_chunk(tmp_path / "chunks/chunk_0.pt", **data)
    cfg = Config(task="mt30")
    store = import_episodes([tmp_path / "chunks"], tmp_path / "store", "mt30", cfg.task_specs)
    export_chunks(store, tmp_path / "back", episodes_per_file=2)
    assert chunk_tasks(tmp_path / "back") == ("mt30", cfg.task_specs)
    record = Record.read(tmp_path / "back", cfg.task, cfg.task_specs)
    assert (record.collections, record.next_number()) == ([], 2)
    other = Config(task="walker-stand")
    with pytest.raises(ValueError, match="holds data of task=mt30"):
        Record.read(tmp_path / "back", other.task, other.task_specs)


def test_export_into_directory_of_other_tasks_is_refused(tmp_path: Path) -> None:
    store = import_episodes([make_chunks(tmp_path / "chunks")], tmp_path / "store", "three", SPECS)
    two = import_episodes([make_chunks(tmp_path / "c", [[0, 1]])], tmp_path / "two", "two", SPECS[:2])
    export_chunks(two, tmp_path / "back")
    (tmp_path / "back/chunk_0.pt").unlink()
    with pytest.raises(ValueError, match=r"collect\.json is of other tasks than .*store: name an empty directory"):
        export_chunks(store, tmp_path / "back")


def test_export_deletes_leftovers_of_a_kill(tmp_path: Path) -> None:
    store = import_episodes([make_chunks(tmp_path / "chunks")], tmp_path / "store", "three", SPECS)
    (tmp_path / "back").mkdir()
    for name in (".chunk_0.pt.0123abcd.tmp", ".chunk_9.pt.0123abcd.tmp"):
        (tmp_path / "back" / name).touch()
    export_chunks(store, tmp_path / "back")
    assert sorted(os.listdir(tmp_path / "back")) == [".chunk_9.pt.0123abcd.tmp", "chunk_0.pt", "collect.json"]


def test_export_to_small_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = import_episodes([make_chunks(tmp_path / "chunks")], tmp_path / "store", "three", SPECS)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"back/new needs .* more and its disk has 1,000 bytes free: make room"):
        export_chunks(store, tmp_path / "back/new")
    assert not (tmp_path / "back").exists()


def test_export_again_continues_and_overwrites_nothing(tmp_path: Path) -> None:
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
