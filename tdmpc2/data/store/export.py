"""Export an episode store to chunk files, which the reference code bases read."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from tdmpc2.data.chunks import read_chunk, write_chunk
from tdmpc2.data.collect_record import Record
from tdmpc2.data.source import chunk_tasks
from tdmpc2.data.store.selection import check_outside
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.unequal import is_unequal, unequal_fields, write_unequal
from tdmpc2.support.files import check_free_disk, delete_leftovers
from tdmpc2.tracking.progress import Progress

_PIECE = 256  # episodes copied at a time


def export_chunks(
    store: EpisodeStore, out_dir: str | os.PathLike[str], episodes_per_file: int = 16384, quiet: bool = False
) -> list[Path]:
    """Write all episodes of a store to ``out_dir/chunk_0.pt``, ``chunk_1.pt``, ... in float32.

    Files that are already there with exactly these episodes stay, so that a call after a kill continues. The memory it
    takes is that of one file: 1 GB of MT30 by default. ``collect.json`` beside them names the task set.

    Args:
        store: the store.
        out_dir: directory, made if need be.
        episodes_per_file: N of a chunk.
        quiet: print nothing.

    Returns:
        The paths.

    Raises:
        ValueError: ``out_dir`` is in the store, holds other chunk files or is of another task set, which is left alone;
            a block of the store is damaged; a row that is used is not finite; the disk is too small, or refused.
    """
    if episodes_per_file < 1:
        raise ValueError(f"episodes_per_file={episodes_per_file} must be at least 1")
    root = Path(out_dir).expanduser()
    check_outside(root, store.path)
    firsts = range(0, store.meta.episodes, episodes_per_file)
    paths = [root / f"chunk_{number}.pt" for number in range(len(firsts))]
    if other := sorted(set(root.glob("chunk_*.pt")) - set(paths)):
        raise ValueError(f"{other[0]} is not of this export of {len(paths)} files: name an empty directory")
    _check_disk(store, root, episodes_per_file, [path for path in paths if not path.exists()])
    for path in paths:
        delete_leftovers(root, path.name)
    _write_record(store, root)
    verify = store.verifier()
    with nullcontext() if quiet else Progress(store.meta.episodes, "Exporting", unit="episodes") as bar:
        for path, first in zip(paths, firsts, strict=True):
            count = min(episodes_per_file, store.meta.episodes - first)
            verify(torch.arange(first, first + count))
            chunk = _read(store, first, count)
            if not path.exists():
                (write_unequal if is_unequal(chunk) else write_chunk)(path, **chunk)
            elif not _same(read_chunk(path), chunk):
                last = first + count - 1
                raise ValueError(f"{path} exists and does not hold episodes {first} to {last} of {store.path}")
            if bar:
                bar.update(count)
    return paths


def _check_disk(store: EpisodeStore, root: Path, episodes_per_file: int, missing: list[Path]) -> None:
    layout, counts = store.meta.layout, store.index.counts
    row = 4 * (layout.obs_dim + layout.action_dim + 2 + 2 * (store.meta.rows is not None))  # reward, task and the like
    largest = max(int(part.sum()) for part in counts.split(episodes_per_file))
    needed = row * min(len(missing) * largest, int(counts.sum()))
    check_free_disk(root, needed, "name another disk")


def _write_record(store: EpisodeStore, root: Path) -> None:
    """Write ``collect.json`` without collections, since these files cannot be collected again."""
    path = root / "collect.json"
    if not path.exists():
        Record(path, store.meta.task, [spec.plain() for spec in store.meta.tasks], []).write()
    elif chunk_tasks(root)[1] != store.meta.tasks:
        raise ValueError(f"{path} is of other tasks than {store.path}: name an empty directory")


def _read(store: EpisodeStore, first: int, count: int) -> dict[str, Tensor]:
    meta, index = store.meta, store.index.take(torch.arange(first, first + count))
    shape = (count, meta.layout.rows) if meta.rows is None else (index.num_rows,)
    obs = torch.empty(*shape, meta.layout.obs_dim, dtype=torch.float32)
    action = torch.empty(*shape, meta.layout.action_dim, dtype=torch.float32)
    reward = torch.empty(shape, dtype=torch.float32)
    done = 0
    for start in range(0, count, _PIECE):
        rows = store.read(first + start, min(_PIECE, count - start))
        piece = slice(done, done + len(rows))
        obs[piece], action[piece], reward[piece] = meta.row_format.split(rows)
        done += len(rows)
    if meta.rows is not None:
        action[index.first_rows] = reward[index.first_rows] = torch.nan
        return {"obs": obs, "action": action, "reward": reward, **unequal_fields(index)}
    action[:, 0] = reward[:, 0] = torch.nan
    return {"obs": obs, "action": action, "reward": reward, "task": index.task.int()[:, None].expand_as(reward)}


def _same(chunk: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    def bits(values: Tensor) -> Tensor:
        return values.contiguous().view(torch.uint8)

    return chunk.keys() == other.keys() and all(
        chunk[name].shape == other[name].shape and torch.equal(bits(chunk[name]), bits(other[name])) for name in other
    )
