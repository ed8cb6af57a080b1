"""Episodes that several stores have, known by their content: one takes a teacher's outputs over from another.

Data that grow are merged into a new store each time. An output of an episode is the same wherever the episode lies.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from tdmpc2.data.store.column_making import differences, read_made
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.store.teacher_columns import TeacherTargets, one_process


def fingerprint(store: EpisodeStore, episode: int) -> bytes:
    """Compute 32 bytes that tell an episode from every other one: SHA-256 of its task and rows, as they are stored."""
    return fingerprint_of(store.read(episode, 1), int(store.task[episode]))


def fingerprint_of(rows: Tensor, task_id: int) -> bytes:
    """Compute the fingerprint of an episode that is read already, rows [1, L+1, W] int32."""
    return hashlib.sha256(f"{task_id} ".encode() + rows.numpy().tobytes()).digest()


def take_over(column: TeacherTargets, source: TeacherTargets) -> int:
    """Copy what a column lacks from that of another store, for the episodes that both stores have.

    Args:
        column: is filled; may be interrupted at any moment.
        source: the same column of the same teacher; episodes that lack a number there are left out.

    Returns:
        Number of episodes whose numbers were copied.

    Raises:
        ValueError: the stores are of other tasks or hold their rows in another form, or the outputs were made in
            another way.
    """
    store, old = column.store, source.store
    for what, mine, its in (
        ("tasks", store.meta.tasks, old.meta.tasks),
        ("rows", store.meta.row_format, old.meta.row_format),
    ):
        if mine != its:
            raise ValueError(f"{old.path} holds other {what} than {store.path}: leave it out of known")
    if changed := differences(read_made(source.path, source.name), read_made(column.path, column.name)):
        raise ValueError(f"{source.file} was made in another way ({changed}): leave {old.path} out of known")
    with one_process(column.path):
        wanted = column.missing().nonzero().flatten().tolist()
        if not wanted:
            return 0
        complete = (~source.missing()).nonzero().flatten().tolist()
        there = {fingerprint(old, episode): episode for episode in complete}
        found = [(episode, there[key]) for episode in wanted if (key := fingerprint(store, episode)) in there]
        steps = torch.arange(1, column.values.shape[1])
        for episode, its_episode in found:
            column.put(episode * (len(steps) + 1) + steps, source.take(its_episode * (len(steps) + 1) + steps))
        column.flush()
    return len(found)
