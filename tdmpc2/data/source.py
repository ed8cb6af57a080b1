"""Open offline data of either form the same way: an episode store, or a directory of chunk files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tdmpc2.config import parse_cfg
from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.index import EpisodeIndex
from tdmpc2.data.store.meta import TASK, StoreMeta
from tdmpc2.data.store.parts import Part
from tdmpc2.data.store.selection import Selection
from tdmpc2.support.entries import check_entries
from tdmpc2.support.reading import load_json
from tdmpc2.support.text import cut
from tdmpc2.tasks import TaskSpec, read_specs

STORE, CHUNKS = "episode store", "chunk files"
OTHER_TASKS = "Is it data of another task"  # how the check of chunk files ends
FIRST_ROW = {"obs": 0, "action": 1, "reward": 1}  # row 0 of action and reward is filler


@dataclass(frozen=True)
class Source:
    """Offline data on disk, opened.

    Attributes:
        path: its directory.
        form: ``episode store`` or ``chunk files``.
        task: name of the task set.
        specs: its tasks in id order.
        dtype: of observation and action.
        files: bytes per file name.
        parts: its episodes.
    """

    path: Path
    form: str
    task: str
    specs: tuple[TaskSpec, ...]
    dtype: str
    files: dict[str, int]
    parts: tuple[Part, ...]

    @property
    def layout(self) -> Layout:
        """Rows per episode and padded sizes."""
        return Layout.of(self.specs)

    @property
    def index(self) -> EpisodeIndex:
        """Task, length and end of each episode."""
        return EpisodeIndex.joined([part.index for part in self.parts])


def find_form(data_dir: str | os.PathLike[str]) -> tuple[Path, str]:
    """Find the data of a directory, and its form: ``episode store`` or ``chunk files``.

    It is the directory itself, or a store named ``store`` in it if there are no chunk files.

    Raises:
        ValueError: the directory does not exist or holds neither.
    """
    root = Path(data_dir).expanduser()
    if (root / "meta.json").exists():
        return root, STORE
    if any(root.glob("chunk_*.pt")):
        return root, CHUNKS
    if (root / "store" / "meta.json").exists():
        return root / "store", STORE
    problem = "holds neither form of data" if root.is_dir() else "is not a directory"
    raise ValueError(
        f"{data_dir} {problem}: expected an episode store (meta.json, rows.npy, task.npy) or chunk files "
        "(chunk_0.pt, chunk_1.pt, ...)"
    )


def chunk_tasks(data_dir: str | os.PathLike[str], task: str | None = None) -> tuple[str, tuple[TaskSpec, ...]]:
    """Find name and tasks of the task set that chunk files are of.

    Args:
        data_dir: their directory; ``collect.json`` in it names the tasks of collected files.
        task: a task set or task; by default what ``collect.json`` says, or mt30.

    Raises:
        ValueError: unknown task, or ``collect.json`` is damaged.
    """
    record = Path(data_dir).expanduser() / "collect.json"
    if task is None and record.exists():
        try:
            plain = load_json(record)
            specs = read_specs(plain["tasks"])
            Layout.of(specs)  # not of an empty list
            return check_entries("it", plain, {"task": TASK}, others=True)["task"], specs
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{record} is damaged [{type(error).__name__}: {cut(str(error))}]: name the task set with --task"
            ) from error
    task = task or "mt30"
    return task, parse_cfg({"task": task}, "--task").task_specs


@contextlib.contextmanager
def naming_the_task_set(data_dir: str | os.PathLike[str], task: str | None) -> Iterator[None]:
    """Say in errors how to name the task set of chunk files, where one was assumed that does not fit."""
    try:
        yield
    except ValueError as error:
        root = Path(data_dir).expanduser()
        if task or (root / "collect.json").exists() or OTHER_TASKS not in str(error):
            raise
        raise ValueError(f"{error} No collect.json names it: mt30 was assumed, name another one with --task") from error


class Kind(NamedTuple):
    """Task set and precision of data."""

    task: str  # name of the task set
    specs: tuple[TaskSpec, ...]  # in id order
    dtype: str  # of observation and action


def kind_of(data_dir: str | os.PathLike[str], task: str | None = None) -> Kind:
    """Find task set and precision of either form of data, without opening it.

    Args:
        data_dir: a store or a directory of chunk files.
        task: task set of chunk files, see :func:`chunk_tasks`. A store names its own.

    Raises:
        ValueError: neither form, an unknown task, a store of another task set, or a damaged file that names the tasks.
    """
    root, form = find_form(data_dir)
    if form == CHUNKS:
        return Kind(*chunk_tasks(root, task), "float32")
    meta = StoreMeta.read(root / "meta.json")
    if task not in (None, meta.task):
        raise ValueError(f"{root} is an episode store of task={meta.task}, not of {task}: leave out --task")
    return Kind(meta.task, meta.tasks, meta.dtype)


def open_source(data_dir: str | os.PathLike[str], task: str | None = None) -> Source:
    """Open either form of data; the arguments are those of :func:`kind_of`.

    Raises:
        ValueError: see :func:`kind_of`; or a damaged file, or data of another task set.
    """
    root, form = find_form(data_dir)
    kind = kind_of(root, task)
    with naming_the_task_set(root, task):
        selection = Selection.of([root], kind.task, kind.specs)
    files = {path.name: path.stat().st_size for path in selection.files}
    return Source(root, form, *kind, files, tuple(selection.parts))


def tasks_present(data_dir: str | os.PathLike[str], task: str | None = None) -> dict[str, int]:
    """Count the episodes of each task that either form of data has; tasks without any are left out.

    Only task ids are read. The arguments are those of :func:`kind_of`.

    Returns:
        Task name -> number of episodes, in id order.

    Raises:
        ValueError: see :func:`open_source`.
    """
    source = open_source(data_dir, task)
    ids, counts = source.index.task.unique(return_counts=True)
    return {source.specs[index].name: count for index, count in zip(ids.tolist(), counts.tolist(), strict=True)}
