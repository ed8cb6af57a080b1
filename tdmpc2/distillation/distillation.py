"""The distillation of one student (TD-MPC-Opt, Kuzmenko & Shvai 2025; docs/algorithm.md, "Distillation").

The targets themselves are rows of :data:`tdmpc2.distillation.targets.TARGETS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.distillation.outputs import teacher_outputs
from tdmpc2.distillation.projection import PCA, fit_pca, linear_projection
from tdmpc2.distillation.ranking import sequences, teacher_values
from tdmpc2.distillation.targets import (
    TARGETS,
    Constants,
    StudentOutputs,
    StudentPolicy,
    TeacherOutputs,
    loss_name,
    only_cached,
    outputs_of,
)  # fmt: skip
from tdmpc2.distillation.teachers import TaskTeachers
from tdmpc2.nn.layers import Linear
from tdmpc2.nn.world_model import Task, WorldModel

#: Updates over which the gap schedule averages a loss.
GAP_UPDATES = 100


class Distillation:
    """The targets of one student, their weights, and what they keep from update to update.

    The weights are those of the configuration times a factor that ``distillation_schedule`` gives, with s updates done:

    - constant: 1
    - linear: 1 - s / steps
    - cosine: (1 + cos(pi s / steps)) / 2
    - gap: what is left of the first target's unweighted loss, clip(e / e_0, 0, 1). e is its running average, the mean
      of all updates so far for the first 100, after which each new loss counts 1/100; e_0 is e after those 100. The
      average does not include the update that uses it.

    Args:
        cfg: the student.
        teacher: the live teacher's world model, or teachers of single tasks; None: only the outputs that batches bring
            are distilled.
        device: the student's.

    Attributes:
        projection: of ``next_state_linear``; its parameters are trained with the model's.
        pca: of ``next_state_pca``, set before the first update.
    """

    def __init__(self, cfg: Config, teacher: WorldModel | TaskTeachers | None, device: torch.device) -> None:
        self.cfg = cfg
        self.task_teachers = teacher if isinstance(teacher, TaskTeachers) else None
        self.teacher = None if isinstance(teacher, TaskTeachers) else teacher
        self.terms = cfg.distillation_terms
        named = {entry.task for entry in cfg.teachers or ()}
        #: [N, 1]: 1 for tasks with a teacher, where these are named.
        self._taught = None if self.task_teachers is None else self.task_teachers.taught
        if named and self.task_teachers is None:
            self._taught = torch.tensor([[float(name in named)] for name in cfg.task_names], device=device)
        self.projection: Linear | None = None
        if self.teacher is not None and "next_state_linear" in self.terms:
            self.projection = linear_projection(cfg.latent_dim, self.teacher.cfg.latent_dim, cfg.seed)
            if device.type != "cpu":
                self.projection.to(device)
        self.pca: PCA | None = None
        self._device = device
        self._updates = 0
        one = torch.ones((), dtype=torch.float32, device=device)
        self._loss = self._first_loss = one  # e and e_0 of the gap schedule

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained with the model but are no part of it."""
        return [] if self.projection is None else list(self.projection.parameters())

    @property
    def needs_pca(self) -> bool:
        """True until the PCA that a target needs has been fitted."""
        return self.teacher is not None and "next_state_pca" in self.terms and self.pca is None

    @property
    def has_teacher(self) -> bool:
        """True if a teacher, or teachers of single tasks, can be asked in an update."""
        return self.teacher is not None or self.task_teachers is not None

    @property
    def compares_sequences(self) -> bool:
        """True if updates need action sequences that student and teacher imagine: the target ``ranking``."""
        return self.has_teacher and any(TARGETS[name].needs == "ranking" for name in self.terms)

    def _mask(self, task: Task) -> Tensor | None:
        """Mark the rows that are taught, [B, 1]; None: all."""
        if self._taught is None:
            return None
        assert task is None or isinstance(task, Tensor)
        return self._taught if task is None else self._taught[task]

    def teacher_outputs(self, batch: Batch, task: Task, offsets: Tensor | None = None) -> TeacherOutputs | None:
        """Collect the teacher's outputs for a batch; None if there is nothing to distil.

        Args:
            batch: the batch of the update. What it has as ``teacher_reward`` and the like, computed before
                (:mod:`tdmpc2.training.teacher_cache`), the teacher does not compute again.
            task: [B], or None for a single-task teacher.
            offsets: of the action sequences that ``ranking`` compares, [H, B, S, A].

        Raises:
            ValueError: there is no teacher, and the batch has the outputs for some of the targets only; or it lacks one
                that only a cache has.
        """
        cached = {column for name in self.terms if (column := TARGETS[name].cached_as)}
        given = {name: column for name in cached if (column := getattr(batch, f"teacher_{name}")) is not None}
        missing = [name for name in self.terms if TARGETS[name].cached_as not in given]
        if (given or self.has_teacher) and (never := [name for name in missing if not TARGETS[name].live]):
            raise ValueError(f"The batch's 'teacher_{never[0]}' is missing: {only_cached(never[0])}")
        outputs = TeacherOutputs(mask=self._mask(task))
        of_data = [name for name in missing if TARGETS[name].needs != "ranking"]
        if missing and self.teacher is not None:
            if of_data:
                outputs = teacher_outputs(self.teacher, of_data, batch.obs, batch.action, task)
        elif missing and self.task_teachers is not None:
            assert task is None or isinstance(task, Tensor)
            outputs = self.task_teachers.outputs(of_data, batch.obs, batch.action, task)
        elif missing and given:
            raise ValueError(
                f"distillation_targets={', '.join(missing)}: there is no teacher, and the batch has only "
                f"{', '.join(f'teacher_{name}' for name in given)}"
            )
        elif missing:
            return None
        if len(of_data) < len(missing):
            outputs = outputs._replace(ranking=self._sequence_values(batch, task, offsets))
        return outputs._replace(**outputs_of(given))

    def _sequence_values(self, batch: Batch, task: Task, offsets: Tensor | None) -> Tensor:
        """Ask the teacher for the values of the sequences that ``ranking`` compares, [2, N, S]."""
        if offsets is None:
            raise ValueError("distillation_targets=ranking needs noise with offsets: draw it by agent.draw_noise")
        assert task is None or isinstance(task, Tensor)
        step = offsets.shape[2]  # every so many slices give a state
        obs, actions = batch.obs[0, ::step], sequences(batch.action, offsets)
        states = None if task is None else task[::step]
        if self.teacher is not None:
            return teacher_values(self.teacher, obs, actions, states)
        assert self.task_teachers is not None
        return self.task_teachers.sequence_values(obs, actions, states)

    def losses(
        self, student: StudentOutputs | StudentPolicy, teacher: TeacherOutputs | None, model: WorldModel
    ) -> dict[str, Tensor]:
        """Compute the unweighted losses of the targets that train the model, or the policy prior, by target.

        Args:
            student: StudentOutputs selects the targets that train the model, StudentPolicy those that train the policy.
            teacher: the result of :meth:`teacher_outputs`; None: nothing is distilled.
            model: the student, for its bins and rho.

        Raises:
            ValueError: no PCA has been fitted, or the teacher's rewards are of too few steps.
        """
        if teacher is None:
            return {}
        if self.needs_pca:
            raise ValueError("distillation_targets=next_state_pca: call agent.distillation.fit_pca first")
        trained = "policy" if isinstance(student, StudentPolicy) else "model"
        cfg = self.cfg
        constants = Constants(
            model.rho[:-1], model.bins, cfg.distillation_temperature, cfg.simnorm_dim, self.projection, self.pca
        )
        rows = {name: TARGETS[name] for name in self.terms if TARGETS[name].trains == trained}
        return {name: row.loss(student, teacher, constants) for name, row in rows.items()}

    def weighted(self, losses: Mapping[str, Tensor]) -> Tensor | float:
        """Add up unweighted losses by target, each times its weight in this update; 0 if there are none."""
        return sum(self.weight(name) * loss for name, loss in losses.items())

    @torch.no_grad()
    def fit_pca(self, observations: Iterable[tuple[Tensor, Tensor | None]]) -> float:
        """Fit the PCA of ``next_state_pca`` to the teacher's latents.

        Args:
            observations: pairs of observations [N, O] and tasks [N], or None for a single-task teacher.

        Returns:
            The share of the variance that the components have.

        Raises:
            ValueError: see :func:`tdmpc2.distillation.projection.fit_pca`.
        """
        assert self.teacher is not None
        latents = torch.cat([self.teacher.encode(obs, task).cpu() for obs, task in observations])
        pca, share = fit_pca(latents, self.cfg.latent_dim)
        self.pca = PCA(*(tensor.to(self._device) for tensor in pca))
        return share

    # -- schedule and state -------------------------------------------------------------------------------------------

    def weight(self, target: str) -> float | Tensor:
        """The weight of a target in the next update, the schedule's factor included."""
        return self.terms[target] * self.factor()

    def factor(self) -> float | Tensor:
        """The factor on all weights in the next update; on the device with ``gap``."""
        if self.cfg.distillation_schedule == "gap":
            return (self._loss / self._first_loss.clamp(min=1e-12)).clamp(0, 1)
        done = min(self.done, 1.0)
        return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[
            self.cfg.distillation_schedule
        ]

    @property
    def done(self) -> float:
        """Share of the run's updates that is done, taught or not."""
        return self._updates / self.cfg.num_updates

    def advance(self, stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Advance the schedule by one update; returns the factor to log, or nothing if it is constant or unused.

        Args:
            stats: the losses that the update gave, by their names in the log.
        """
        first_loss = stats.get(f"{loss_name(next(iter(self.terms)))}_loss")
        factor = self.factor()
        self._updates += 1
        if first_loss is None or self.cfg.distillation_schedule == "constant":
            return {}
        if self.cfg.distillation_schedule == "gap":
            self._loss = torch.lerp(self._loss, first_loss, 1 / min(self._updates, GAP_UPDATES))
            if self._updates <= GAP_UPDATES:
                self._first_loss = self._loss
        on_device = (
            factor if isinstance(factor, Tensor) else torch.full((), factor, dtype=torch.float32, device=self._device)
        )
        return {"distillation_factor": on_device}

    def state(self) -> dict[str, Any]:
        """Collect everything but the teacher that the next update depends on."""
        state: dict[str, Any] = {"updates": self._updates, "loss": self._loss, "first_loss": self._first_loss}
        if self.projection is not None:
            state |= {"projection": dict(self.projection.state_dict())}
        return state if self.pca is None else state | {"pca": self.pca._asdict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self._updates = int(state["updates"])
        self._loss, self._first_loss = (state[name].to(self._device) for name in ("loss", "first_loss"))
        if self.projection is not None:
            self.projection.load_state_dict(state["projection"])
        if "pca" in state:
            self.pca = PCA(**{name: tensor.to(self._device) for name, tensor in state["pca"].items()})
