"""``meta.json`` of an episode store: what the store holds, and the checksums of its files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.rows import DTYPES, RowFormat
from tdmpc2.support.entries import SHA256, check_entries, list_of, one_of, record, table_of, text, whole
from tdmpc2.support.reading import load_json
from tdmpc2.support.text import cut, shown
from tdmpc2.tasks import TaskSpec, read_specs

EQUAL, UNEQUAL = 1, 2  # formats
#: Files with a number for each episode, by format.
COLUMNS: dict[int, dict[str, np.dtype[Any]]] = {
    EQUAL: {"task.npy": np.dtype("<i4")},
    UNEQUAL: {"task.npy": np.dtype("<i4"), "length.npy": np.dtype("<i4"), "terminated.npy": np.dtype("u1")},
}
BLOCK = 4096  # episodes under one checksum: 254 MB of MT30
#: What to do about a damaged store.
AGAIN = "Import or download it again"


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
    "format": one_of(tuple(COLUMNS)),
    "task": TASK,
    "tasks": list_of(record(), least=1),
    "episodes": _COUNT,
    "dtype": one_of(tuple(DTYPES)),
    "files": table_of(record()),
    "source": table_of(text()).optional,
    "block": _COUNT.optional,
    "selection": text().optional,
    "rows": whole(2, 2**48).optional,
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
        rows: R, where episodes have lengths of their own or terminated; None: N episodes of L steps, none terminated.
    """

    task: str
    tasks: tuple[TaskSpec, ...]
    episodes: int
    dtype: str = "float32"
    files: dict[str, StoreFile] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    block: int = BLOCK
    selection: str = ""
    rows: int | None = None

    @property
    def format(self) -> int:
        """Version of the form it is written in."""
        return EQUAL if self.rows is None else UNEQUAL

    @property
    def columns(self) -> dict[str, np.dtype]:
        """Its files with a number for each episode."""
        return COLUMNS[self.format]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the rows: [N, L+1], or [R]."""
        return (self.episodes, self.layout.rows) if self.rows is None else (self.rows,)

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
        """Bytes of an episode of full length."""
        return self.layout.rows * self.row_format.record.itemsize

    def to_json(self) -> str:
        """Write the text of ``meta.json``."""
        plain = {**asdict(self), "tasks": [spec.plain() for spec in self.tasks]}
        if self.rows is None:
            del plain["rows"]
        return json.dumps({"format": self.format, **plain}, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> StoreMeta:
        """Read ``meta.json``.

        Raises:
            ValueError: missing, damaged or of a newer version.
        """
        try:
            plain = load_json(path)
            version = plain.get("format") if isinstance(plain, dict) else None
            if type(version) is int and version not in COLUMNS:
                raise _OtherFormat(
                    f"{path} has format {shown(version)}, this version reads {EQUAL} and {UNEQUAL}: update tdmpc2-opt"
                )
            plain = check_entries("it", plain, _META)
            if ("rows" in plain) != (plain.pop("format") == UNEQUAL):
                raise ValueError(f"rows is {'missing' if 'rows' not in plain else 'not of its format'}")
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
                f"{path} is damaged or not of an episode store [{type(error).__name__}: {cut(str(error))}]. {AGAIN}"
            ) from error


def _check_sizes(meta: StoreMeta) -> None:
    """Require that the numbers of a ``meta.json`` fit one another."""
    if set(meta.files) != (names := {"rows.npy": 0, **meta.columns}).keys():
        *first, last = names
        raise ValueError(f"files are not {', '.join(first)} and {last}")
    blocks = -(-meta.episodes // meta.block)
    for name, file in meta.files.items():
        if len(file.sha256) != blocks:
            raise ValueError(f"{name} has {len(file.sha256)} checksums, but the episodes make {blocks} blocks")
    meta.layout  # noqa: B018, refuses what is no task set
