"""What the student learns from a frozen teacher (TD-MPC-Opt, Kuzmenko & Shvai 2025; specification section 10).

Each target of the key ``distillation_targets`` is one loss:

reward             squared error of decoded rewards at the first step: the reference's, and the default
reward_horizon     the same along the student's imagined trajectory, weighted with rho^t
reward_logits      cross-entropy of the reward distributions at the first step, softened by a temperature
next_state_linear  squared error of a trained linear map of the student's first predicted latent to the teacher's latent
next_state_pca     squared error of that latent to the teacher's, brought to the student's size by a fitted PCA
value              cross-entropy of all Q heads at the first step with the teacher's decoded value
policy             divergence of the Gaussian policies at the first step; the only one that trains the policy prior

H horizon, B batch, O observation, A action, D_S and D_T latent sizes of student and teacher, K bins, Q heads.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from tdmpc2.config import Config
from tdmpc2.config.limits import CACHED_TARGETS
from tdmpc2.distillation import losses as distill_losses
from tdmpc2.distillation.projection import PCA, fit_pca, linear_projection
from tdmpc2.nn.layers import Linear
from tdmpc2.nn.math import decode

if TYPE_CHECKING:
    from tdmpc2.agent import TDMPC2
    from tdmpc2.nn.world_model import Task, TaskContext, WorldModel

T = TypeVar("T")
#: Updates over which the gap schedule averages a loss.
GAP_UPDATES = 100
_NEXT_STATE = {"next_state_linear", "next_state_pca"}


# -- the teacher ------------------------------------------------------------------------------------------------------


class TeacherOutputs(NamedTuple):
    """What the teacher said of a batch; None: it was not asked."""

    reward: Tensor | None = None  # [1 to H, B, 1] decoded
    reward_logits: Tensor | None = None  # [B, K] of the first step
    value: Tensor | None = None  # [1 to H, B, 1] decoded, the mean of all heads
    next_latent: Tensor | None = None  # [B, D_T] encoding of the second observation
    policy: tuple[Tensor, Tensor] | None = None  # mean before tanh and log standard deviation, [B, A], first step


def check_teacher(student: Config, teacher: Config) -> None:
    """Raise ``ValueError`` unless the teacher can teach the student.

    It must play the student's tasks with the same ids and padding, for ``reward_logits`` have the same bins, and for
    ``next_state_pca`` a latent that is at least as wide.
    """
    if student.task_specs != teacher.task_specs:
        pairs = zip(student.task_specs, teacher.task_specs, strict=False)
        first = next((f"id {i}: '{s.name}' and '{t.name}'" for i, (s, t) in enumerate(pairs) if s != t), "")
        raise ValueError(
            f"Teacher and student have different task sets: student task={student.task} "
            f"({len(student.task_specs)} tasks), teacher task={teacher.task} ({len(teacher.task_specs)} tasks)"
            f"{'; first difference at ' + first if first else ''}. Use a teacher of the student's task set"
        )
    bins = [(cfg.num_bins, cfg.vmin, cfg.vmax) for cfg in (student, teacher)]
    if "reward_logits" in student.distillation_terms and bins[0] != bins[1]:
        raise ValueError(
            f"distillation_targets=reward_logits needs a teacher with the student's bins, but (num_bins, vmin, vmax) "
            f"are {bins[0]} and the teacher's {bins[1]}: use the target reward, or the teacher's bins"
        )
    if "next_state_pca" in student.distillation_terms and teacher.latent_dim < student.latent_dim:
        raise ValueError(
            f"distillation_targets=next_state_pca needs a teacher with latent_dim of at least {student.latent_dim}, "
            f"the student's, but it is {teacher.latent_dim}: use next_state_linear"
        )


@torch.no_grad()
def teacher_columns(
    teacher: TDMPC2, names: Collection[str], obs: Tensor, action: Tensor, task: Task
) -> dict[str, Tensor]:
    """The teacher's decoded ``reward`` or ``value``, or both, of obs [..., O] and action [..., A]: each [..., 1].

    The teacher's own encoder is used. The value is the mean of its decoded online heads.
    """
    context = teacher.model.context(task)
    return _columns(teacher.model, names, teacher.model.encode(obs, context), action, context)


def _columns(
    model: WorldModel, names: Collection[str], z: Tensor, action: Tensor, context: TaskContext
) -> dict[str, Tensor]:
    columns = {}
    if "reward" in names:
        columns["reward"] = decode(model.reward(z, action, context), model.bins)
    if "value" in names:
        columns["value"] = decode(model.Q(z, action, context, "all"), model.bins).mean(0)
    return columns


@torch.no_grad()
def teacher_outputs(
    teacher: TDMPC2, targets: Collection[str], obs: Tensor, action: Tensor, task: Task
) -> TeacherOutputs:
    """What some targets need of the teacher, and no more; the steps they need are encoded once.

    Args:
        teacher: the live teacher.
        targets: their names.
        obs: [H+1, B, O].
        action: [H, B, A].
        task: [B], or None for a single-task teacher.
    """
    model, wanted = teacher.model, set(targets)
    context = model.context(task)
    rewards = len(action) if "reward_horizon" in wanted else 1
    start = 1 if wanted <= _NEXT_STATE else 0
    stop = max(rewards, 2 if wanted & _NEXT_STATE else 1)
    z = model.encode(obs[start:stop], context)  # [., B, D_T]
    columns: dict[str, Tensor] = {}
    if wanted & {"reward", "reward_horizon"}:
        columns |= _columns(model, ("reward",), z[:rewards], action[:rewards], context)
    if "value" in wanted:
        columns |= _columns(model, ("value",), z[:1], action[:1], context)
    policy = None
    if "policy" in wanted:
        _, info = model.pi(z[0], context, torch.zeros_like(action[0]))
        policy = (info["presquash_mean"], info["log_std"])
    return TeacherOutputs(
        **columns,
        reward_logits=model.reward(z[0], action[0], context) if "reward_logits" in wanted else None,
        next_latent=z[1 - start] if wanted & _NEXT_STATE else None,
        policy=policy,
    )


# -- one student's distillation ---------------------------------------------------------------------------------------


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
        teacher: the live teacher; None: nothing is distilled but from batches that bring its outputs.
        device: the student's.

    Attributes:
        projection: of ``next_state_linear``; its parameters are trained with the model's.
        pca: of ``next_state_pca``, set before the first update.
    """

    def __init__(self, cfg: Config, teacher: TDMPC2 | None, device: torch.device) -> None:
        self.cfg, self.teacher = cfg, teacher
        self.terms = cfg.distillation_terms
        self.projection: Linear | None = None
        if teacher is not None and "next_state_linear" in self.terms:
            self.projection = linear_projection(cfg.latent_dim, teacher.cfg.latent_dim, cfg.seed)
            if device.type != "cpu":
                self.projection.to(device)
        self.pca: PCA | None = None
        self._device = device
        self._updates = 0
        self._loss = self._first_loss = torch.ones((), device=device)  # e and e_0 of the gap schedule

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained with the model but no part of it."""
        return [] if self.projection is None else list(self.projection.parameters())

    @property
    def needs_pca(self) -> bool:
        """Whether a PCA must be fitted before the first update."""
        return self.teacher is not None and "next_state_pca" in self.terms and self.pca is None

    def ask(self, batch: Any, obs: Tensor, action: Tensor, task: Tensor | None) -> TeacherOutputs | None:
        """What the targets need of the teacher; None if there is nothing to distil.

        Args:
            batch: the batch of the update. For what it has as ``teacher_reward`` and ``teacher_value`` [1 to H, B, 1],
                computed before (:mod:`tdmpc2.training.teacher_cache`), the teacher is not asked.
            obs: [H+1, B, O].
            action: [H, B, A].
            task: [B], or None for a single-task teacher.

        Raises:
            ValueError: there is no teacher, and the batch has the outputs for some of the targets only.
        """
        names = {CACHED_TARGETS[name] for name in self.terms if name in CACHED_TARGETS}
        given: dict[str, Any] = {
            name: column for name in names if (column := _given(batch, f"teacher_{name}")) is not None
        }
        lacking = [name for name in self.terms if CACHED_TARGETS.get(name) not in given]
        outputs = TeacherOutputs()
        if lacking and self.teacher is not None:
            outputs = teacher_outputs(self.teacher, lacking, obs, action, task)
        elif lacking and given:
            raise ValueError(
                f"distillation_targets={', '.join(lacking)}: there is no teacher, and the batch has only "
                f"{', '.join(f'teacher_{name}' for name in given)}"
            )
        elif lacking:
            return None
        return outputs._replace(**given)

    def losses(
        self, taught: TeacherOutputs, zs: Tensor, reward_logits: Tensor, q_logits: Tensor, rho: Tensor, bins: Tensor
    ) -> dict[str, Tensor]:
        """Target -> loss, for all targets that train the model.

        Args:
            taught: what :meth:`ask` gave.
            zs: the student's imagined latents, [H+1, B, D_S].
            reward_logits: [H, B, K].
            q_logits: [Q, H, B, K].
            rho: rho^t, [H].
            bins: [K].

        Raises:
            ValueError: no PCA has been fitted, or the teacher's rewards are of too few steps.
        """
        losses = {}
        for name in self.terms:
            if name == "reward":
                losses[name] = distill_losses.reward_loss(reward_logits[0], _there(taught.reward)[0], bins)
            elif name == "reward_horizon":
                losses[name] = distill_losses.reward_horizon_loss(reward_logits, _there(taught.reward), bins, rho)
            elif name == "reward_logits":
                losses[name] = distill_losses.reward_logits_loss(
                    reward_logits[0], _there(taught.reward_logits), self.cfg.distillation_temperature
                )
            elif name == "next_state_linear":
                losses[name] = distill_losses.next_state_linear_loss(
                    zs[1], _there(taught.next_latent), _there(self.projection)
                )
            elif name == "next_state_pca":
                if self.pca is None:
                    raise ValueError("distillation_targets=next_state_pca: call agent.distillation.fit_pca first")
                losses[name] = distill_losses.next_state_pca_loss(
                    zs[1], _there(taught.next_latent), self.pca, self.cfg.simnorm_dim
                )
            elif name == "value":
                losses[name] = distill_losses.value_loss(q_logits[:, 0], _there(taught.value)[0], bins)
        return losses

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
        model = _there(self.teacher).model
        latents = torch.cat([model.encode(obs, task).cpu() for obs, task in observations])
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
        done = min(self._updates / self.cfg.steps, 1.0)
        return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[
            self.cfg.distillation_schedule
        ]

    def count(self, stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """End an update that gave these losses; returns the factor it used, unless that is constant or had no use."""
        first_loss = stats.get(f"{metric(next(iter(self.terms)))}_loss")
        factor = self.factor()
        self._updates += 1
        if first_loss is None or self.cfg.distillation_schedule == "constant":
            return {}
        if self.cfg.distillation_schedule == "gap":
            self._loss = torch.lerp(self._loss, first_loss, 1 / min(self._updates, GAP_UPDATES))
            if self._updates <= GAP_UPDATES:
                self._first_loss = self._loss
        on_device = factor if isinstance(factor, Tensor) else torch.full((), factor, device=self._device)
        return {"distillation_factor": on_device}

    def state(self) -> dict[str, Any]:
        """What the next update depends on, besides the teacher."""
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


def metric(target: str) -> str:
    """Name of a target's loss among the losses of an update: ``distillation`` for ``reward``, the reference's."""
    return "distillation" if target == "reward" else f"distillation_{target}"


def _given(batch: Any, name: str) -> Tensor | None:
    value = batch.get(name, None) if hasattr(batch, "get") else getattr(batch, name, None)
    return value if isinstance(value, Tensor) else None  # a TensorDict wraps None into an object of its own


def _there(what: T | None) -> T:
    assert what is not None
    return what
