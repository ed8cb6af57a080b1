"""Teachers of single tasks: who teaches which of the student's tasks, and their outputs for a batch of all tasks.

H horizon, B batch, O observation, A action, N tasks of the student.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.distillation.outputs import check_bins_of, check_discount, teacher_outputs
from tdmpc2.distillation.ranking import teacher_values
from tdmpc2.distillation.targets import TARGETS, TeacherOutputs
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.tasks import TaskSpec, nearest


def check_task_teachers(student: Config, teachers: Mapping[str, Config]) -> None:
    """Raise ``ValueError`` unless each teacher can teach the student its task.

    Both must know the task with the same sizes and episodes, and observe the same. For ``reward_logits`` they need the
    same bins, for values the same discounts. Targets that compare latents are of one teacher alone, since each has
    latents of its own.
    """
    latent = [name for name in student.distillation_terms if TARGETS[name].needs == "next_latent"]
    if latent:
        raise ValueError(
            f"distillation_targets={', '.join(latent)} compares latents, of which each teacher has its own: leave it "
            "out beside teachers, or name one teacher for all tasks, teacher_config.checkpoint=FILE"
        )
    own = {spec.name: _taught_of(spec) for spec in student.task_specs}
    for task, teacher in teachers.items():
        theirs = {spec.name: _taught_of(spec) for spec in teacher.task_specs}
        if task not in own:
            raise ValueError(f"teachers: '{task}' is no task of the student.{nearest(task, own)}")
        if task not in theirs:
            raise ValueError(
                f"teachers: the teacher of {task} knows {', '.join(list(theirs)[:4])}{', ...' * (len(theirs) > 4)}, "
                f"but not that task.{nearest(task, theirs)}"
            )
        if own[task] != theirs[task] or student.obs != teacher.obs:
            kinds = (_described(theirs[task], teacher.obs), _described(own[task], student.obs))
            raise ValueError(f"teachers: the teacher of {task} knows it with {', the student with '.join(kinds)}")
        check_bins_of(student, teacher, f"those of the teacher of {task}")
        check_discount(student, task, teacher.discounts[teacher.task_names.index(task)])


def _described(spec: TaskSpec, obs: str) -> str:
    images = "" if spec.image is None else f"images of {list(spec.image)}, "
    numbers = f"{spec.obs_dim} observed numbers (obs={obs}), {images}{spec.action_dim} actions"
    return f"{numbers} and {spec.episode_length} steps"


def _taught_of(spec: TaskSpec) -> TaskSpec:
    """The facts of a task that teacher and student must share: all but how it is scored."""
    return replace(spec.unpadded(), success_score=False)


@dataclass(frozen=True)
class _One:
    """One teacher."""

    model: WorldModel
    ids: Tensor  # its own id of each of the student's tasks, [N]; 0 for those it does not teach
    teaches: Tensor  # [N] bool


class TaskTeachers:
    """Teachers of single tasks; tasks without one are not distilled.

    Args:
        student: its tasks and padding.
        teachers: world model by task; a model of many tasks may stand for several.
        device: the one the batches are on.

    Raises:
        ValueError: see :func:`check_task_teachers`.
    """

    def __init__(self, student: Config, teachers: Mapping[str, WorldModel], device: torch.device) -> None:
        check_task_teachers(student, {task: model.cfg for task, model in teachers.items()})
        names = student.task_names
        self._student = student
        self._teachers = []
        for model in {id(model): model for model in teachers.values()}.values():
            ids, teaches = torch.zeros(len(names), dtype=torch.int64), torch.zeros(len(names), dtype=torch.bool)
            for task, teacher in teachers.items():
                if teacher is model:
                    ids[names.index(task)] = model.cfg.task_names.index(task)
                    teaches[names.index(task)] = True
            self._teachers.append(_One(model, ids.to(device), teaches.to(device)))
        #: 1 for the student's tasks that have a teacher, [N, 1].
        self.taught = torch.stack([one.teaches for one in self._teachers]).any(0).float().unsqueeze(-1)

    @torch.no_grad()
    def outputs(self, names: Collection[str], obs: Tensor, action: Tensor, task: Tensor | None) -> TeacherOutputs:
        """Compute the outputs that some targets need: each row by the teacher of its task, 0 where there is none.

        Every teacher sees the whole batch and the rows of its tasks are taken, since selecting them beforehand would
        wait for a GPU.

        Args:
            names: the targets.
            obs: [H+1, B, O], padded as the student's.
            action: [H, B, A], padded as the student's.
            task: the student's ids, [B]; None if it knows one task.

        Returns:
            The outputs, actions padded as the student's, and the mask of the rows that have a teacher, [B, 1].
        """
        task = torch.zeros(action.shape[1], dtype=torch.int64, device=action.device) if task is None else task
        total: TeacherOutputs | None = None
        for one in self._teachers if names else ():
            cfg = one.model.cfg
            theirs = resized(obs, cfg.obs_dim) if cfg.obs == "state" else obs
            ids = one.ids[task] if cfg.multitask else None
            found = teacher_outputs(one.model, names, theirs, resized(action, cfg.action_dim), ids)
            if found.policy is not None:
                mean, log_std = (resized(values, self._student.action_dim) for values in found.policy)
                found = found._replace(policy=(mean, log_std))
            total = _taken(found, one.teaches[task].unsqueeze(-1), total)
        return (total or TeacherOutputs())._replace(mask=self.taught[task])

    def sequence_values(self, obs: Tensor, actions: Tensor, task: Tensor | None) -> Tensor:
        """Compute the values of action sequences, each state's by the teacher of its task, 0 where there is none.

        Args:
            obs: padded as the student's, [N, O].
            actions: padded as the student's, [N, H, S, A].
            task: the student's ids, [N]; None if it knows one task.

        Returns:
            [2, N, S], see :func:`tdmpc2.distillation.ranking.sequence_values`.
        """
        task = torch.zeros(len(obs), dtype=torch.int64, device=obs.device) if task is None else task
        total = actions.new_zeros(2, len(obs), actions.shape[2])
        # Each of several teachers is asked for its own states alone where their number is known without waiting.
        select = len(self._teachers) > 1 and obs.device.type == "cpu"
        for one in self._teachers:
            cfg, taught = one.model.cfg, one.teaches[task]
            rows = taught.nonzero().squeeze(1) if select else torch.arange(len(obs), device=obs.device)
            if len(rows) == 0:
                continue
            theirs = resized(obs[rows], cfg.obs_dim) if cfg.obs == "state" else obs[rows]
            ids = one.ids[task[rows]] if cfg.multitask else None
            found = teacher_values(one.model, theirs, resized(actions[rows], cfg.action_dim), ids)
            total[:, rows] = torch.where(taught[rows].unsqueeze(-1), found, total[:, rows])
        return total


def resized(x: Tensor, size: int) -> Tensor:
    """Cut padding off the last axis [..., N] of observations or actions, or add zeros, to [..., size]."""
    return F.pad(x, (0, size - x.shape[-1]))


def _taken(found: TeacherOutputs, rows: Tensor, before: TeacherOutputs | None) -> TeacherOutputs:
    """Take the outputs of rows [B, 1], and keep those of ``before`` (0 without it) for the others."""

    def take(name: str) -> Tensor | tuple[Tensor, ...] | None:
        new, old = getattr(found, name), getattr(before, name, None)
        if isinstance(new, tuple):
            return tuple(torch.where(rows, n, 0.0 if old is None else o) for n, o in zip(new, old or new, strict=True))
        return None if new is None else torch.where(rows, new, 0.0 if old is None else old)

    return TeacherOutputs(*map(take, TeacherOutputs._fields))  # type: ignore[arg-type]
