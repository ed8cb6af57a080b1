"""Cached teacher outputs: opening them, and computing them one by one."""

from __future__ import annotations

from tdmpc2.agent import TDMPC2
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.store.teacher_columns import TeacherTargets, open_targets
from tdmpc2.distillation import outputs

SHA256 = "ab" * 32


def empty(store: EpisodeStore) -> TeacherTargets:
    return open_targets(store, SHA256, "teacher.pt")


def one_by_one(store: EpisodeStore, teacher: TDMPC2, episode: int, row: int) -> float:
    """Compute the teacher's reward of a row in the slow, obvious way."""
    obs, action, _ = store.meta.row_format.split(store.rows[episode])
    task = store.task[episode] if teacher.cfg.multitask else None
    return float(
        outputs.teacher_columns(teacher.model, ("reward",), obs[row - 1].float(), action[row].float(), task)["reward"]
    )


def content(targets: TeacherTargets) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in targets.path.iterdir()}


def open_columns(store: EpisodeStore, *names: str) -> list[TeacherTargets]:
    return [open_targets(store, SHA256, "teacher.pt", name) for name in names]
