"""Chunk files: the published format, old and new writers, bad input, and writing that survives a kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor

from tdmpc2.data.chunk_form import DTYPES
from tdmpc2.data.chunks import chunk_paths, read_chunk, write_chunk
from tdmpc2.data.dataset import EpisodeDataset
from tests.helpers.data import ALL, BAD_FIELDS, BAD_VALUES, SPECS, L, fields, save_raw
from tests.helpers.disks import largest_file

# -- the file format --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_episode_task", [False, True])
def test_chunk_round_trip_is_equal(tmp_path: Path, per_episode_task: bool) -> None:
    data = fields([2, 0])
    task = data["task"][:, 0].long() if per_episode_task else data["task"]
    path = tmp_path / "new" / "chunk_7.pt"
    write_chunk(path, data["obs"], data["action"], data["reward"], task)
    for name, tensor in read_chunk(path).items():
        assert torch.equal(tensor.nan_to_num(-1), data[name].nan_to_num(-1))
    assert os.listdir(path.parent) == ["chunk_7.pt"]


def test_write_chunk_has_the_published_layout(tmp_path: Path) -> None:
    write_chunk(tmp_path / "chunk_0.pt", **fields([0] * 3, length=500, obs_dim=24, action_dim=6))
    opened = torch.load(tmp_path / "chunk_0.pt", weights_only=False)
    assert type(opened) is TensorDict
    assert opened.batch_size == (3, 501)
    assert {name: (tuple(value.shape), value.dtype) for name, value in opened.items()} == {
        "obs": ((3, 501, 24), torch.float32),
        "action": ((3, 501, 6), torch.float32),
        "reward": ((3, 501), torch.float32),
        "task": ((3, 501), torch.int32),
    }
    row = opened[1, 0]
    assert row["action"].isnan().all()
    assert row["reward"].isnan()


def test_write_chunk_of_equal_data_gives_equal_bytes(tmp_path: Path) -> None:
    large = fields([0] * 50)
    write_chunk(tmp_path / "chunk_0.pt", **{name: tensor[10:12] for name, tensor in large.items()})
    write_chunk(tmp_path / "chunk_1.pt", **{name: tensor[10:12].clone() for name, tensor in large.items()})
    assert (tmp_path / "chunk_0.pt").read_bytes() == (tmp_path / "chunk_1.pt").read_bytes()


def test_read_chunk_leaves_the_file_unchanged(tmp_path: Path) -> None:
    write_chunk(tmp_path / "chunk_0.pt", **fields([0]))
    read_chunk(tmp_path / "chunk_0.pt")["obs"].zero_()
    assert read_chunk(tmp_path / "chunk_0.pt")["obs"][0, 1, 1] == 1


@pytest.mark.parametrize("locked", [False, True])
def test_read_chunk_of_installed_tensordict_is_equal(tmp_path: Path, locked: bool) -> None:
    td = TensorDict(fields([0, 1]), batch_size=[2, L + 1])
    torch.save(td.lock_() if locked else td, tmp_path / "chunk_0.pt")
    assert torch.equal(read_chunk(tmp_path / "chunk_0.pt")["obs"], td["obs"])


class _OldTensorDict:
    """An object that is pickled as a TensorDict of tensordict 0.2 was."""

    __module__, __qualname__ = "tensordict.tensordict", "TensorDict"

    def __init__(self, data: dict[str, Tensor], locked: bool) -> None:
        self._tensordict = _OldDict(data)
        self._batch_size = data["reward"].shape
        self._is_shared = self._is_memmap = False
        self._device = None
        self._is_locked = locked
        self._td_dim_names = None
        self._lock_id: set[int] = set()
        self._locked_tensordicts: list[Any] = []


class _OldDict(dict):
    __module__, __qualname__ = "tensordict.utils", "_StringOnlyDict"


@pytest.mark.parametrize("locked", [False, True])
def test_read_chunk_of_old_tensordict_is_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool) -> None:
    data = fields([2, 1])
    with monkeypatch.context() as patch:
        patch.setattr("tensordict.tensordict.TensorDict", _OldTensorDict)
        patch.setattr("tensordict.utils._StringOnlyDict", _OldDict)
        torch.save(_OldTensorDict(data, locked), tmp_path / "chunk_0.pt")
    raw = (tmp_path / "chunk_0.pt").read_bytes()
    assert b"tensordict.tensordict\nTensorDict\n" in raw
    assert b"tensordict.utils\n_StringOnlyDict\n" in raw
    for name, tensor in read_chunk(tmp_path / "chunk_0.pt").items():
        assert torch.equal(tensor.nan_to_num(-1), data[name].nan_to_num(-1))
    assert len(EpisodeDataset.load(tmp_path, SPECS, (1,))) == 1


# -- bad input --------------------------------------------------------------------------------------------------------


def test_chunk_paths_with_duplicate_download_is_refused(tmp_path: Path) -> None:
    write_chunk(tmp_path / "chunk_0.pt", **fields([0]))
    (tmp_path / "chunk_0 (1).pt").write_bytes((tmp_path / "chunk_0.pt").read_bytes())
    with pytest.raises(ValueError, match=r"chunk_0 \(1\)\.pt is not named chunk_<number>\.pt"):
        chunk_paths(tmp_path)


@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_read_chunk_of_truncated_file_is_refused(tmp_path: Path, part: float) -> None:
    path = save_raw(tmp_path / "chunk_0.pt", fields([0, 1]))
    os.truncate(path, int(part * path.stat().st_size))
    with pytest.raises(ValueError, match=r"chunk_0\.pt \([\d,]+ bytes\) cannot be read .* truncated"):
        EpisodeDataset.load(tmp_path, SPECS, ALL)


def test_read_chunk_of_lfs_pointer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chunk_0.pt").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0e5f\nsize 12825600000\n"
    )
    for name in ("chunk_0.pt", "chunk_1.pt"):
        with pytest.raises(ValueError, match=rf"{name}.* cannot be read .*Git LFS pointer"):
            read_chunk(tmp_path / name)


class _Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def test_read_chunk_of_malicious_pickle_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"obs": torch.zeros(1), "x": _Malicious(mark)}, tmp_path / "chunk_0.pt")
    with pytest.raises(ValueError, match=r"chunk_0\.pt is refused: loading it would run posix\.mkdir") as error:
        EpisodeDataset.load(tmp_path, SPECS, ALL)
    assert "weights_only" not in "".join(traceback.format_exception(error.value))  # torch's own advice would be wrong
    assert not mark.exists()
    torch.load(tmp_path / "chunk_0.pt", weights_only=False)
    assert mark.exists()  # unpickling the file does run its command


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_read_chunk_of_damaged_pickle_is_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = save_raw(tmp_path_factory.getbasetemp() / "chunk_0.pt", fields([0]))
    raw = bytearray(path.read_bytes())
    start = raw.index(b"data.pkl") + 8
    for position in data.draw(st.lists(st.integers(start, raw.index(b"PK", start) - 1), min_size=1, max_size=4)):
        raw[position] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        assert read_chunk(path).keys() == DTYPES.keys()
    except ValueError as error:
        if str(path) not in str(error):
            raise


def test_read_chunk_of_other_object_is_refused(tmp_path: Path) -> None:
    torch.save(fields([0]), tmp_path / "chunk_0.pt")
    with pytest.raises(ValueError, match=r"chunk_0\.pt holds a dict, not a TensorDict of obs, action, reward, task"):
        read_chunk(tmp_path / "chunk_0.pt")


@pytest.mark.parametrize("case", BAD_FIELDS | BAD_VALUES)
def test_chunk_with_bad_data_is_refused(tmp_path: Path, case: str) -> None:
    change, message = (BAD_FIELDS | BAD_VALUES)[case]
    data = fields([0, 1, 2])
    change(data)
    save_raw(tmp_path / "chunk_4.pt", data)
    with pytest.raises(ValueError, match=rf"chunk_4\.pt.*{message}"):
        EpisodeDataset.load(tmp_path, SPECS, ALL)
    if case not in ("missing", "extra"):
        with pytest.raises(ValueError, match=rf"chunk_5\.pt.*{message}"):
            write_chunk(tmp_path / "chunk_5.pt", **data)
    assert os.listdir(tmp_path) == ["chunk_4.pt"]


# -- writing ----------------------------------------------------------------------------------------------------------


def test_write_chunk_onto_existing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chunk_0.pt"
    write_chunk(path, **fields([0]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"chunk_0\.pt exists: choose another name"):
        write_chunk(path, **fields([1]))
    assert path.read_bytes() == before


def test_write_chunk_under_other_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"part_0\.pt is not named chunk_<number>\.pt"):
        write_chunk(tmp_path / "part_0.pt", **fields([0]))


@pytest.mark.parametrize("name", ["action", "reward"])
def test_write_chunk_with_finite_filler_is_refused(tmp_path: Path, name: str) -> None:
    data = fields([0, 1])
    data[name][1, 0] = 0
    with pytest.raises(ValueError, match=f"row 0 of {name} must be NaN"):
        write_chunk(tmp_path / "chunk_0.pt", **data)


def test_write_chunk_on_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Could not write .*chunk_0\.pt: .*File too large"), largest_file(8192):
        write_chunk(tmp_path / "chunk_0.pt", **fields([0] * 100))
    assert os.listdir(tmp_path) == []


def _write_and_die(path: Path, moment: str) -> None:
    """Write a chunk and die half-way through the bytes, before they are flushed, or before the rename."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def save_half(obj: object, file: Any) -> None:
        whole = BytesIO()
        save(obj, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        die()

    save = torch.save
    if moment == "save":
        setattr(torch, "save", save_half)  # noqa: B010
    else:
        setattr(os, moment, die)
    write_chunk(path, **fields([0, 1]))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.parametrize("moment", ["save", "fsync", "link"])
def test_write_chunk_killed_leaves_no_chunk(tmp_path: Path, moment: str) -> None:
    write_chunk(tmp_path / "chunk_0.pt", **fields([2]))
    path = tmp_path / "chunk_1.pt"
    process = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(path, moment))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2  # it died with a temporary file beside the old one
    assert chunk_paths(tmp_path) == [tmp_path / "chunk_0.pt"]
    assert len(EpisodeDataset.load(tmp_path, SPECS, (2,))) == 1
    write_chunk(path, **fields([0, 1], first=1))
    assert EpisodeDataset.load(tmp_path, SPECS, ALL).obs[:, 0, 0].tolist() == [0, 1, 2]
