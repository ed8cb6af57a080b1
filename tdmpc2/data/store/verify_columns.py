"""Damage of teachers' outputs in a store, listed."""

from __future__ import annotations

import torch
from torch import Tensor

from tdmpc2.data.store.column_making import read_made
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.store.teacher_columns import COLUMNS, TeacherTargets, check_numbers, episodes_at_once, open_column


def verify_targets(store: EpisodeStore) -> list[str]:
    """List damage of the columns of a store, one line each; reads them whole."""
    problems = []
    for path in sorted((store.path / "targets").glob("[!.]*/")):
        for name in [name for name in COLUMNS if (path / f"{name}.npy").exists()] or [next(iter(COLUMNS))]:
            try:
                targets = open_column(path, name, store)
                read_made(path, name)
            except ValueError as error:
                problems.append(str(error))
                continue
            wrong = _wrong_numbers(targets)
            if len(wrong):
                episode, row = map(int, wrong[0, :2])
                found = targets.values[tuple(wrong[0])]
                wrong_check = " with another one's check number" * bool(found.isfinite() and row)
                more = f", the first of {len(wrong):,} wrong numbers" * (len(wrong) > 1)
                problems.append(
                    f"{targets.file} holds {found}{wrong_check} in episode {episode}, row {row}{more}. The "
                    "command that made it computes again what is wrong"
                )
    return list(dict.fromkeys(problems))  # damage of the directory is that of each column


def _wrong_numbers(targets: TeacherTargets) -> Tensor:
    """Find the numbers that do not fit their check numbers, [n, 2] or [n, 3]: episode, row and what of an action."""
    size, found = episodes_at_once(targets.values.shape), []
    for number, block in enumerate(targets.values.split(size)):
        wrong = block.isinf() | (targets.checks[number * size : (number + 1) * size] != check_numbers(block))
        wrong[:, 0] |= ~block[:, 0].isnan()
        where = wrong.nonzero()
        where[:, 0] += number * size
        found.append(where)
    return torch.cat(found)
