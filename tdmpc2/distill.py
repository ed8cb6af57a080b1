"""What the student learns from a frozen teacher (TD-MPC-Opt, Kuzmenko & Shvai 2025; specification section 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.nn.math import decode

if TYPE_CHECKING:
    from tdmpc2.agent import TDMPC2
    from tdmpc2.nn.world_model import Task


def check_teacher(student: Config, teacher: Config) -> None:
    """Raise ``ValueError`` unless the teacher plays the student's tasks with the same ids and padding."""
    if student.task_specs != teacher.task_specs:
        pairs = zip(student.task_specs, teacher.task_specs, strict=False)
        first = next((f"id {i}: '{s.name}' and '{t.name}'" for i, (s, t) in enumerate(pairs) if s != t), "")
        raise ValueError(
            f"Teacher and student have different task sets: student task={student.task} "
            f"({len(student.task_specs)} tasks), teacher task={teacher.task} ({len(teacher.task_specs)} tasks)"
            f"{'; first difference at ' + first if first else ''}. Use a teacher of the student's task set"
        )


@torch.no_grad()
def teacher_reward(teacher: TDMPC2, obs: Tensor, action: Tensor, task: Task) -> Tensor:
    """The teacher's decoded reward, obs [..., O] and action [..., A] -> [..., 1]. The teacher's own encoder is used."""
    model = teacher.model
    context = model.context(task)
    return decode(model.reward(model.encode(obs, context), action, context), model.bins)


def reward_target(
    batch: Any, teacher: TDMPC2 | None, obs: Tensor, action: Tensor, task: Tensor | None
) -> Tensor | None:
    """The teacher's reward of the first step, [B, 1]; None if there is nothing to distil.

    Args:
        batch: the batch of the update. If it has ``teacher_reward`` [1 to H, B, 1], computed before
            (:mod:`tdmpc2.data.targets`), the teacher is not asked.
        teacher: the live teacher.
        obs: first observation of each slice, [B, O].
        action: first action, [B, A].
        task: [B], or None for a single-task teacher.
    """
    computed = batch.get("teacher_reward", None) if hasattr(batch, "get") else getattr(batch, "teacher_reward", None)
    if isinstance(computed, Tensor):  # a TensorDict wraps None into an object of its own
        return computed[0]
    return None if teacher is None else teacher_reward(teacher, obs, action, task)


def reward_distillation_loss(student_logits: Tensor, teacher_value: Tensor, bins: Tensor) -> Tensor:
    """Mean squared error of decoded rewards, in raw reward units.

    Args:
        student_logits: the student's reward logits of the first step, [B, K].
        teacher_value: the teacher's decoded reward, [B, 1].
    """
    return (decode(student_logits, bins) - teacher_value).square().mean()
