"""Make an episode store from chunk files and other stores, and find the store of a directory of chunk files.

Memory: some pieces of 4 MB. Chunk files are mapped anew every few pieces, so that pages once read do not stay.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from datetime import timedelta
from itertools import cycle, groupby, zip_longest
from operator import itemgetter
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tdmpc2.data.chunk_form import check_finite
from tdmpc2.data.rows import RowFormat
from tdmpc2.data.store.folders import (
    beside,
    check_may_move_away,
    clean,
    discard,
    foreign,
    has_leftovers,
    locked,
)
from tdmpc2.data.store.meta import BLOCK, StoreMeta
from tdmpc2.data.store.parts import Part
from tdmpc2.data.store.selection import Selection, check_outside, check_tasks, chunk_fingerprints, is_store
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.store.writer import StoreWriter, buffers, say
from tdmpc2.support.files import check_free_disk, disk_bytes, free_disk
from tdmpc2.tasks import TaskSpec
from tdmpc2.tracking.progress import Progress

_PIECE = 4 << 20  # bytes copied at a time: they stay in the CPU's cache between reading, hashing and writing
_READ = 4  # pieces for which a chunk file is mapped
RATE = 300e6  # bytes per second of a plain SSD, for the estimate


def import_episodes(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    task: str,
    specs: Sequence[TaskSpec],
    *,
    dtype: str = "float32",
    task_ids: Sequence[int] | None = None,
    max_per_task: int | None = None,
    block: int = BLOCK,
    quiet: bool = False,
) -> EpisodeStore:
    """Write the episodes of some directories into a new store; every row that is used is checked on the way.

    Equal episodes give equal bytes. Row 0 of action and reward becomes NaN. Only where an episode has another length
    than the task set's, or terminated, does the store have format 2, see :mod:`tdmpc2.data.store.store`. After a kill,
    a call with the same arguments and unchanged files continues with the first unfinished block. Where another process
    is making the same store, it is waited for.

    Args:
        sources: directories of chunk files, or stores; their episodes follow one another.
        out: directory of the store, which must not exist.
        task: name of the task set.
        specs: its tasks in id order.
        dtype: of observation and action, ``float32`` or ``float16``.
        task_ids: ids of the tasks to keep; every episode by default.
        max_per_task: that many episodes of each task, see :func:`select_episodes`.
        block: episodes under one checksum.
        quiet: print nothing.

    Raises:
        ValueError: ``out`` exists or lies within a source, the disk is too small, a file is damaged, of another task
            set, or holds a value that is not finite or too large for ``dtype``. Nothing that was there before is
            changed.
    """
    out = _target(Path(out).expanduser())
    for source in (Path(source).expanduser() for source in sources):
        if is_store(source):
            check_outside(out, source if (source / "meta.json").exists() else source / "store")
        elif not quiet:
            _say_left_out(source)
    _check_new(out)
    return _import(Selection.of(sources, task, specs, dtype, task_ids, max_per_task, block), out, None, quiet)


def import_selection(selection: Selection, out: Path, quiet: bool = False) -> EpisodeStore:
    """Write selected episodes into a new store, as :func:`import_episodes` does.

    Raises:
        ValueError: see there.
    """
    out = _target(out.expanduser())
    _check_new(out)
    return _import(selection, out, None, quiet)


def find_store(data_dir: str | os.PathLike[str]) -> EpisodeStore | None:
    """Find the store that holds the data of a directory.

    It is the directory itself, or ``store`` in it: where there are also chunk files, only if it was imported from
    files of these names and contents.

    Returns:
        None if there is no store, or only one of other chunk files than those that are there now.

    Raises:
        ValueError: a store is damaged.
    """
    root = Path(data_dir).expanduser()
    if (root / "meta.json").exists():
        return EpisodeStore.open(root)
    path = root / "store"
    if (path / "meta.json").exists() and (
        not any(root.glob("chunk_*.pt")) or StoreMeta.read(path / "meta.json").source == chunk_fingerprints(root)
    ):
        return EpisodeStore.open(path)
    return None


def ensure_store(
    data_dir: str | os.PathLike[str],
    task: str,
    specs: Sequence[TaskSpec],
    quiet: bool = False,
    block: int = BLOCK,
) -> EpisodeStore:
    """Open the store of a directory; all its chunk files are imported to ``<data_dir>/store`` if need be.

    A store there that was imported from some of the files is replaced once the new one is complete. One that may hold
    episodes that are nowhere else, because it was not imported from here or files of its are gone or changed, is not.

    Raises:
        ValueError: see :func:`import_episodes`; no data; or a store that may not be replaced is in the way.
    """
    root = Path(data_dir).expanduser()
    store = find_store(root)
    if store is None:
        out = _target(root / "store")
        check_replaceable(out, root)
        store = _import(Selection.of([root], task, specs, block=block), out, replaces=root, quiet=quiet)
    else:
        clean_leftovers(root)
    check_tasks(f"task={task}", specs, str(store.path), store.meta.tasks)
    return store


def clean_leftovers(data_dir: str | os.PathLike[str]) -> None:
    """Delete the leftovers of an import that was killed after the store of a directory was complete.

    One of them can be the store it replaced, which is as large. Nothing is done while another process writes there.
    """
    root = Path(data_dir).expanduser()
    out = _target(root if (root / "meta.json").exists() else root / "store")
    if not (out / "meta.json").exists() or not has_leftovers(out):
        return
    with suppress(OSError, NotImplementedError, Timeout), FileLock(beside(out, "lock"), timeout=0):
        clean(out, replaces=True)


# -- writing -----------------------------------------------------------------------------------------------------------


def _import(selection: Selection, out: Path, replaces: Path | None, quiet: bool) -> EpisodeStore:
    """Import to ``out``, which may be replaced if it is the store of a directory of chunk files, ``replaces``."""
    origins = selection.origins()
    advice = "Name a directory that can be written to"
    if replaces:
        advice = (
            f"Make the store elsewhere with `tdmpc2 data convert {replaces} ELSEWHERE` and name ELSEWHERE as "
            "data_dir, or train from memory with data_device=cpu"
        )
    with locked(out, quiet, advice=advice):
        writer = StoreWriter(out, selection.meta, selection.index, origins)
        if out.exists():
            if writer.is_finished():  # made while this process waited, or by one that was killed at the last moment
                clean(out, replaces is not None)
                return EpisodeStore.open(out)
            if not replaces:
                raise ValueError(_exists(out))
            check_replaceable(out, replaces)
        missing = selection.meta.episodes - writer.first_episode
        _check_disk(out, selection, writer, quiet)
        try:
            with writer:
                with nullcontext() if quiet else Progress(missing, "Importing", unit="episodes") as bar:
                    _copy(selection, writer, bar)
                if selection.origins() != origins:
                    raise ValueError(f"{selection.label} changed while it was imported: import it again")
                writer.finish(replaces is not None)
        except OSError as error:
            again = " Import again to continue where it stopped" if writer.finished else ""
            raise ValueError(f"Could not write {out}: {error}. What was there before is unchanged.{again}") from error
        except ValueError as error:
            if not writer.finished:
                with suppress(ValueError):  # not of an import, as the error says
                    discard(writer.partial)
                raise
            raise ValueError(
                f"{error}. {writer.first_episode:,} episodes are kept in {writer.partial} for the next import to "
                f"{out}; delete it if there is to be none"
            ) from error
    return EpisodeStore.open(out)


def _copy(selection: Selection, writer: StoreWriter, bar: Progress | None) -> None:
    """Read, check and convert here, hash and write in a thread; compare with the source's checksums in another.

    The checksums of a chunk file are of whole arrays. So where one is damaged all that was read from it is forgotten,
    and its last block is finished only after them: what a later call goes on from has been compared.
    """
    ring = buffers(selection.meta, _PIECE, 3, int(selection.index.counts.max()))
    first = writer.first_episode
    waiting: deque[Future[None]] = deque()
    buffer = cycle(ring)
    pieces = selection.pieces(writer.first_episode, _READ * len(ring[0]))
    copied: Part | None = None  # whole, and not compared to its end
    try:
        with ThreadPoolExecutor(1) as thread, ThreadPoolExecutor(1) as other:
            for part, group in groupby(pieces, key=itemgetter(0)):
                own = [episodes for _, episodes in group]
                with part.verifying() as verify:
                    verified = other.submit(verify, own[0])
                    for episodes, following in zip_longest(own, own[1:]):
                        data = part.read(episodes)
                        verified.result()  # before any of them is written
                        if following is not None:
                            verified = other.submit(verify, following)
                        for within in torch.arange(len(episodes)).split(len(ring[0])):
                            if len(waiting) == len(ring):
                                waiting.popleft().result()
                            records = next(buffer)[: len(within)]
                            rows = slice(int(within[0]), int(within[-1]) + 1)
                            _fill(records, selection.meta.row_format, part.path, data, episodes, rows)
                            lengths = selection.index.lengths[first : first + len(within)]
                            hold = following is None and rows.stop == len(episodes)
                            waiting.append(thread.submit(writer.write, records, lengths, hold))
                            first += len(within)
                            if bar:
                                bar.update(len(within))
                        del data  # before the next
                    copied = part
                copied = None
                thread.submit(writer.finish_held).result()
            while waiting:
                waiting.popleft().result()
    except ValueError:
        if copied is not None:
            writer.forget(selection.first_of(copied))
        raise


def _fill(
    records: Tensor, row_format: RowFormat, path: Path, data: Mapping[str, Tensor], episodes: Tensor, own: slice
) -> None:
    data, episodes = {name: values[own] for name, values in data.items()}, episodes[own]
    check_finite(path, data, episodes)
    obs, action, reward = row_format.split(records)
    action[:, 0] = torch.nan
    reward[:, 0] = torch.nan
    width = data["reward"].shape[1]  # of the longest of these episodes
    for name, first_row, target in (("obs", 0, obs), ("action", 1, action), ("reward", 1, reward)):
        values = data[name][:, first_row:]
        limit = torch.finfo(target.dtype).max
        if target.dtype == torch.float16 and max(-values.min(), values.max()) > limit:
            episode, row, entry = (values.abs() > limit).nonzero()[0].tolist()
            raise ValueError(
                f"{path}: {name} is {values[episode, row, entry].item():g} in episode {int(episodes[episode])}, "
                f"row {row + first_row}; float16 holds at most {limit:,.0f}. Import it as float32"
            )
        target[:, first_row:width].copy_(values)


def _check_disk(out: Path, selection: Selection, writer: StoreWriter, quiet: bool) -> None:
    free = free_disk(out.parent)
    if not writer.finished and writer.partial.exists():  # it is deleted first
        free += disk_bytes(writer.partial / "rows.npy")
    advice = "name another disk, import fewer tasks or episodes, or float16"
    check_free_disk(out, writer.bytes_to_reserve, advice, free)
    if quiet:
        return
    if targets := sum(path.stat().st_size for path in out.glob("targets/**/*") if path.is_file()):
        say(
            f"Replacing {out}: {targets / 1e9:,.2f} GB of teachers' targets in it are deleted once the new one is "
            "complete"
        )
    meta, num_tasks = selection.meta, len(selection.index.task.unique())
    size = int(selection.index.counts[writer.first_episode :].sum()) * meta.row_format.record.itemsize
    if writer.finished:
        say(f"Continuing: {writer.first_episode:,} of {meta.episodes:,} episodes are in {writer.partial}")
    elif writer.partial.exists():
        say(f"Starting afresh: {writer.partial} is of other files or choices")
    say(
        f"Importing {meta.episodes:,} episodes of {num_tasks} task{'s' * (num_tasks > 1)} from {selection.label} to "
        f"{out}: {size / 1e9:,.2f} GB to write, {free / 1e9:,.2f} GB free, about "
        f"{timedelta(seconds=round(size / RATE))} at {RATE / 1e6:.0f} MB/s"
    )


def check_replaceable(out: Path, root: Path) -> None:
    """Raise ValueError if replacing a store could lose episodes: not all it was made from is in ``root``, unchanged."""
    if not out.exists():
        return
    check_may_move_away(out)
    if out.is_dir() and not any(out.iterdir()):
        return
    if not out.is_dir() or not (out / "meta.json").exists():
        raise ValueError(f"{out} is in the way of the store to be made there, and is none: move it away")
    if other := foreign(out):
        raise ValueError(f"{out} is to be replaced, but holds {other}, which is not of an episode store: move it away")
    source, there = StoreMeta.read(out / "meta.json").source, chunk_fingerprints(root)
    reason = ""
    if not source:
        reason = "was not imported from them"
    elif gone := source.keys() - there.keys():
        reason = f"was imported from {min(gone)}, which is gone"
    elif other_now := [name for name, found in source.items() if there[name] != found]:
        reason = f"was imported from another file of the name {min(other_now)} than is there now"
    if reason:
        raise ValueError(
            f"{root} holds chunk files and a store that {reason}. It may hold other episodes: move it away, or name "
            f"{out} as data_dir"
        )


def _say_left_out(root: Path) -> None:
    """Say where a directory of chunk files also has a store that may hold other episodes."""
    try:
        check_replaceable(root / "store", root)
    except ValueError as error:
        say(f"Only the chunk files of {root} are taken, without the store beside them [{error}]")


def _check_new(out: Path) -> None:
    if out.exists() and not (out / "journal").exists():
        raise ValueError(_exists(out))


def _exists(out: Path) -> str:
    return f"{out} exists: name another directory, or move it away"


def _target(out: Path) -> Path:
    """Follow a link, since what is written beside ``out`` and renamed must be on the same disk."""
    return out.resolve() if out.is_symlink() else out
