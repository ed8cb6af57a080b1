"""Chunk files and stores: damage is noticed when they are read or copied, and sizes are checked first."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensordict
import torch
from tensordict import TensorDict

from tdmpc2.data.chunks import read_chunk
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.store import importer
from tdmpc2.data.store.export import export_chunks
from tdmpc2.data.store.importer import ensure_store, import_episodes
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.tools.convert import to_chunks, to_store
from tdmpc2.data.tools.verify import verify
from tests.helpers.data import SPECS, fields, save_raw
from tests.helpers.data_command import episodes, flip, write_chunks, write_store


def _flip_value(path: Path, value: float) -> None:
    """Change the last bit of a number that occurs once in a file."""
    raw = path.read_bytes()
    assert raw.count(struct.pack("<f", value)) >= 1
    flip(path, raw.index(struct.pack("<f", value)))


@pytest.fixture
def damaged_chunks(tmp_path: Path) -> Path:
    """Write two chunk files and flip one bit of an observation in the second; all values stay finite."""
    data = episodes()
    root = write_chunks(tmp_path / "chunks", data)
    _flip_value(root / "chunk_1.pt", float(data["obs"][6, 2, 1]))
    return root


@pytest.fixture
def damaged_store(tmp_path: Path) -> Path:
    data = episodes()
    root = write_store(tmp_path / "stored", data)
    _flip_value(root / "rows.npy", float(data["obs"][6, 2, 1]))
    return root


READ_CHUNKS: dict[str, Callable[[Path, Path], Any]] = {
    "convert": lambda root, out: to_store([str(root)], out),
    "convert some episodes": lambda root, out: to_store([str(root)], out, tasks=["four-one"]),
    "automatic import": lambda root, out: ensure_store(root, "three", SPECS, quiet=True),
    "training from memory": lambda root, out: EpisodeDataset.load(root, SPECS, (0, 1)),
}


@pytest.mark.parametrize("way", READ_CHUNKS)
def test_chunk_with_flipped_bit_is_noticed_on_the_way(damaged_chunks: Path, tmp_path: Path, way: str) -> None:
    """A store imported from such a chunk used to get fresh checksums, which hid the damage forever."""
    with pytest.raises(ValueError, match=r"chunk_1\.pt, record \S+: Bad CRC-32"):
        READ_CHUNKS[way](damaged_chunks, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (damaged_chunks / "store").exists()


READ_STORE: dict[str, Callable[[Path, Path], Any]] = {
    "convert": lambda root, out: to_store([str(root)], out),
    "convert some episodes": lambda root, out: to_store([str(root)], out, tasks=["three-two"]),
    "to chunks": lambda root, out: to_chunks(str(root), out),
    "training from memory": lambda root, out: EpisodeDataset.read(EpisodeStore.open(root), torch.arange(9)),
}


@pytest.mark.parametrize("way", READ_STORE)
def test_store_with_flipped_bit_is_noticed_on_the_way(damaged_store: Path, tmp_path: Path, way: str) -> None:
    """Converting a damaged store used to give one that verify called good."""
    with pytest.raises(ValueError, match=r"rows\.npy, episodes 6-7: checksum \w+ instead of \w+"):
        READ_STORE[way](damaged_store, tmp_path / "out")
    assert not (tmp_path / "out" / "meta.json").exists()
    assert not list((tmp_path / "out").glob("chunk_*"))


def test_store_block_that_is_not_used_may_be_damaged(damaged_store: Path) -> None:
    dataset = EpisodeDataset.read(EpisodeStore.open(damaged_store), torch.tensor([0, 1, 4, 8]))
    assert len(dataset) == 4


def _edit(**changes: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        plain = json.loads((root / "meta.json").read_text())
        (root / "meta.json").write_text(json.dumps({**plain, **changes}))

    return change


def _files(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        plain = json.loads((root / "meta.json").read_text())
        plain["files"][name] |= changes
        (root / "meta.json").write_text(json.dumps(plain))

    return change


@pytest.mark.parametrize(
    "change", [_files("rows.npy", sha256=["ab" * 32] * 5), lambda root: flip(root / "task.npy", -4)]
)
def test_store_that_does_not_fit_its_checksums_is_not_copied(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """A store with a wrong checksum or a changed task id used to be copied with matching checksums."""
    root = write_store(tmp_path / "d", episodes())
    change(root)
    with pytest.raises(ValueError, match=r"(rows|task)\.npy, episodes \d-\d: checksum"):
        to_store([str(root)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


META: dict[str, tuple[Callable[[Path], None], str]] = {
    "bytes beyond all memory": (_files("rows.npy", bytes=2**62), "bytes is 4611686018427387904"),
    "bytes beyond the file": (_files("rows.npy", bytes=2**52), "bytes instead of 4,503,599,627,370,496"),
    "bytes no number": (_files("rows.npy", bytes="9"), "bytes is '9'"),
    "checksums no text": (_files("rows.npy", sha256=[5]), r"sha256 is \[5\]"),
    "too few checksums": (_files("task.npy", sha256=["ab" * 32]), "task.npy has 1 checksums"),
    "files": (_edit(files={}), "files are not rows.npy and task.npy"),
    "file": (_edit(files={"rows.npy": 5, "task.npy": 5}), "files is"),
    "episodes": (_edit(episodes=2**40), "episodes is"),
    "tasks": (_edit(tasks=[]), "tasks is"),
    "task": (_edit(tasks=[{"name": "a", "obs_dim": 10**9, "action_dim": 1}]), "obs_dim is 1000000000"),
    "source": (_edit(source={"a": 5}), "source is"),
}


@pytest.mark.parametrize("case", META)
def test_store_with_wrong_record_is_a_problem_for_verify_and_an_error_for_others(tmp_path: Path, case: str) -> None:
    root = write_store(tmp_path / "d", episodes())
    change, words = META[case]
    change(root)
    assert any(words.replace("\\", "") in problem for problem in verify(root).problems), verify(root).problems
    with pytest.raises(ValueError, match=f"{root}.*"):
        EpisodeStore.open(root)


def test_chunk_that_shows_few_values_as_many_is_refused_at_once(tmp_path: Path) -> None:
    """Checking a file of 34 KB that claims 2,000,000 episodes used to take hours."""
    one = {name: values[:1] for name, values in fields([0]).items()}
    many = {name: values.expand(2_000_000, *values.shape[1:]) for name, values in one.items()}
    (tmp_path / "d").mkdir()
    torch.save(TensorDict(many, batch_size=[2_000_000]), save_raw(tmp_path / "d" / "chunk_0.pt", one))
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"chunk_0\.pt: obs shows 112 stored bytes as .*: save it with \.contiguous"):
        read_chunk(tmp_path / "d" / "chunk_0.pt")
    assert time.monotonic() - began < 2


def test_messages_about_chunks_name_the_remedy(tmp_path: Path) -> None:
    """Nested and sparse fields, torch's old format and lazily joined episodes have messages of their own."""
    data = fields([0, 1])
    batch, path = data["reward"].shape, tmp_path / "chunk_0.pt"
    torch.save(TensorDict({**data, "obs": TensorDict({"a": data["obs"]}, batch)}, batch), path)
    with pytest.raises(ValueError, match=r"chunk_0\.pt: obs is a TensorDict, not a tensor, expected torch\.float32"):
        read_chunk(path)
    torch.save(TensorDict({**data, "reward": data["reward"].to_sparse()}, batch), path)
    with pytest.raises(ValueError, match=r"chunk_0\.pt: reward is .*sparse"):
        read_chunk(path)
    torch.save(TensorDict(data, batch), path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"chunk_0\.pt is in the form that torch wrote before .*save it again with"):
        read_chunk(path)
    parts = [TensorDict({name: values[i] for name, values in data.items()}, batch[1:]) for i in range(2)]
    torch.save(tensordict.LazyStackedTensorDict(*parts), path)
    with pytest.raises(ValueError, match=r"chunk_0\.pt is refused: .*LazyStackedTensorDict.*\.contiguous\(\)"):
        read_chunk(path)


@pytest.mark.parametrize("form", ["chunks", "store"])
@pytest.mark.parametrize("value", [1e30, -1.5])
def test_actions_beyond_their_range_are_a_problem(tmp_path: Path, form: str, value: float) -> None:
    """Actions of 1e30 used to be called good and trained on."""
    data = episodes()
    data["action"][5, 3, 0] = value
    root = (write_chunks if form == "chunks" else write_store)(tmp_path / "d", data)
    (problem,) = verify(root).problems
    assert f"action is {value:g} in episode" in problem
    if abs(value) > 2:
        with pytest.raises(ValueError, match=r"action is 1e\+30 in episode \d, row 3, but actions lie in \[-1, 1\]"):
            import_episodes([root], tmp_path / "out", "three", SPECS, quiet=True)


def test_store_within_its_source_is_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d", episodes())
    for out in (store / "copy", store / "targets" / "x"):
        with pytest.raises(ValueError, match=f"{out} is in {store}, which it is made from"):
            to_store([str(store)], out)
        with pytest.raises(ValueError, match="which it is made from"):
            import_episodes([store], out, "three", SPECS, quiet=True)
    for out in (store, store / "chunks"):
        with pytest.raises(ValueError, match="which it is made from"):
            export_chunks(EpisodeStore.open(store), out, quiet=True)
    assert sorted(os.listdir(store)) == ["meta.json", "rows.npy", "task.npy"]


def test_import_whose_files_are_removed_meanwhile_makes_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store whose rows vanished was still renamed to its final name."""
    root = write_chunks(tmp_path / "chunks", episodes())
    copy = importer._copy

    def remove(selection: Any, writer: Any, bar: Any) -> None:
        copy(selection, writer, bar)
        shutil.rmtree(writer.partial)

    monkeypatch.setattr(importer, "_copy", remove)
    with pytest.raises(ValueError, match=r"out\.partial was removed while it was written: import again"):
        import_episodes([root], tmp_path / "out", "three", SPECS, quiet=True)
    assert sorted(os.listdir(tmp_path)) == [".out.lock", "chunks"]
    monkeypatch.undo()
    assert not math.isnan(float(import_episodes([root], tmp_path / "out", "three", SPECS, quiet=True).task.sum()))
