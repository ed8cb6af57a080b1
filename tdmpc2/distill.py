"""What the student learns from a frozen teacher (TD-MPC-Opt, Kuzmenko & Shvai 2025; specification section 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.nn.math import decode

if TYPE_CHECKING:
    from tdmpc2.agent import TDMPC2


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
def teacher_reward(teacher: TDMPC2, obs: Tensor, action: Tensor, task: Tensor | None) -> Tensor:
    """The teacher's decoded reward, obs [..., O] and action [..., A] -> [..., 1]. The teacher's own encoder is used."""
    model = teacher.model
    context = model.context(task)
    return decode(model.reward(model.encode(obs, context), action, context), model.bins)


def reward_distillation_loss(student_logits: Tensor, teacher_value: Tensor, bins: Tensor) -> Tensor:
    """Mean squared error of decoded rewards, in raw reward units.

    Args:
        student_logits: the student's reward logits of the first step, [B, K].
        teacher_value: the teacher's decoded reward, [B, 1].
    """
    return (decode(student_logits, bins) - teacher_value).square().mean()
