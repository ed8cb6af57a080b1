"""The store of a directory of chunk files: made, replaced, cleaned up."""

from __future__ import annotations

import os
import re
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.data.chunks import chunk_paths, write_chunk
from tdmpc2.data.collect_record import Record
from tdmpc2.data.store import folders, writer
from tdmpc2.data.store.importer import clean_leftovers, ensure_store, find_store, import_episodes
from tdmpc2.data.store.selection import chunk_fingerprints
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.support.archives import has_checksums, read_directory
from tests.helpers.data import SPECS, fields
from tests.helpers.stores import TASKS, Interrupt, content, interrupted, make_chunks


def test_ensure_store_of_chunk_files_imports_once(tmp_path: Path, reads: list[int]) -> None:
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


def test_ensure_store_of_some_tasks_is_enough(tmp_path: Path) -> None:
    make_chunks(tmp_path, [[1, 1]])
    assert ensure_store(tmp_path, "three", SPECS).task.tolist() == [1, 1]


def test_ensure_store_of_fewer_files_is_replaced(tmp_path: Path) -> None:
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


def test_ensure_store_of_changed_files_is_made_once_the_old_one_is_away(tmp_path: Path) -> None:
    """The episodes of the file as it was may be nowhere else by now; the store of them was replaced without a word."""
    make_chunks(tmp_path)
    before = chunk_fingerprints(tmp_path)
    ensure_store(tmp_path, "three", SPECS)
    size = (tmp_path / "chunk_1.pt").stat().st_size
    (tmp_path / "chunk_1.pt").unlink()
    write_chunk(tmp_path / "chunk_1.pt", **fields(TASKS[3:], first=100))
    assert (tmp_path / "chunk_1.pt").stat().st_size == size
    assert find_store(tmp_path) is None
    with pytest.raises(ValueError, match=r"imported from another file of the name chunk_1\.pt than is there now"):
        ensure_store(tmp_path, "three", SPECS)
    (tmp_path / "store").rename(tmp_path / "old")
    store = ensure_store(tmp_path, "three", SPECS)
    assert store.meta.row_format.split(store.rows)[0][:, 0, 0].tolist() == [0, 1, 2, 100, 101, 102, 103]
    (tmp_path / "chunk_1.pt").unlink()
    write_chunk(tmp_path / "chunk_1.pt", **fields(TASKS[3:], first=3))
    assert chunk_fingerprints(tmp_path) == before  # the data are equal


def test_chunk_fingerprint_of_other_file_is_refused(tmp_path: Path) -> None:
    (make_chunks(tmp_path) / "chunk_1.pt").write_text("version https://git-lfs")
    with pytest.raises(ValueError, match=r"chunk_1\.pt \(23 bytes\) cannot be read as a chunk file: .*BadZipFile"):
        chunk_fingerprints(tmp_path)


def test_ensure_store_with_unique_episodes_is_kept(tmp_path: Path) -> None:
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


def test_ensure_store_over_empty_directory_works(tmp_path: Path) -> None:
    make_chunks(tmp_path)
    (tmp_path / "store").mkdir()
    assert len(ensure_store(tmp_path, "three", SPECS).task) == len(TASKS)


def test_ensure_store_over_other_files_is_refused(tmp_path: Path) -> None:
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


def test_ensure_store_in_readonly_directory_is_refused(tmp_path: Path) -> None:
    make_chunks(tmp_path)
    (tmp_path / "store").symlink_to("/dev/null/x/store")
    message = rf"Could not write .*`tdmpc2 data convert {tmp_path} ELSEWHERE`.* data_device=cpu"
    with pytest.raises(ValueError, match=message):
        ensure_store(tmp_path, "three", SPECS)


def test_ensure_store_announces_deleted_teacher_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_chunks(tmp_path)
    targets = ensure_store(tmp_path, "three", SPECS, quiet=True).path / "targets/of_a_teacher"
    targets.mkdir(parents=True)
    (targets / "reward.npy").write_bytes(bytes(20_000_000))
    write_chunk(tmp_path / "chunk_2.pt", **fields([1], first=7))
    ensure_store(tmp_path, "three", SPECS)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"Replacing {tmp_path}/store: 0.02 GB of teachers' targets in it are deleted")
    assert second.startswith("Importing 8 episodes")


def test_ensure_store_deletes_leftovers_of_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_chunks(tmp_path)
    ensure_store(tmp_path, "three", SPECS, quiet=True)
    write_chunk(tmp_path / "chunk_2.pt", **fields([1], first=7))
    with monkeypatch.context() as patch:
        patch.setattr(writer, "clean", lambda *_: None)
        whole = content(ensure_store(tmp_path, "three", SPECS).path)
    assert (tmp_path / ".store.replaced/rows.npy").exists()
    with folders.locked(tmp_path / "store"):
        clean_leftovers(tmp_path)
    assert (tmp_path / ".store.replaced/rows.npy").exists()  # another process is writing there
    clean_leftovers(tmp_path / "store")
    clean_leftovers(tmp_path)
    clean_leftovers(tmp_path / "absent")
    assert sorted(os.listdir(tmp_path)) == [".store.lock", *(f"chunk_{i}.pt" for i in range(3)), "store"]
    assert content(tmp_path / "store") == {name: values for name, values in whole.items() if name != "journal"}


def test_find_store_of_other_tasks_is_refused(tmp_path: Path) -> None:
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
            raise Interrupt
        return original(*args, **keywords)

    monkeypatch.setattr(target, name, stop)


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("function", ["os.rename", "os.fsync", "os.replace", "shutil.rmtree", "pathlib.Path.unlink"])
def test_ensure_store_stopped_is_finished_by_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, replaces: bool
) -> None:
    """Wherever a call is stopped between two changes of files, the next call makes the same store."""
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
            except Interrupt:
                number += 1
        ensure_store(root, "three", SPECS, quiet=True)
        assert content(root / "store") == whole
        assert sorted(os.listdir(root)) == [".store.lock", "chunk_0.pt", "chunk_1.pt", "store"]
    assert number >= {"shutil.rmtree": int(replaces)}.get(function, 1)


def test_ensure_store_with_stale_journal_reads_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]
) -> None:
    chunks, _ = interrupted(tmp_path, monkeypatch)

    def stop(*_: Any) -> None:
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer, "clean", stop)
        with pytest.raises(Interrupt):
            import_episodes([chunks], tmp_path / "out", "three", SPECS, block=2)
    assert (tmp_path / "out/journal").exists()
    reads.clear()
    store = import_episodes([chunks], tmp_path / "out", "three", SPECS, block=2)
    assert len(store.task) == len(TASKS)
    assert reads == []
    assert sorted(content(store.path)) == ["meta.json", "rows.npy", "task.npy"]


def test_import_ignores_finished_store_of_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished store whose journal was left behind is not taken for one of other files with equal names and sizes."""
    make_chunks(tmp_path / "big")
    make_chunks(tmp_path / "big2", first=50)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "clean", lambda *_: None)
        before = content(import_episodes([tmp_path / "big"], tmp_path / "out", "three", SPECS).path)
    with pytest.raises(ValueError, match="out exists: name another directory"):
        import_episodes([tmp_path / "big2"], tmp_path / "out", "three", SPECS)
    assert content(tmp_path / "out") == before
    assert len(import_episodes([tmp_path / "big"], tmp_path / "out", "three", SPECS).task) == len(TASKS)


def test_ensure_store_of_other_files_under_the_same_names_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once its files were deleted, a store was replaced by whatever was collected under their names."""
    make_chunks(tmp_path / "data")
    before = content(ensure_store(tmp_path / "data", "three", SPECS).path)
    for path in chunk_paths(tmp_path / "data"):
        path.unlink()
    for number in range(3):
        write_chunk(tmp_path / f"data/chunk_{number}.pt", **fields([1], first=70 + number))
    message = (
        r"holds chunk files and a store that was imported from another file of the name chunk_0\.pt than is there now"
    )
    with pytest.raises(ValueError, match=message):
        ensure_store(tmp_path / "data", "three", SPECS)
    assert content(tmp_path / "data/store") == before
    import_episodes([tmp_path / "data"], tmp_path / "copy", "three", SPECS)
    assert re.search(f"Only the chunk files of .*data are taken, without .*{message}", capsys.readouterr().out)


def test_collecting_beside_a_store_counts_on_from_the_files_it_was_imported_from(tmp_path: Path) -> None:
    make_chunks(tmp_path)
    ensure_store(tmp_path, "three", SPECS)
    for path in chunk_paths(tmp_path):
        path.unlink()
    assert Record(tmp_path / "collect.json", "three", (), []).next_number() == 2


def test_chunk_files_have_checksums_whatever_a_program_has_set(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        write_chunk(tmp_path / "chunk_0.pt", **fields([0]))
    finally:
        torch.serialization.set_crc32_options(before)
    with open(tmp_path / "chunk_0.pt", "rb") as file:
        assert has_checksums(read_directory(tmp_path / "chunk_0.pt", file))
