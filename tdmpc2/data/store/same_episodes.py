"""Episodes that several stores have, known by their content: one takes a teacher's outputs over from another.

Data that grow are merged into a new store each time. An output of an episode is the same wherever the episode lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tdmpc2.data.store.column_making import differences, read_made
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.store.teacher_columns import TeacherTargets, one_process
from tdmpc2.tracking.progress import Progress


def fingerprint(store: EpisodeStore, episode: int) -> bytes:
    """Compute 32 bytes that tell an episode from every other one: SHA-256 of its task and rows, as they are stored."""
    return fingerprint_of(store.read(episode, 1), int(store.task[episode]))


def fingerprint_of(rows: Tensor, task_id: int) -> bytes:
    """Compute the fingerprint of an episode that is read already, rows [1, L+1, W] int32."""
    return hashlib.sha256(f"{task_id} ".encode() + rows.numpy().tobytes()).digest()


def same_episodes(store: EpisodeStore, old: EpisodeStore) -> dict[int, int]:
    """Find the episodes of a store that another one has as well: for each its number there. Both are read whole.

    Raises:
        ValueError: the stores are of other tasks or hold their rows in another form.
    """
    for what, mine, its in (
        ("tasks", store.meta.tasks, old.meta.tasks),
        ("rows", store.meta.row_format, old.meta.row_format),
    ):
        if mine != its:
            raise ValueError(f"{old.path} holds other {what} than {store.path}: leave it out of known")
    total = len(old.task) + len(store.task)
    with Progress(total, f"Comparing with {old.path}", unit="episodes") as bar:

        def prints(of: EpisodeStore) -> Iterator[bytes]:
            for episode in range(len(of.task)):
                yield fingerprint(of, episode)
                bar.update()

        there: dict[bytes, int] = {}
        for episode, key in enumerate(prints(old)):
            there.setdefault(key, episode)  # of two that are equal the first: columns are filled in order
        return {episode: there[key] for episode, key in enumerate(prints(store)) if key in there}


def check_same_making(column: TeacherTargets, source: TeacherTargets) -> None:
    """Raise ``ValueError`` if the outputs of two columns were made in different ways."""
    if changed := differences(read_made(source.path, source.name), read_made(column.path, column.name)):
        raise ValueError(f"{source.file} was made in another way ({changed}): leave {source.store.path} out of known")


def take_over(column: TeacherTargets, source: TeacherTargets, same: Mapping[int, int]) -> int:
    """Copy what a column lacks from that of another store, for the episodes that both stores have.

    Args:
        column: is filled; may be interrupted at any moment.
        source: the same column of the same teacher; episodes that lack a number there are left out.
        same: for episodes of the column's store their numbers in the other store (:func:`same_episodes`).

    Returns:
        Number of episodes whose numbers were copied.

    Raises:
        ValueError: the outputs were made in another way.
    """
    check_same_making(column, source)
    with one_process(column.path):
        complete = ~source.missing()
        found = [episode for episode in column.missing().nonzero().flatten().tolist()
                 if episode in same and complete[same[episode]]]  # fmt: skip
        steps = torch.arange(1, column.values.shape[1])
        for episode in found:
            column.put(episode * (len(steps) + 1) + steps, source.take(same[episode] * (len(steps) + 1) + steps))
        column.flush()
    return len(found)
