"""Convert offline data: merge, thin out or compact it into a store, or write a store as chunk files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tdmpc2.data.source import STORE, find_form, kind_of, naming_the_task_set, tasks_present
from tdmpc2.data.store.export import export_chunks
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.data.store.selection import check_outside
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.tasks import listed, matching, nearest


def to_store(
    sources: Sequence[str],
    out: Path,
    *,
    task: str | None = None,
    dtype: str | None = None,
    tasks: Sequence[str] = (),
    max_per_task: int | None = None,
) -> EpisodeStore:
    """Merge stores and directories of chunk files into a new store.

    Args:
        sources: what is merged, data of one task set.
        out: directory to make.
        task: task set of chunk files; None: what they say.
        dtype: of observations and actions; None: the sources', float32 if they differ.
        tasks: only these, or patterns such as ``mw-*``; their ids stay. Empty: all.
        max_per_task: so many of each task, evenly spaced; None: all.

    Raises:
        ValueError: ``out`` lies within a source, different task sets, an unknown task, or data or a disk that refuses.
    """
    for root in (Path(source).expanduser() for source in sources):
        if out.expanduser().resolve() != root.resolve() / "store":  # where a store is looked for
            check_outside(out, root)
    kinds = [kind_of(source, task) for source in sources]
    task_set, specs, first_dtype = kinds[0]
    for source, kind in zip(sources, kinds, strict=True):
        if kind.specs != specs:
            raise ValueError(f"{sources[0]} is of task={task_set}, {source} of {kind.task}: merge data of one task set")
    same = all(kind.dtype == first_dtype for kind in kinds)
    names = [spec.name for spec in specs]
    chosen = matching(tasks, names, task_set)
    if set(chosen) - set(tasks):  # of what a pattern matches, those that there are
        there = {name for source in sources for name in tasks_present(source, task)}
        chosen = tuple(name for name in chosen if name in there or name in tasks)
        if not chosen:
            raise ValueError(
                f"tasks: {', '.join(map(str, sources))} has no episodes of a task that {listed(tasks)} matches"
            )
    for name in chosen:
        if name not in names:
            raise ValueError(f"tasks: '{name}' is not a task of {task_set}.{nearest(name, names)}")
    with naming_the_task_set(sources[0], task):
        return import_episodes(
            sources,
            out,
            task_set,
            specs,
            dtype=dtype or (first_dtype if same else "float32"),
            task_ids=sorted({names.index(name) for name in chosen}) or None,
            max_per_task=max_per_task,
        )


def to_chunks(source: str, out: Path, episodes_per_file: int | None = None) -> list[Path]:
    """Write an episode store as chunk files, in float32.

    Args:
        source: the store.
        out: directory to make.
        episodes_per_file: None: as :func:`~tdmpc2.data.store.export.export_chunks` does by default.

    Raises:
        ValueError: it is not a store, or the disk refuses.
    """
    place, form = find_form(source)
    if form != STORE:
        raise ValueError(f"to=chunks writes one whole episode store, and {source} holds chunk files: convert it first")
    store = EpisodeStore.open(place)
    return export_chunks(store, out) if episodes_per_file is None else export_chunks(store, out, episodes_per_file)
