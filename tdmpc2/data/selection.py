"""What is imported: which episodes of which files, in which order."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tdmpc2.data.chunks import Layout, check_layout, chunk_paths, episode_tasks, read_chunk
from tdmpc2.data.dataset import select_episodes
from tdmpc2.data.rows import DTYPES
from tdmpc2.data.store import BLOCK, EpisodeStore, StoreMeta
from tdmpc2.tasks import TaskSpec

_TASK_PIECE = 1 << 16  # episodes whose task ids are read at a time: 131 MB of MT30


@dataclass(frozen=True)
class Part:
    """Episodes of one file.

    Attributes:
        path: a chunk file, or the rows of a store.
        task: task id of each episode, [n] int64.
        store: the store, if it is one.
    """

    path: Path
    task: Tensor
    store: EpisodeStore | None = None

    def read(self, episodes: Tensor) -> dict[str, Tensor]:
        """Obs [n, L+1, O], action [n, L+1, A] and reward [n, L+1] of some episodes, [n] int64, ascending; float32."""
        first, count = int(episodes[0]), len(episodes)
        contiguous = int(episodes[-1]) - first + 1 == count
        names = ("obs", "action", "reward")
        if self.store is None:
            chunk = read_chunk(self.path)
            return {name: chunk[name][first : first + count] if contiguous else chunk[name][episodes] for name in names}
        read = self.store.read
        rows = read(first, count) if contiguous else torch.cat([read(int(episode), 1) for episode in episodes])
        values = self.store.meta.row_format.split(rows)
        return {name: value.float() for name, value in zip(names, values, strict=True)}


@dataclass(frozen=True)
class Selection:
    """The episodes to import.

    Attributes:
        meta: of the store to be, without ``files``.
        parts: where they are read from.
        kept: their numbers among the episodes of all parts, [N] int64, ascending.
        task: their task ids, [N] int64.
        files: every file that is read.
        label: the directories, for messages.
    """

    meta: StoreMeta
    parts: list[Part]
    kept: Tensor
    task: Tensor
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
        expected = f"task={task}", tuple(specs)
        for root in roots:
            if _is_store(root):
                store = EpisodeStore.open(root if (root / "meta.json").exists() else root / "store")
                check_tasks(*expected, str(store.path), store.meta.tasks)
                expected = str(store.path), store.meta.tasks
                parts.append(Part(store.path / "rows.npy", store.task, store))
                files += [store.path / name for name in ("meta.json", *store.meta.files)]
            else:
                files += (paths := chunk_paths(root))
                parts += [Part(path, _chunk_tasks(path, Layout.of(specs))) for path in paths]
        ids = torch.cat([part.task for part in parts])
        kept = torch.arange(len(ids))
        if task_ids is not None or max_per_task is not None:
            wanted = sorted(set(ids.unique().tolist() if task_ids is None else task_ids))
            kept = select_episodes(ids, specs, wanted, label, max_per_task)
        everything = len(roots) == 1 and len(kept) == len(ids) and not _is_store(roots[0])
        source = chunk_sizes(roots[0]) if everything else {}
        meta = StoreMeta(task, tuple(specs), len(kept), dtype, source=source, block=block)
        return cls(meta, parts, kept, ids[kept], files, label)

    def origin(self) -> str:
        """A line of text that changes with the files, what is taken from them, and how it is written."""
        stats = [(path.resolve(), path.stat()) for path in self.files]
        return json.dumps(
            {
                "files": [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats],
                "episodes": hashlib.sha256(self.kept.numpy().tobytes()).hexdigest(),
                "meta": json.loads(self.meta.to_json()),
            }
        )

    def pieces(self, first: int, size: int) -> Iterator[tuple[Part, Tensor]]:
        """At most ``size`` episodes at a time of one part and one block, from kept episode ``first`` on."""
        for block in self.kept[first:].split(self.meta.block):
            start = 0
            for part in self.parts:
                own = block[(block >= start) & (block < start + len(part.task))] - start
                start += len(part.task)
                if len(own):
                    yield from ((part, episodes) for episodes in own.split(size))


def _chunk_tasks(path: Path, layout: Layout) -> Tensor:
    chunk = read_chunk(path)
    check_layout(path, chunk, layout)
    ids = []
    for first in range(0, len(chunk["task"]), _TASK_PIECE):
        chunk = read_chunk(path)
        ids.append(episode_tasks(path, chunk["task"][first : first + _TASK_PIECE], layout.num_tasks, first))
    return torch.cat(ids)


def _is_store(root: Path) -> bool:
    return (root / "meta.json").exists() or (
        (root / "store" / "meta.json").exists() and not any(root.glob("chunk_*.pt"))
    )


def chunk_sizes(root: Path) -> dict[str, int]:
    """Bytes of each chunk file of a directory, by name."""
    return {path.name: path.stat().st_size for path in chunk_paths(root)}


def check_tasks(origin: str, expected: Sequence[TaskSpec], path: str, found: Sequence[TaskSpec]) -> None:
    """Require equal tasks of two things to be used together.

    Raises:
        ValueError: naming both, and the first task that differs.
    """
    if tuple(expected) != tuple(found):
        pairs = list(zip(expected, found, strict=False))
        index = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        one, other = (tasks[index] if index < len(tasks) else "none" for tasks in (expected, found))
        raise ValueError(
            f"{path} holds other tasks than {origin}; the first difference is id {index}: {other} in {path}, {one} in "
            f"{origin}. Use data of the same task set"
        )
