"""Select what is imported: which episodes of which files, in which order."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.chunks import chunk_paths, unreadable
from tdmpc2.data.dataset import select_episodes
from tdmpc2.data.index import EpisodeIndex
from tdmpc2.data.rows import DTYPES
from tdmpc2.data.store.meta import BLOCK, StoreMeta
from tdmpc2.data.store.parts import Part
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.support.reading import open_regular
from tdmpc2.tasks import TaskSpec


@dataclass(frozen=True)
class Selection:
    """Episodes to import.

    Attributes:
        meta: of the store to be, without ``files``.
        parts: where they are read from.
        kept: their numbers among the episodes of all parts, [N] int64, ascending.
        index: task, length and end of each, in that order.
        files: every file that is read.
        label: the directories, for messages.
    """

    meta: StoreMeta
    parts: list[Part]
    kept: Tensor
    index: EpisodeIndex
    files: list[Path]
    label: str

    @classmethod
    def of(
        cls,
        sources: Sequence[str | os.PathLike[str]],
        task: str,
        specs: Sequence[TaskSpec],
        dtype: str = "float32",
        task_ids: Sequence[int] | None = None,
        max_per_task: int | None = None,
        block: int = BLOCK,
    ) -> Selection:
        """Open the files and check all they say of themselves; the arguments are those of ``import_episodes``.

        Raises:
            ValueError: no data, a damaged file, data of another task set, or a task without an episode.
        """
        roots = [Path(source).expanduser() for source in sources]
        label = ", ".join(map(str, roots))
        if not roots or len({root.resolve() for root in roots}) < len(roots):
            raise ValueError(f"sources to import: '{label}'; name at least one directory, and each only once")
        if dtype not in DTYPES or block < 1 or (max_per_task is not None and max_per_task < 1):
            raise ValueError(
                f"dtype={dtype}, block={block}, max_per_task={max_per_task}: expected one of {', '.join(DTYPES)}, and "
                "positive numbers"
            )
        if unknown := set(task_ids or ()) - set(range(len(specs))):
            raise ValueError(f"task_ids names {min(unknown)}, but task={task} has ids 0 to {len(specs) - 1}")
        parts: list[Part] = []
        files: list[Path] = []
        contents: list[str | dict[str, str]] = []
        expected = f"task={task}", tuple(specs)
        for root in roots:
            if is_store(root):
                store = EpisodeStore.open(root if (root / "meta.json").exists() else root / "store")
                check_tasks(*expected, str(store.path), store.meta.tasks)
                expected = str(store.path), store.meta.tasks
                parts.append(Part.of_store(store))
                files += [store.path / name for name in ("meta.json", *store.meta.files)]
                contents.append(store.checksum)
            else:
                files += (paths := chunk_paths(root))
                parts += [Part.of_chunk(path, Layout.of(specs)) for path in paths]
                contents.append(chunk_fingerprints(root))
        index = EpisodeIndex.joined([part.index for part in parts])
        ids = index.task
        kept = torch.arange(len(ids))
        if task_ids is not None or max_per_task is not None:
            wanted = sorted(set(ids.unique().tolist() if task_ids is None else task_ids))
            kept = select_episodes(ids, specs, wanted, label, max_per_task)
        everything = len(roots) == 1 and len(kept) == len(ids)
        source = contents[0] if everything and isinstance(contents[0], dict) else {}
        taken = _digest(contents, kept)
        index = index.take(kept)
        rows = None if index.is_equal(Layout.of(specs).rows - 1) else index.num_rows
        meta = StoreMeta(task, tuple(specs), len(kept), dtype, source=source, block=block, selection=taken, rows=rows)
        return cls(meta, parts, kept, index, files, label)

    def origins(self) -> list[str]:
        """Compute for each block a SHA-256 that changes with its files and the episodes taken of them."""
        files = [file_facts(part.path, *part.others) for part in self.parts]
        return [
            _digest([files[number] for number, _ in owned], *(episodes for _, episodes in owned))
            for owned in (list(self._of_parts(block)) for block in self.kept.split(self.meta.block))
        ]

    def pieces(self, first: int, size: int) -> Iterator[tuple[Part, Tensor]]:
        """Yield at most ``size`` episodes at a time of one part and one block, from kept episode ``first`` on."""
        for block in self.kept[first:].split(self.meta.block):
            for number, own in self._of_parts(block):
                yield from ((self.parts[number], episodes) for episodes in own.split(size))

    def first_of(self, part: Part) -> int:
        """Number of the first kept episode of a part."""
        number = next(number for number, own in enumerate(self.parts) if own is part)
        return int(torch.searchsorted(self.kept, self._ends[number] - len(part.index)))

    def _of_parts(self, episodes: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Find the parts that episodes, ascending, are in, and their numbers there."""
        if not len(episodes):
            return
        first, last = torch.searchsorted(self._ends, episodes[[0, -1]], right=True).tolist()
        ends = self._ends[first : last + 1]
        cuts = torch.searchsorted(episodes, ends).tolist()
        for number, begin, end in zip(range(first, last + 1), [0, *cuts], cuts, strict=False):
            if begin < end:
                yield number, episodes[begin:end] - (self._ends[number] - len(self.parts[number].index))

    @cached_property
    def _ends(self) -> Tensor:
        """The number of the episode after the last of each part."""
        return torch.tensor([len(part.index) for part in self.parts]).cumsum(0)


def file_facts(*paths: Path) -> str:
    """Compute a SHA-256 that changes with names, sizes and times of files."""
    stats = [(str(path.resolve()), path.stat()) for path in paths]
    return _digest([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])


def _digest(plain: Any, *episodes: Tensor) -> str:
    digest = hashlib.sha256(json.dumps(plain).encode())
    for numbers in episodes:
        digest.update(hashlib.sha256(numbers.numpy().tobytes()).digest())
    return digest.hexdigest()


def check_outside(out: Path, source: Path) -> None:
    """Require that what is written does not lie within what it is read from, or is the same.

    Raises:
        ValueError: it does; both are named.
    """
    own, there = out.expanduser().resolve(), source.expanduser().resolve()
    if own == there or there in own.parents:
        raise ValueError(f"{out} is {'' if own == there else 'in '}{source}, which it is made from: name another place")


def is_store(root: Path) -> bool:
    """Tell if a directory is read as an episode store: it is one, or there is one in it and no chunk files."""
    return (root / "meta.json").exists() or (
        (root / "store" / "meta.json").exists() and not any(root.glob("chunk_*.pt"))
    )


def chunk_fingerprints(root: str | os.PathLike[str], task: str = "mt30") -> dict[str, str]:
    """Compute a fingerprint of each chunk file, without reading its data.

    A chunk file is a zip archive whose directory, some kilobytes at its end, holds a CRC-32 of each array.

    Returns:
        ``<bytes of the file>-<CRC-32 of names, sizes and CRC-32s of its records>`` for each chunk file.

    Raises:
        ValueError: no chunk files, or one that is no archive.
    """
    return {path.name: _fingerprint(path) for path in chunk_paths(root, task)}


def _fingerprint(path: Path) -> str:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            records = [(record.filename, record.file_size, record.CRC) for record in archive.infolist()]
            size = os.fstat(file.fileno()).st_size
        return f"{size}-{zlib.crc32(json.dumps(records).encode()):08x}"
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise unreadable(path, error) from error


def check_tasks(origin: str, expected: Sequence[TaskSpec], path: str, found: Sequence[TaskSpec]) -> None:
    """Require equal tasks of two things to be used together.

    Raises:
        ValueError: naming both, and the first task that differs.
    """
    if tuple(expected) != tuple(found):
        pairs = list(zip(expected, found, strict=False))
        index = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        one, other = (tasks[index] if index < len(tasks) else "none" for tasks in (expected, found))
        name = expected[0].name if len(expected) == 1 else None
        hint = f", or name its task set and tasks=[{name}]" if name in [spec.name for spec in found] else ""
        raise ValueError(
            f"{path} holds other tasks than {origin}; the first difference is id {index}: {other} in {path}, {one} in "
            f"{origin}. Use data of the same task set{hint}"
        )
