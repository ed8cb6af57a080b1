"""The episode store: one directory of memory-mapped arrays, opened at once whatever its size.

rows.npy    [N, L+1] records of obs, action and reward (:mod:`tdmpc2.data.rows`); row 0 holds the first observation,
            row t what the t-th step led to. Numpy alone reads it: ``np.load("rows.npy", mmap_mode="r")["obs"]``.
task.npy    [N] task id of each episode
meta.json   version, task names and sizes in id order, number and length of episodes, bytes and checksums of both files
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import BytesIO, FileIO
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from tdmpc2.data.chunks import Layout
from tdmpc2.data.rows import DTYPES, RowFormat
from tdmpc2.support.entries import SHA256, check_entries, list_of, one_of, record, table_of, text, whole
from tdmpc2.support.reading import load_json, open_regular
from tdmpc2.support.text import cut, shown
from tdmpc2.tasks import TaskSpec, read_specs

FORMAT = 1
BLOCK = 4096  # episodes under one checksum: 254 MB of MT30
_AGAIN = "Import or download it again"
_PIECE = 64  # episodes hashed at a time: 4 MB of MT30


@dataclass(frozen=True)
class StoreFile:
    """Size and content of one file: SHA-256 of the data after the ``.npy`` header, one for each block of episodes."""

    bytes: int
    sha256: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", tuple(self.sha256))


#: Name of a task or task set in a file.
TASK = text(r"(?s).{1,300}", "the name of a task or task set")
_COUNT = whole(1, 2**31 - 1)
#: Entries of ``meta.json``, and of each of its files.
_META = {
    "format": one_of((FORMAT,)),
    "task": TASK,
    "tasks": list_of(record(), least=1),
    "episodes": _COUNT,
    "dtype": one_of(tuple(DTYPES)),
    "files": table_of(record()),
    "source": table_of(text()).optional,
    "block": _COUNT.optional,
    "selection": text().optional,
}
_FILE = {"bytes": whole(), "sha256": list_of(SHA256)}


class _OtherFormat(ValueError):
    """A store of another version of the format."""


@dataclass(frozen=True)
class StoreMeta:
    """Content of ``meta.json``.

    Attributes:
        task: name of the task set.
        tasks: its tasks in id order.
        episodes: N.
        dtype: of observation and action.
        files: per file name.
        source: names and fingerprints of the chunk files it was imported from, see
            :func:`tdmpc2.data.store.selection.chunk_fingerprints`; empty if it was not.
        selection: SHA-256 of the content of all it was imported from and of the numbers of the episodes taken.
        block: episodes under one checksum.
    """

    task: str
    tasks: tuple[TaskSpec, ...]
    episodes: int
    dtype: str = "float32"
    files: dict[str, StoreFile] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    block: int = BLOCK
    selection: str = ""

    @property
    def layout(self) -> Layout:
        """Rows per episode and padded sizes."""
        return Layout.of(self.tasks)

    @property
    def row_format(self) -> RowFormat:
        """The record of a row."""
        return RowFormat(self.layout.obs_dim, self.layout.action_dim, self.dtype)

    @property
    def episode_bytes(self) -> int:
        """Bytes of one episode."""
        return self.layout.rows * self.row_format.record.itemsize

    def to_json(self) -> str:
        """Write the text of ``meta.json``."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> StoreMeta:
        """Read ``meta.json``.

        Raises:
            ValueError: missing, damaged or of a newer version.
        """
        try:
            plain = load_json(path)
            version = plain.get("format") if isinstance(plain, dict) else None
            if type(version) is int and version != FORMAT:
                raise _OtherFormat(
                    f"{path} has format {shown(version)}, this version reads {FORMAT}: update tdmpc2-opt"
                )
            plain = check_entries("it", plain, _META)
            del plain["format"]
            plain["tasks"] = read_specs(plain["tasks"])
            for name, file in plain["files"].items():
                plain["files"][name] = StoreFile(**check_entries(f"the entry of {name}", file, _FILE))
            meta = cls(**plain)
            _check_sizes(meta)
            return meta
        except _OtherFormat as error:
            raise ValueError(str(error)) from error
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged or not of an episode store [{type(error).__name__}: {cut(str(error))}]. {_AGAIN}"
            ) from error


@dataclass(frozen=True, eq=False)
class EpisodeStore:
    """Open store. Rows are read from disk when they are touched.

    Attributes:
        path: its directory.
        meta: what it holds.
        rows: [N, L+1, W] int32 records, mapped read-only: writing to them ends the process.
        task: [N] int64.
        file: ``rows.npy``, kept open: another store may come under its name.
    """

    path: Path
    meta: StoreMeta
    rows: Tensor
    task: Tensor
    file: FileIO = field(repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> EpisodeStore:
        """Map a store into memory; its size does not matter.

        Raises:
            ValueError: not a store, or a file that is not as long or of the type that ``meta.json`` says.
        """
        root = Path(path).expanduser()
        meta = StoreMeta.read(root / "meta.json")
        shape, record = (meta.episodes, meta.layout.rows), meta.row_format.record
        mapped, offset, file = _map(root / "rows.npy", shape, record, meta.files["rows.npy"].bytes)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            rows = torch.frombuffer(mapped, dtype=torch.int32, offset=offset).view(*shape, meta.row_format.words)
        ids, start, _ = _map(root / "task.npy", shape[:1], np.dtype("<i4"), meta.files["task.npy"].bytes)
        task = np.frombuffer(ids[start:], np.dtype("<i4"))
        if len(bad := np.flatnonzero((task < 0) | (task >= len(meta.tasks)))):
            raise ValueError(
                f"{root / 'task.npy'}: the task id is {task[bad[0]]} in episode {bad[0]}, but {root / 'meta.json'} "
                f"names {len(meta.tasks)} tasks. {_AGAIN}"
            )
        for number, recorded in enumerate(meta.files["task.npy"].sha256):
            own = task[number * meta.block : (number + 1) * meta.block]
            if (found := hashlib.sha256(own.data).hexdigest()) != recorded:
                first = number * meta.block
                raise ValueError(
                    f"{root / 'task.npy'}, episodes {first}-{first + len(own) - 1}: checksum {found[:16]} instead of "
                    f"{recorded[:16]}. {_AGAIN}"
                )
        return cls(root, meta, rows, torch.from_numpy(task.astype(np.int64)), file)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the file checksums and what they are of: equal for equal data, whatever it was imported from."""
        plain = json.loads(self.meta.to_json())
        del plain["source"], plain["selection"]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def verifier(self) -> Callable[[Tensor], None]:
        """Make a function that compares the blocks of some episodes [n] with their checksums, each block once.

        It may be called in a thread beside one that reads.
        """
        done: set[int] = set()

        def verify(episodes: Tensor) -> None:
            for block in (episodes // self.meta.block).unique().tolist():
                if block not in done:
                    done.add(block)
                    self._verify_block(block)

        return verify

    def _verify_block(self, block: int) -> None:
        first, count, digest = block * self.meta.block, self.meta.block, hashlib.sha256()
        count = min(count, self.meta.episodes - first)
        for start in range(first, first + count, _PIECE):
            digest.update(self.read(start, min(_PIECE, first + count - start)).numpy().data)
        recorded = self.meta.files["rows.npy"].sha256[block]
        if (found := digest.hexdigest()) != recorded:
            raise ValueError(
                f"{self.path / 'rows.npy'}, episodes {first}-{first + count - 1}: checksum {found[:16]} instead of "
                f"{recorded[:16]}. {_AGAIN}"
            )

    def read(self, first: int, count: int) -> Tensor:
        """Read episodes ``first`` to ``first + count - 1`` into memory, [count, L+1, W], in one sequential read.

        Raises:
            ValueError: the disk refused, or the file was cut.
        """
        size = self.rows[0].numel()
        offset = self.meta.files["rows.npy"].bytes - 4 * self.rows.numel() + 4 * first * size
        values = np.empty(count * size, np.int32)
        rest = values.data.cast("B")
        try:
            while rest:
                if not (done := _read_at(self.file, rest, offset)):
                    raise ValueError(f"{self.path / 'rows.npy'} has become shorter. {_AGAIN}")
                offset, rest = offset + done, rest[done:]
        except OSError as error:
            raise ValueError(f"{self.path / 'rows.npy'} cannot be read: {error}. {_AGAIN}") from error
        return torch.from_numpy(values.reshape(count, *self.rows.shape[1:]))


def header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Write the first bytes of a ``.npy`` file."""
    text = BytesIO()
    np.lib.format.write_array_header_1_0(
        text, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return text.getvalue()


def _check_sizes(meta: StoreMeta) -> None:
    """Require that the numbers of a ``meta.json`` fit one another."""
    if set(meta.files) != {"rows.npy", "task.npy"}:
        raise ValueError("files are not rows.npy and task.npy")
    blocks = -(-meta.episodes // meta.block)
    for name, file in meta.files.items():
        if len(file.sha256) != blocks:
            raise ValueError(f"{name} has {len(file.sha256)} checksums, but the episodes make {blocks} blocks")
    meta.layout  # noqa: B018, refuses what is no task set


def _read_at(file: FileIO, buffer: memoryview, offset: int) -> int:
    """Read from a position of a file that other threads and processes read from as well."""
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [buffer], offset)
    with open_regular(file.name) as own:
        own.seek(offset)
        return own.readinto(buffer) or 0


def _map(path: Path, shape: tuple[int, ...], dtype: np.dtype, size: int) -> tuple[mmap.mmap, int, FileIO]:
    start = header(shape, dtype)
    try:
        file = cast(FileIO, open_regular(path).detach())  # it stays open
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise ValueError(f"{path} has {found:,} bytes instead of {size:,}. {_AGAIN}")
        if file.read(len(start)) != start or size != len(start) + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{path} does not hold {shape} of {dtype} as its meta.json says. {_AGAIN}")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}. {_AGAIN}") from error
    if hasattr(mmap, "MADV_RANDOM"):  # slices are far apart: reading ahead would read 30 times as much
        mapped.madvise(mmap.MADV_RANDOM)
    return mapped, len(start), file
