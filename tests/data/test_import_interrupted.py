"""Interrupted imports continue, and keep only blocks that are complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdmpc2.data.chunks import write_chunk
from tdmpc2.data.store.importer import ensure_store, import_episodes
from tdmpc2.data.store.writer import StoreWriter
from tests.helpers.data import SPECS, fields, save_raw
from tests.helpers.stores import TASKS, Interrupt, content, interrupted, make_chunks, refused, write_until


@pytest.mark.parametrize("error", [Interrupt(), OSError(5, "Input/output error")])
@pytest.mark.parametrize("blocks", range(5))
def test_import_interrupted_continues_with_first_unfinished_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reads: list[int],
    blocks: int, error: BaseException,
) -> None:  # fmt: skip
    tasks = TASKS + TASKS[:2]
    make_chunks(tmp_path / "chunks", [tasks])
    expected = import_episodes([tmp_path / "chunks"], tmp_path / "undisturbed", "three", SPECS, block=2).path
    with monkeypatch.context() as patch:
        write_until(patch, blocks, error)
        with pytest.raises(Interrupt if isinstance(error, Interrupt) else ValueError) as raised:
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
def test_import_with_torn_journal_reads_missing_blocks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int], case: str
) -> None:
    tear, to_read = TORN[case]
    chunks, whole = interrupted(tmp_path, monkeypatch)
    tear(tmp_path / ".out.partial/journal")
    reads.clear()
    import_episodes([chunks], tmp_path / "out", "three", SPECS, block=2)
    assert sum(reads) == to_read
    assert content(tmp_path / "out") == whole


@pytest.mark.parametrize("name", [".s.partial", ".s.replaced", "s.partial", "s.old", "s.replaced"])
@pytest.mark.parametrize("command", ["import", "ensure"])
def test_import_keeps_users_store_with_partial_name(tmp_path: Path, name: str, command: str) -> None:
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
        with suppress(ValueError):  # the existing store may be in the way
            if command == "import":
                import_episodes([own], out, "three", SPECS, dtype="float16")
            else:
                ensure_store(tmp_path, "three", SPECS)
        assert content(own) == before


def test_import_continued_keeps_blocks_of_unchanged_files(tmp_path: Path, reads: list[int]) -> None:
    """After a bad value in the last file is mended, only that file's blocks are read again."""
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


def test_import_to_linked_directory_writes_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_import_of_other_data_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    chunks, _ = interrupted(tmp_path, monkeypatch)
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


def test_import_journal_is_written_after_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal names a block only after the block's rows have reached the disk."""
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
    assert lines == [0, 0, 1, 2, 3]  # the first call is for the header


def test_import_of_file_changed_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = make_chunks(tmp_path / "chunks")
    write = StoreWriter.write

    def touch(self: StoreWriter, records: Tensor, lengths: Tensor, hold: bool = False) -> None:
        os.utime(chunks / "chunk_0.pt", ns=(0, 0))
        write(self, records, lengths, hold)

    monkeypatch.setattr(StoreWriter, "write", touch)
    refused(tmp_path, "chunks changed while it was imported")


def test_partial_import_of_an_older_version_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks may not have been compared with the checksums of their files, and would not be any more."""
    chunks, whole = interrupted(tmp_path, monkeypatch)
    out, journal = tmp_path / "out", tmp_path / ".out.partial" / "journal"
    form, *lines = journal.read_text().split("\n")
    first, *rest = json.loads(form)
    assert first == "compared"
    journal.write_text("\n".join([json.dumps(rest), *lines]))
    (rows := journal.with_name("rows.npy")).write_bytes(b"\0" * rows.stat().st_size)
    assert content(import_episodes([chunks], out, "three", SPECS, block=2, quiet=True).path) == whole
