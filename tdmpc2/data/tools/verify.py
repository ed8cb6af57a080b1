"""Check data against its checksums, and that every value that is used is finite.

All damage is gathered: a problem in one file or block does not hide those in others.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdmpc2.data.chunk_form import Layout, check_actions, check_finite, check_layout, episode_tasks
from tdmpc2.data.chunks import chunk_checksums, chunk_paths, read_chunk
from tdmpc2.data.index import padded
from tdmpc2.data.source import FIRST_ROW, STORE, chunk_tasks, find_form, naming_the_task_set
from tdmpc2.data.store.meta import StoreMeta
from tdmpc2.data.store.selection import chunk_fingerprints
from tdmpc2.data.store.store import EpisodeStore, check_column, header, read_index
from tdmpc2.data.store.verify_columns import verify_targets
from tdmpc2.data.unequal import chunk_episodes, chunk_index, count_not_finite, is_unequal
from tdmpc2.support.reading import open_regular
from tdmpc2.tracking.progress import Progress

_EPISODES = 256  # read at a time


@dataclass
class Verified:
    """Result of a check: how much was read, and one line per damaged file or block of episodes."""

    files: int = 0
    episodes: int = 0
    problems: list[str] = field(default_factory=list)


def verify(data_dir: str | os.PathLike[str], task: str | None = None) -> Verified:
    """Check a store against the checksums in its ``meta.json``, or chunk files against those in the files.

    With chunk files, a store that was made beside them is checked as well; with a store, its teachers' targets.
    Progress goes to standard error.

    Args:
        data_dir: a store or a directory of chunk files.
        task: task set of chunk files; by default what ``collect.json`` says, or mt30.

    Raises:
        ValueError: neither form of data, or an unknown task. Damage is no error but a problem in the result.
    """
    root, form = find_form(data_dir)
    result = Verified()
    if form == STORE:
        _verify_store(root, result)
        return result
    layout = Layout.of(chunk_tasks(root, task)[1])
    paths = chunk_paths(root)
    result.files = len(paths)
    with _Meter(2 * sum(path.stat().st_size for path in paths)) as meter:  # read once each for checksum and values
        for path in paths:
            _verify_chunk(path, layout, result, meter, task)
    if (root / "store" / "meta.json").exists():
        episodes = result.episodes
        _verify_store(root / "store", result)
        result.episodes = episodes  # the same ones
        result.problems += _made_of_other_files(root)
    return result


class _Meter(Progress):
    """Progress in megabytes, told in bytes."""

    def __init__(self, total: int) -> None:
        super().__init__(_megabytes(total), "Verifying", unit="MB", stream=sys.stderr)
        self._bytes = 0

    def __enter__(self) -> _Meter:
        super().__enter__()
        return self

    def add(self, count: int, text: str) -> None:
        before, self._bytes = self._bytes, self._bytes + count
        self.update(_megabytes(self._bytes) - _megabytes(before), text)


def _megabytes(count: int) -> int:
    return -(-count // 10**6)


# -- store ------------------------------------------------------------------------------------------------------------


def _verify_store(root: Path, result: Verified) -> None:
    try:
        meta = StoreMeta.read(root / "meta.json")
    except ValueError as error:
        result.files += 3
        result.problems.append(str(error))
        return
    result.files += 1 + len(meta.files)
    result.episodes += meta.episodes
    before = len(result.problems)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in meta.columns}

    def check_numbers(data: np.ndarray, first: int, path: Path) -> None:
        values = data.view(meta.columns[path.name])
        columns[path.name].append(values)
        check_column(path, values, meta, first)

    with _Meter(sum(file.bytes for file in meta.files.values())) as meter:
        found: list[str] = []
        for name, dtype in meta.columns.items():
            _verify_array(root / name, dtype, (meta.episodes,), check_numbers, _Array(meta, found, meter))
        if meta.rows is None or not found:
            try:
                counts = (
                    torch.full((meta.episodes,), meta.layout.rows)
                    if meta.rows is None
                    else (
                        read_index(root, meta, {name: np.concatenate(parts) for name, parts in columns.items()}).counts
                    )
                )
                array = _Array(meta, result.problems, meter, counts)
                _verify_array(root / "rows.npy", meta.row_format.record, meta.shape, _row_check(meta, counts), array)
            except ValueError as error:
                found.append(str(error))
        else:
            found.append(f"{root / 'rows.npy'} cannot be checked while the lengths of its episodes are not known")
        result.problems += found
    if len(result.problems) == before and (targets := list((root / "targets").glob("[!.]*/"))):
        result.files += 2 * len(targets)
        result.problems += verify_targets(EpisodeStore.open(root))


def _row_check(meta: StoreMeta, counts: Tensor) -> Callable[[np.ndarray, int, Path], None]:
    """Make the check of some episodes' records."""

    def check(data: np.ndarray, first: int, path: Path) -> None:
        words = torch.from_numpy(data.view(np.int32)).view(-1, meta.row_format.words)
        following = counts[first : first + len(words)]  # an episode has a row at least
        last = int(torch.searchsorted(following.cumsum(0), len(words))) + 1
        table = padded(words, counts[first : first + last] - 1)
        parts = dict(zip(FIRST_ROW, (part.float() for part in meta.row_format.split(table)), strict=True))
        check_finite(path, parts, range(first, first + last))
        check_actions(path, parts, range(first, first + last))

    return check


@dataclass
class _Array:
    """Where a check of an array stands."""

    meta: StoreMeta
    problems: list[str]
    meter: _Meter
    counts: Tensor | None = None  # entries of each episode, [N]; None: one


def _verify_array(
    path: Path, record: np.dtype, shape: tuple[int, ...], check: Callable[[np.ndarray, int, Path], None], array: _Array
) -> None:
    """Check one file of a store, block by block; ``check(data, first episode, path)`` raises for wrong values."""
    try:
        with open_regular(path) as file:
            _verify_open(file, path, header(shape, record), record.itemsize, check, array)
    except OSError as error:
        array.problems.append(f"{path} cannot be read: {error}")


def _verify_open(
    file: BufferedReader,
    path: Path,
    start: bytes,
    size: int,
    check: Callable[[np.ndarray, int, Path], None],
    array: _Array,
) -> None:
    """Check an open file whose entries have ``size`` bytes."""
    meta, problems = array.meta, array.problems
    expected = meta.files[path.name]
    counts = torch.ones(meta.episodes, dtype=torch.int64) if array.counts is None else array.counts
    ends = [0, *(size * counts.cumsum(0)).tolist()]  # bytes before each episode
    if (there := os.fstat(file.fileno()).st_size) != expected.bytes:
        problems.append(f"{path} has {there:,} bytes instead of {expected.bytes:,}")
    if file.read(len(start)) != start or expected.bytes != len(start) + ends[-1]:
        problems.append(f"{path} has a header that does not fit meta.json")
        return
    for first, recorded in zip(range(0, meta.episodes, meta.block), expected.sha256, strict=True):
        end = min(first + meta.block, meta.episodes)
        digest, wrong, cut = hashlib.sha256(), "", False
        for episode in range(first, end, _EPISODES):
            wanted = ends[min(episode + _EPISODES, end)] - ends[episode]
            data = np.fromfile(file, np.uint8, wanted)
            digest.update(data.data)
            array.meter.add(len(data), path.name)
            cut = cut or len(data) < wanted
            if not wrong and not cut:
                try:
                    check(data, episode, path)
                except ValueError as error:
                    wrong = str(error)
        where = f"{path}, episodes {first}-{end - 1}"
        if cut:
            problems.append(f"{where}: the file ends before their end")
        elif (found := digest.hexdigest()) != recorded:
            problems.append(f"{where}: checksum {found[:16]} instead of {recorded[:16]}")
        elif wrong:
            problems.append(f"{wrong} (episodes {first}-{end - 1} are as they were written)")


def _made_of_other_files(root: Path) -> list[str]:
    """Give a line if the store beside chunk files is not one of them; damage is reported elsewhere."""
    try:
        if StoreMeta.read(root / "store" / "meta.json").source == chunk_fingerprints(root):
            return []
    except ValueError:
        return []
    return [
        f"{root / 'store'} was not made of the chunk files that are beside it now: training makes it anew, or move it "
        "away if it holds other episodes"
    ]


# -- chunk files ------------------------------------------------------------------------------------------------------


def _verify_chunk(path: Path, layout: Layout, result: Verified, meter: _Meter, task: str | None) -> None:
    try:
        chunk = read_chunk(path)
        result.problems += _damaged_records(path, meter)
        with naming_the_task_set(path.parent, task):
            check_layout(path, chunk, layout)
        index = chunk_index(path, layout) if is_unequal(chunk) else None
    except (ValueError, OSError) as error:
        result.problems.append(str(error))
        return
    count = len(chunk["reward"]) if index is None else len(index)
    result.episodes += count
    changes, not_finite, affected, outside = "", "", 0, ""
    for first in range(0, count, _EPISODES):
        chunk = read_chunk(path)  # anew: the pages of a mapping that is kept count as this process's memory
        if index is None:
            block = {name: values[first : first + _EPISODES] for name, values in chunk.items()}
            lengths = torch.full((len(block["reward"]),), layout.rows - 1)
            try:
                episode_tasks(path, block["task"], layout.num_tasks, first)
            except ValueError as error:
                changes = changes or str(error)
        else:
            own = torch.arange(first, min(first + _EPISODES, count))
            block, lengths = chunk_episodes(chunk, index, own), index.lengths[own]
        try:
            check_finite(path, block, range(first, first + _EPISODES))
        except ValueError as error:
            not_finite = not_finite or str(error)
            affected += count_not_finite(block, lengths)
        try:
            check_actions(path, block, range(first, first + _EPISODES))
        except ValueError as error:
            outside = outside or str(error)
        meter.add(sum(values.nbytes for values in block.values()), path.name)
    result.problems += filter(None, (changes, outside if outside != not_finite else ""))
    if not_finite:
        result.problems.append(f"{not_finite}. Episodes of the file with values that are not finite: {affected:,}")


def _damaged_records(path: Path, meter: _Meter) -> list[str]:
    """List the parts of a chunk file, which is a zip archive, that do not have their CRC-32."""
    with chunk_checksums(path) as checksums:
        return checksums.damaged(lambda count: meter.add(count, path.name))
