"""Imports that are refused."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from tdmpc2.data import unequal
from tdmpc2.data.chunks import write_chunk
from tdmpc2.data.store.importer import ensure_store, import_episodes
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.support.archives import read_directory
from tdmpc2.tasks import TaskSpec
from tests.helpers.data import BAD_FIELDS, BAD_LAYOUTS, BAD_VALUES, SPECS, L, fields, save_raw
from tests.helpers.stores import TASKS, content, make_chunks, refused


@pytest.mark.parametrize("case", BAD_FIELDS | BAD_VALUES)
def test_import_of_bad_data_is_refused(tmp_path: Path, case: str) -> None:
    change, message = (BAD_FIELDS | BAD_VALUES)[case]
    make_chunks(tmp_path / "chunks", [TASKS])
    data = fields([0, 1, 2])
    change(data)
    save_raw(tmp_path / "chunks/chunk_4.pt", data)
    refused(tmp_path, rf"chunk_4\.pt.*{message}", block=2)


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_import_of_other_task_set_is_refused(tmp_path: Path, case: str) -> None:
    data, message = BAD_LAYOUTS[case]
    make_chunks(tmp_path / "chunks")
    write_chunk(tmp_path / "chunks/chunk_5.pt", **data)
    refused(tmp_path, rf"chunk_5\.pt.*{message}")


def test_import_of_bad_value_names_file_and_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unequal, "_TASK_PIECE", 4)
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
def test_import_of_truncated_chunk_is_refused(tmp_path: Path, part: float) -> None:
    path = make_chunks(tmp_path / "chunks") / "chunk_1.pt"
    os.truncate(path, int(part * path.stat().st_size))
    refused(tmp_path, r"chunk_1\.pt \([\d,]+ bytes\) cannot be read .* truncated")


def test_import_of_chunk_with_short_arrays_is_refused(tmp_path: Path) -> None:
    """The archive is intact but holds fewer values than its pickle claims."""
    path = make_chunks(tmp_path / "chunks") / "chunk_1.pt"
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in records.items():
            archive.writestr(name, values[: len(values) // 2] if name.endswith(("/data/0", "/data/3")) else values)
    torch.load(path, weights_only=False, mmap=True)  # torch does not notice
    claims = "arrays of 448, 224, 112, 112 bytes and holds 224, 224, 112, 56"
    refused(tmp_path, rf"chunk_1\.pt \([\d,]+ bytes\) is shorter than it says: it claims {claims}")


@pytest.mark.parametrize("changed", [b"cpuq\nK\xf0tq\x0b", b"cpuq\nM\xff\xfftq\x0b"])
def test_import_of_chunk_claiming_more_values_is_refused(tmp_path: Path, changed: bytes) -> None:
    """The pickle's 84 numbers of obs (K 84) become 240, or 65535, which reach beyond the end of the file."""
    path = make_chunks(tmp_path / "chunks") / "chunk_0.pt"
    raw = path.read_bytes()
    before = b"cpuq\nK\x54tq\x0b"
    assert raw.count(before) == 1
    path.write_bytes(raw.replace(before, changed))
    refused(tmp_path, r"chunk_0\.pt.* (is shorter than it says|cannot be read)")


def test_import_of_store_with_other_tasks_is_refused(tmp_path: Path) -> None:
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


def test_import_with_bad_arguments_is_refused(tmp_path: Path) -> None:
    make_chunks(tmp_path / "chunks", [[0, 1]])
    refused(tmp_path, "dtype=int8", dtype="int8")
    refused(tmp_path, "max_per_task=0", max_per_task=0)
    refused(tmp_path, "task_ids names 3, but task=three has ids 0 to 2", task_ids=[0, 3])
    refused(tmp_path, "has no episodes of two-two", task_ids=[0, 2])
    for sources in ([], [tmp_path / "absent"]):
        with pytest.raises(ValueError, match=r"at least one directory|is not a directory"):
            import_episodes(sources, tmp_path / "out", "three", SPECS)


def test_import_onto_existing_files_is_refused(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("block", [2, 3])  # of two files, 3 and 4 episodes
@pytest.mark.parametrize("own_store", [False, True])
def test_import_of_damaged_file_is_refused_again(tmp_path: Path, block: int, own_store: bool) -> None:
    """Its blocks are on disk before the checksums of whole arrays are known: a second call must not go on from them."""
    chunks = make_chunks(tmp_path / "chunks")
    path = sorted(chunks.glob("chunk_*.pt"))[0]
    with open(path, "rb") as file:
        record = next(record for record in read_directory(path, file) if record.name.endswith("/data/0"))
    before = path.read_bytes()
    damaged = bytearray(before)
    damaged[record.offset + 9] ^= 1  # of a mantissa
    path.write_bytes(damaged)

    def call() -> EpisodeStore:
        if own_store:
            return ensure_store(chunks, "three", SPECS, quiet=True, block=block)
        return import_episodes([chunks], tmp_path / "out", "three", SPECS, block=block, quiet=True)

    for _ in range(2):
        with pytest.raises(ValueError, match="Bad CRC-32"):
            call()
    path.write_bytes(before)
    whole = import_episodes([chunks], tmp_path / "undisturbed", "three", SPECS, block=block, quiet=True)
    assert content(call().path) == content(whole.path)
