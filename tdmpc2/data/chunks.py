"""Read, check and write chunk files, the form in which the MT30 and MT80 sets are published.

A chunk is a pickled ``TensorDict`` of batch shape [N, L + 1], N episodes of L steps. Row t of an episode holds the
observation after step t and the action and reward that led to it. Row 0 holds the first observation; its action and
reward are filler (NaN in files written here, anything in published ones) and are never used. Episodes of other lengths,
and those that terminate, are in files of another form (:mod:`tdmpc2.data.unequal`).
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import tensordict.utils
import torch
from tensordict import TensorDict
from tensordict._reductions import _make_td
from torch import Tensor

from tdmpc2.data.chunk_form import (
    AGAIN,
    DTYPES,
    TASK_DTYPES,
    check_fields,
    check_finite,
    check_sizes,
    episode_tasks,
)
from tdmpc2.support.archives import Checksums, Record, checksums_on, is_archive, read_directory
from tdmpc2.support.files import replacing
from tdmpc2.support.reading import NotRegularError, open_regular
from tdmpc2.support.text import cut

# Names that files of tensordict 0.2 up to now contain, under the paths they had in the version that wrote them.
_ALLOWED: list[Any] = [
    _make_td,
    TensorDict,
    (TensorDict, "tensordict.tensordict.TensorDict"),
    (dict, "tensordict.utils._StringOnlyDict"),
    (getattr(tensordict.utils, "_LockedSchema", tuple), "tensordict.utils._LockedSchema"),
]
_NAME = re.compile(r"chunk_(\d+)\.pt")
_RECORD = re.compile(r"[^/]+/data/\d+")  # a tensor's values, in the archive that a file is


def chunk_paths(data_dir: str | os.PathLike[str], task: str = "mt30") -> list[Path]:
    """List the chunk files of a directory, ``chunk_2.pt`` before ``chunk_10.pt``.

    Args:
        data_dir: their directory.
        task: task or task set they should be of, for the advice where there are none.

    Raises:
        ValueError: no such directory, nothing in it, or a ``chunk_*.pt`` without a number.
    """
    root = Path(data_dir).expanduser()
    found = sorted(root.glob("chunk_*.pt"))
    if not found:
        problem = "has no chunk files" if root.is_dir() else "is not a directory"
        collected = f"{'' if task == 'mt30' else f'task={task} '}data_dir={data_dir}"
        published = ", or download the published set: Hugging Face dataset nicklashansen/tdmpc2, folder mt30, 4 files"
        raise ValueError(
            f"{data_dir} {problem}; expected chunk_0.pt, chunk_1.pt, ... in it. Make data with "
            f"`python collect.py {collected}`" + (f"{published}, 44 GB" if task == "mt30" else "")
        )
    numbered = []
    for path in found:
        if not (match := _NAME.fullmatch(path.name)):
            raise ValueError(f"{path} is not named chunk_<number>.pt: rename it, or move it away if it is a duplicate")
        numbered.append((int(match[1]), path))
    return [path for _, path in sorted(numbered)]


def read_chunk(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Map a chunk file into memory without running code from it.

    Rows are read from disk when they are touched; writing to the tensors does not change the file.

    Returns:
        obs [N, L+1, O], action [N, L+1, A] and reward [N, L+1] in float32, task [N, L+1] in int32 or the integers that
        the file has: :func:`episode_tasks` converts them. Where episodes have lengths of their own, [R, ...] instead of
        [N, L+1, ...], and the fields episode and terminated.

    Raises:
        ValueError: unreadable, truncated or shorter than it says, holds anything but tensors, or has other fields,
            types or shapes.
    """
    path = Path(path).expanduser()
    chunk, records = _read_mapped(path)
    check_fields(path, chunk)
    check_sizes(path, chunk, records)
    return chunk


def read_tensordict(path: Path) -> dict[str, Tensor]:
    """Map a file with a TensorDict of any fields into memory, as :func:`read_chunk` does.

    Raises:
        ValueError: see there; or a field that is no plain tensor.
    """
    found, records = _read_mapped(path)
    for name, value in found.items():
        if type(value) is not Tensor or value.layout != torch.strided or not value.ndim:
            raise ValueError(f"{path}: {cut(str(name), 40)} is a {type(value).__name__}, expected a tensor of rows")
    check_sizes(path, found, records)
    return found


def _read_mapped(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """Read fields, mapped from the file, and where their values lie in it."""
    with torch.serialization.safe_globals(_ALLOWED):
        try:
            with open_regular(path) as file:
                if not is_archive(file) and _is_legacy(file):
                    raise ValueError(
                        f"{path} is in the form that torch wrote before version 1.6, which cannot be mapped into "
                        "memory: load it and save it again with torch.save(chunk, path)"
                    )
                records = [record for record in read_directory(path, file) if _RECORD.fullmatch(record.name)]
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            chunk = dict(data.items()) if isinstance(data, TensorDict) else {}
        except pickle.UnpicklingError as error:  # its text recommends to load unsafely: not passed on
            name = re.search(r"GLOBAL ([\w.]+)", str(error))
            reason = f"loading it would run {cut(name[1], 80)}" if name else "it is damaged or not a chunk"
            remedy = "Use published or collected files"
            if name and "LazyStackedTensorDict" in name[1]:
                remedy = "Episodes that were stacked lazily have to be joined before they are saved: .contiguous()"
            raise ValueError(f"{path} is refused: {reason}. {remedy}") from None
        except Exception as error:  # a damaged pickle fails in any way
            if isinstance(error, ValueError) and str(error).startswith(str(path)):
                raise
            raise unreadable(path, error) from error
    if not isinstance(data, TensorDict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not a TensorDict of {', '.join(DTYPES)}")
    return chunk, records


def unreadable(path: Path, error: Exception) -> ValueError:
    """Say why a chunk file cannot be opened: something else in its place, no permission, or damage."""
    if isinstance(error, NotRegularError):
        return ValueError(str(error))
    if isinstance(error, PermissionError):
        return ValueError(f"{path} cannot be read: {error.strerror}")
    size = f" ({path.stat().st_size:,} bytes)" if path.is_file() else ""
    return ValueError(
        f"{path}{size} cannot be read as a chunk file: missing, truncated, or a Git LFS pointer in its place "
        f"[{type(error).__name__}: {cut(str(error))}]. {AGAIN}"
    )


@contextmanager
def chunk_checksums(path: Path) -> Iterator[Checksums]:
    """Open the CRC-32s of a chunk file, to be compared while its episodes are used.

    Raises:
        ValueError: it is no archive.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_regular(path))
            records = read_directory(path, file)
        except (OSError, zipfile.BadZipFile) as error:
            raise unreadable(path, error) from error
        yield Checksums(path, file, records)


def _is_legacy(file: BufferedReader) -> bool:
    """Tell if a file is a row of pickles, the first of which is torch's magic number."""
    file.seek(0)
    return file.read(14)[2:] == b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


def write_chunk(path: str | os.PathLike[str], obs: Tensor, action: Tensor, reward: Tensor, task: Tensor) -> None:
    """Write a chunk so that ``path`` either does not exist or is complete, also after a kill or on a full disk.

    Equal data gives equal bytes.

    Args:
        path: ``.../chunk_<number>.pt``; its directory is made. A kill can leave a ``.chunk_*.tmp`` file beside it,
            which is never read.
        obs: [N, L+1, O] float32.
        action: [N, L+1, A] float32, NaN in row 0.
        reward: [N, L+1] float32, NaN in row 0.
        task: [N, L+1], or [N] for all rows, integers.

    Raises:
        ValueError: the file exists, the name or the data would be refused on reading, row 0 is not filler, or the
            disk refused; nothing is left behind.
    """
    path = Path(path).expanduser()
    if not _NAME.fullmatch(path.name):
        raise ValueError(f"{path} is not named chunk_<number>.pt and would not be found again")
    if task.dtype in TASK_DTYPES:
        task = _int32(path, task)
    if task.ndim == 1 and reward.ndim == 2 and len(task) == len(reward):
        task = task[:, None].expand_as(reward)
    chunk = {"obs": obs, "action": action, "reward": reward, "task": task}
    check_fields(path, chunk)
    check_finite(path, chunk)
    episode_tasks(path, chunk["task"], num_tasks=torch.iinfo(torch.int32).max)
    for name in ("action", "reward"):
        if not chunk[name][:, 0].isnan().all():
            raise ValueError(f"{path}: row 0 of {name} must be NaN, no step led to it")
    _save(path, chunk)


def save_chunk(path: Path, chunk: Mapping[str, Tensor], first_rows: Tensor) -> None:
    """Write checked fields [R, ...] as :func:`write_chunk` does.

    Raises:
        ValueError: the file exists, its name is another, a first row of an episode is not filler, or the disk refused.
    """
    if not _NAME.fullmatch(path.name):
        raise ValueError(f"{path} is not named chunk_<number>.pt and would not be found again")
    for name in ("action", "reward"):
        if not chunk[name][first_rows].isnan().all():
            raise ValueError(f"{path}: row 0 of {name} must be NaN, no step led to it")
    _save(path, chunk)


def _save(path: Path, chunk: Mapping[str, Tensor]) -> None:
    with replacing(path, overwrite=False) as temporary, open(temporary, "wb") as file, checksums_on():
        torch.save(TensorDict({k: _own_storage(v) for k, v in chunk.items()}, batch_size=chunk["reward"].shape), file)


def _int32(path: Path, task: Tensor) -> Tensor:
    converted = task.to(torch.int32)
    if not torch.equal(converted.long(), task.long()):
        raise ValueError(f"{path}: task ids must be below 2^31, one is {int(task.max())}")
    return converted


def _own_storage(tensor: Tensor) -> Tensor:
    # A view would drag its whole storage into the file.
    tensor = tensor.detach().cpu().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
