"""The teacher's side of distillation: whether it fits the student, and its outputs for a batch."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.distillation.targets import TARGETS, TeacherOutputs, outputs_of
from tdmpc2.nn.math import decode
from tdmpc2.nn.world_model import Task, TaskContext, WorldModel
from tdmpc2.tasks import TaskSpec


def check_teacher(student: Config, teacher: Config) -> None:
    """Raise ``ValueError`` unless the teacher can teach the student.

    It must play the student's tasks with the same ids and padding, for ``reward_logits`` have the same bins, for values
    the same discounts, and for ``next_state_pca`` a latent that is at least as wide.
    """
    if student.task_specs != teacher.task_specs:
        pairs = zip(student.task_specs, teacher.task_specs, strict=False)
        first = next((f"id {i}: {_difference(s, t)}" for i, (s, t) in enumerate(pairs) if s != t), "")
        raise ValueError(
            f"Teacher and student have different task sets: student task={student.task} "
            f"({len(student.task_specs)} tasks), teacher task={teacher.task} ({len(teacher.task_specs)} tasks)"
            f"{'; first difference at ' + first if first else ''}. Use a teacher of the student's task set"
        )
    if student.obs != teacher.obs:
        raise ValueError(f"Teacher and student observe different things: obs={teacher.obs} and obs={student.obs}")
    check_bins_of(student, teacher, "the teacher's")
    for task_id in student.task_ids:
        check_discount(student, student.task_names[task_id], teacher.discounts[task_id])
    if "next_state_pca" in student.distillation_terms and teacher.latent_dim < student.latent_dim:
        raise ValueError(
            f"distillation_targets=next_state_pca needs a teacher with latent_dim of at least {student.latent_dim}, "
            f"the student's, but it is {teacher.latent_dim}: use next_state_linear"
        )


def _difference(student: TaskSpec, teacher: TaskSpec) -> str:
    """In what two tasks differ, such as their names or lengths of episodes."""
    if student.name != teacher.name:
        return f"'{student.name}' and '{teacher.name}'"
    found = ((name, value, getattr(teacher, name)) for name, value in vars(student).items())
    name, own, other = next(facts for facts in found if facts[1] != facts[2])
    return f"{name} of '{student.name}' is {own} for the student and {other} for the teacher"


def check_bins_of(student: Config, teacher: Config, whose: str) -> None:
    """Raise ``ValueError`` if ``reward_logits`` is distilled and the teacher's bins are not the student's."""
    bins = [(cfg.num_bins, cfg.vmin, cfg.vmax) for cfg in (student, teacher)]
    if "reward_logits" in student.distillation_terms and bins[0] != bins[1]:
        raise ValueError(
            f"distillation_targets=reward_logits needs a teacher with the student's bins, but (num_bins, vmin, vmax) "
            f"are {bins[0]} and {whose} {bins[1]}: use the target reward, or the teacher's bins"
        )


def check_discount(student: Config, task: str, theirs: float) -> None:
    """Raise ``ValueError`` if values are distilled and the teacher of a task discounts its rewards otherwise.

    The student's own value loss would then pull its heads elsewhere than the teacher does.
    """
    values = [name for name in student.distillation_terms if TARGETS[name].needs in ("value", "ranking")]
    own = student.discounts[student.task_names.index(task)]
    if values and not math.isclose(own, theirs):
        raise ValueError(
            f"distillation_targets={', '.join(values)} needs a teacher that discounts as the student does, but the "
            f"discount of {task} is {own:g} and its teacher's {theirs:g}: train with the teacher's discount_denom, "
            "discount_min and discount_max, or without these targets"
        )


@torch.no_grad()
def teacher_columns(
    teacher: WorldModel, names: Collection[str], obs: Tensor, action: Tensor, task: Task
) -> dict[str, Tensor]:
    """Compute some of the teacher's outputs of obs [..., O] and action [..., A].

    The teacher's own encoder is used.

    Args:
        teacher: its world model.
        names: ``reward``, decoded; ``value``, the mean of its decoded online heads; ``policy``, its mean before tanh
            and its log standard deviation side by side.
        obs: [..., O].
        action: [..., A].
        task: [...], or None for a single-task teacher.

    Returns:
        By name: [..., 1], of ``policy`` [..., 2A].
    """
    context = teacher.context(task)
    return _columns(teacher, names, teacher.encode(obs, context), action, context)


def _columns(
    teacher: WorldModel, names: Collection[str], z: Tensor, action: Tensor, context: TaskContext
) -> dict[str, Tensor]:
    columns = {}
    if "reward" in names:
        columns["reward"] = decode(teacher.reward(z, action, context), teacher.bins)
    if "value" in names:
        columns["value"] = decode(teacher.Q(z, action, context, "all"), teacher.bins).mean(0)
    if "policy" in names:
        _, info = teacher.pi(z, context, torch.zeros_like(action))
        columns["policy"] = torch.cat([info["presquash_mean"], info["log_std"]], -1)
    return columns


@torch.no_grad()
def teacher_outputs(
    teacher: WorldModel, names: Collection[str], obs: Tensor, action: Tensor, task: Task
) -> TeacherOutputs:
    """Compute the outputs that some targets need, and no more; the steps they need are encoded once.

    Args:
        teacher: its world model.
        names: the targets.
        obs: [H+1, B, O].
        action: [H, B, A].
        task: [B], or None for a single-task teacher.
    """
    targets = [TARGETS[name] for name in names]
    needs = {target.needs for target in targets}
    all_steps = {target.needs for target in targets if target.all_steps}
    steps = {need: len(action) if need in all_steps else 1 for need in needs}
    start = 1 if needs == {"next_latent"} else 0
    stop = max([2 if "next_latent" in needs else 1, *steps.values()])
    context = teacher.context(task)
    z = teacher.encode(obs[start:stop], context)  # [., B, D_T]
    columns: dict[str, Tensor] = {}
    for name in ("reward", "value", "policy"):
        if name in needs:
            columns |= _columns(teacher, (name,), z[: steps[name]], action[: steps[name]], context)
    return TeacherOutputs(
        **outputs_of(columns),
        reward_logits=teacher.reward(z[0], action[0], context) if "reward_logits" in needs else None,
        next_latent=z[1 - start] if "next_latent" in needs else None,
    )
