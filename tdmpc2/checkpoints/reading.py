"""Reading files of tensors: no code is run, checksums are compared, tensors take no more than is stored."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc2.checkpoints import hub, safetensors
from tdmpc2.support.archives import check_records, is_archive, read_directory
from tdmpc2.support.memory import is_out_of_memory
from tdmpc2.support.reading import NotRegularError, open_regular
from tdmpc2.support.text import cut, shown
from tdmpc2.tasks import nearest

_MOST_DIMENSIONS = 8
_PIECE = 1 << 23  # bytes hashed at a time
#: Bytes of a file that are worth threads; in a smaller one they would only wait for the interpreter's lock.
_THREADS_FROM = 1 << 26
_Result = Callable[[], Any]  # waits for what was started, and returns or raises what it did


def read_file(path: str | os.PathLike[str]) -> Any:
    """Read what ``torch.save`` stored, or a safetensors file, to the CPU, without running any code from the file.

    All values are compared with the checksums of the file, which older forms of it do not have.

    Args:
        path: the file, or the name of one on a hub (:mod:`tdmpc2.checkpoints.hub`), which is downloaded.

    Raises:
        ValueError: no such file, damaged, not a checkpoint, or a pickle that asks for more than tensors.
    """
    return _read(path, identify=False)[0]


def read_outline(path: str | os.PathLike[str]) -> Any:
    """Read and check a file as :func:`read_file` does, but keep no values of tensors: they are on the meta device.

    That takes half the time, and no memory.

    Raises:
        ValueError: see there.
    """
    return _read(path, identify=False, device="meta")[0]


def read_identified(path: str | os.PathLike[str]) -> tuple[Any, str]:
    """Read a file as :func:`read_file` does, with the SHA-256 of the bytes that were read, 64 hexadecimal digits.

    Raises:
        ValueError: see there; or the file changed meanwhile.
    """
    return _read(path, identify=True)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Compute the checksum of a file, 64 hexadecimal digits.

    Raises:
        OSError: see :func:`tdmpc2.support.reading.open_regular`.
        ValueError: it is the name of a file on a hub, which cannot be had.
    """
    with open_regular(hub.local_file(path)) as file:
        return _sha256(file)


def _read(path: str | os.PathLike[str], identify: bool, device: str = "cpu") -> tuple[Any, str]:
    path = hub.local_file(path)
    with _open(path) as file:
        before = os.fstat(file.fileno())
        # Without preadv they would share the file's position.
        with _beside(before.st_size >= _THREADS_FROM and hasattr(os, "preadv")) as start:
            content, digest = _checked(path, file, before.st_size, identify, device, start)
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ValueError(f"{path} was changed while it was read: wait for whoever writes it, and load it again")
    for keys, tensor in _tensors(content):
        if not is_plain(tensor, device):
            check_tensor(_place(path, keys), tensor)
    return content, digest


def _checked(
    path: Path, file: BufferedReader, size: int, identify: bool, device: str, start: Callable[..., _Result]
) -> tuple[Any, str]:
    """Load an open file, while its checksums are compared and its SHA-256 is computed."""
    checked: _Result | None = None
    with _explaining(path, size):
        if is_archive(file):
            checked = start(check_records, path, file, read_directory(path, file))
        hashed = start(_sha256, file) if identify else None
    try:
        with _explaining(path, size):
            if safetensors.is_safetensors(file):
                content: Any = safetensors.read(path, file, size, device)
            else:
                file.seek(0)
                content = _load(file, device)
    except ValueError:
        if checked is not None:
            checked()  # damage explains what torch does not understand
        raise
    with _explaining(path, size):
        if checked is not None:
            checked()
        return content, hashed() if hashed is not None else ""


@contextmanager
def _beside(threads: bool) -> Iterator[Callable[..., _Result]]:
    """Yield what calls a function, in a thread or at once, and returns what waits for its result."""

    def at_once(function: Callable[..., Any], *arguments: Any) -> _Result:
        result = function(*arguments)
        return lambda: result

    if not threads:
        yield at_once
        return
    with ThreadPoolExecutor(2) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result


@contextmanager
def _open(path: Path) -> Iterator[BufferedReader]:
    """Open a checkpoint, with a message of its own for each thing that may stand in its place."""
    if path.is_dir():
        raise ValueError(f"Checkpoint {path} is a directory: name a file in it")
    try:
        file = open_regular(path)
    except NotRegularError as error:
        raise ValueError(f"Checkpoint {error}") from error
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ValueError(f"Checkpoint {path} is a link to {os.readlink(path)}, which is not there") from error
        if not path.parent.is_dir():
            raise ValueError(f"Checkpoint {path} does not exist, nor does its directory") from error
        neighbours = sorted(entry.name for entry in path.parent.iterdir())
        raise ValueError(f"Checkpoint {path} does not exist.{nearest(path.name, neighbours)}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    with file:
        yield file


def _load(file: BufferedReader, device: str) -> Any:
    with warnings.catch_warnings():
        # The published int8 files hold quantised tensors, which torch announces to drop; before it raises for bytes
        # that are no checkpoint it warns of their pickle protocol.
        noise = "TypedStorage is deprecated|torch.quantize_per_tensor|Detected pickle protocol"
        warnings.filterwarnings("ignore", message=noise)
        return torch.load(file, map_location=device, weights_only=True)


@contextmanager
def _explaining(path: Path, size: int) -> Iterator[None]:
    """Turn whatever reading a file may raise into a ValueError with the right diagnosis."""
    try:
        yield
    except pickle.UnpicklingError as error:
        if wants := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it asks for '{cut(wants[1], 80)}', which is not a tensor and could run code"
        else:
            reason = "it is a damaged file or a Python pickle, not a checkpoint of tensors"
        raise ValueError(f"{path} was refused: {reason}. Nothing in it was executed") from error
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(_unreadable(path, size, error)) from error
    except Exception as error:  # torch raises many kinds for bytes it does not understand
        if is_out_of_memory(error):
            raise ValueError(f"{path} ({size:,} bytes) does not fit into the memory that is free") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        raise ValueError(_unreadable(path, size, error)) from error


def _unreadable(path: Path, size: int, error: Exception) -> str:
    reason = cut(f"{type(error).__name__} {error}".split(". ")[0].strip())
    return f"{path} ({size:,} bytes) is truncated or not a checkpoint: {reason}"


def _sha256(file: BufferedReader) -> str:
    if not hasattr(os, "preadv"):
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()
    digest, buffer, offset = hashlib.sha256(), memoryview(bytearray(_PIECE)), 0
    while count := os.preadv(file.fileno(), [buffer], offset):
        digest.update(buffer[:count])
        offset += count
    return digest.hexdigest()


# -- tensors ----------------------------------------------------------------------------------------------------------


def is_plain(tensor: Tensor, device: str = "cpu") -> bool:
    """Tell at once of an ordinary tensor on a device, in memory by default, that nothing is wrong with its form."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == device
        and not tensor.is_nested
        and tensor.ndim <= _MOST_DIMENSIONS
        and tensor.is_contiguous()  # then there is room for all its values
    )


def check_tensor(where: str, tensor: Tensor) -> None:
    """Require a plain tensor whose values take their full size in memory.

    A sparse one is not what the networks compute with, and a view of few values as many (``expand``) can be larger
    than any memory as soon as something is computed from it.

    Raises:
        ValueError: it is another kind; the message names it.
    """
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = str(tensor.layout).removeprefix("torch.")
        raise ValueError(f"{where} is a {kind} tensor, expected a plain one: save it with .to_dense()")
    if tensor.ndim > _MOST_DIMENSIONS:
        raise ValueError(f"{where} has {tensor.ndim} dimensions, expected at most {_MOST_DIMENSIONS}")
    if tensor.device.type == "meta":
        raise ValueError(f"{where} has no values [device meta]: save the tensors themselves")
    needed, there = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if needed > there - tensor.storage_offset() * tensor.element_size():
        raise ValueError(
            f"{where} is a view of {there:,} bytes as {needed:,} (shape {list(tensor.shape)}): save it with "
            ".contiguous()"
        )


def _tensors(content: Any) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """Find all tensors in nested dicts and lists, with the keys that lead to each."""
    stack: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    seen: set[int] = set()
    while stack:
        keys, value = stack.pop()
        if isinstance(value, Tensor):
            yield keys, value
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:  # files can hold circles
            seen.add(id(value))
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
            stack += [((*keys[-8:], key), item) for key, item in pairs if not isinstance(item, (int, float, str))]


def _place(path: Path, keys: tuple[Any, ...]) -> str:
    return f"{path}: {''.join(f'[{shown(key)}]' for key in keys)}" if keys else str(path)
