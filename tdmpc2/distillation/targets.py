"""The distillation targets: one row each, read by the configuration, the losses, the teacher and the caches.

H horizon, B batch, A action, D_S and D_T latent sizes of student and teacher, K bins, Q heads, N states, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import Tensor

from tdmpc2.distillation import losses
from tdmpc2.distillation.projection import PCA
from tdmpc2.nn.layers import Linear


class StudentOutputs(NamedTuple):
    """The student's side of the targets that train the model."""

    zs: Tensor  # imagined latents, [H+1, B, D_S]
    reward_logits: Tensor  # [H, B, K]
    q_logits: Tensor  # [Q, H, B, K]
    ranking: Tensor | None = None  # values of N states' action sequences, [2, N, S]


class StudentPolicy(NamedTuple):
    """The student's side of the targets that train the policy prior, at the first step."""

    mean: Tensor  # before tanh, [B, A]
    log_std: Tensor  # [B, A]
    own: Tensor | None = None  # 1 for the entries of an action that the row's task has, else 0, [B, A]; None: all


class TeacherOutputs(NamedTuple):
    """The teacher's side; None where no target needs an output."""

    reward: Tensor | None = None  # decoded, [1 to H, B, 1]
    reward_logits: Tensor | None = None  # of the first step, [B, K]
    value: Tensor | None = None  # decoded, the mean of all heads, [1 to H, B, 1]
    next_latent: Tensor | None = None  # encoding of the second observation, [B, D_T]
    policy: tuple[Tensor, Tensor] | None = None  # mean before tanh and log standard deviation, [B, A], first step
    plan: Tensor | None = None  # mean action of its plans, [1 to H, B, A]
    ranking: Tensor | None = None  # values of N states' action sequences, [2, N, S]
    mask: Tensor | None = None  # 1 for rows whose task has a teacher, else 0, [B, 1]; None: all have one


class Constants(NamedTuple):
    """Everything else that a loss may read."""

    rho: Tensor  # rho^t, [H]
    bins: Tensor  # [K]
    temperature: float
    simnorm_dim: int
    projection: Linear | None = None
    pca: PCA | None = None


@dataclass(frozen=True)
class Target:
    """A quantity that the student learns from its teacher.

    Attributes:
        summary: its line in the documentation.
        needs: the field of :class:`TeacherOutputs` that it needs.
        loss: of :class:`StudentOutputs` (or :class:`StudentPolicy`), :class:`TeacherOutputs` and :class:`Constants`.
        cached_as: the column of a cache that can stand for the teacher; None: it would take too much
            room, or each update asks about other actions.
        live: the teacher can be run during an update. If false, that would take too long, and a cache is required.
        all_steps: it needs the teacher at all H steps, not only at the first.
        trains: the parameters it trains, ``model`` or ``policy``.
    """

    summary: str
    needs: str
    loss: Callable[[Any, Any, Constants], Tensor]
    cached_as: str | None = None
    all_steps: bool = False
    trains: str = "model"
    live: bool = True


TARGETS: dict[str, Target] = {
    "reward": Target(
        "squared error of decoded rewards at the first step: the reference's, and the default",
        needs="reward",
        loss=lambda s, t, c: losses.reward_loss(s.reward_logits[0], t.reward[0], c.bins, t.mask),
        cached_as="reward",
    ),
    "reward_horizon": Target(
        "the same along the student's imagined trajectory, weighted with rho^t",
        needs="reward",
        loss=lambda s, t, c: losses.reward_horizon_loss(s.reward_logits, t.reward, c.bins, c.rho, t.mask),
        cached_as="reward",
        all_steps=True,
    ),
    "reward_logits": Target(
        "cross-entropy of the reward distributions at the first step, softened by a temperature",
        needs="reward_logits",
        loss=lambda s, t, c: losses.reward_logits_loss(s.reward_logits[0], t.reward_logits, c.temperature, t.mask),
    ),
    "next_state_linear": Target(
        "squared error of a trained linear map of the student's first predicted latent to the teacher's latent",
        needs="next_latent",
        loss=lambda s, t, c: losses.next_state_linear_loss(s.zs[1], t.next_latent, cast(Linear, c.projection)),
    ),
    "next_state_pca": Target(
        "squared error of that latent to the teacher's, brought to the student's size by a fitted PCA",
        needs="next_latent",
        loss=lambda s, t, c: losses.next_state_pca_loss(s.zs[1], t.next_latent, cast(PCA, c.pca), c.simnorm_dim),
    ),
    "value": Target(
        "cross-entropy of all Q heads at the first step with the teacher's decoded value",
        needs="value",
        loss=lambda s, t, c: losses.value_loss(s.q_logits[:, 0], t.value[0], c.bins, t.mask),
        cached_as="value",
    ),
    "value_horizon": Target(
        "the same along the student's imagined trajectory, every step alike",
        needs="value",
        loss=lambda s, t, c: losses.value_horizon_loss(s.q_logits, t.value, c.bins, t.mask),
        cached_as="value",
        all_steps=True,
    ),
    "ranking": Target(
        "differences of the values of eight action sequences in one state, both models imagining them",
        needs="ranking",
        loss=lambda s, t, c: losses.ranking_loss(s.ranking, t.ranking, t.mask),
    ),
    "policy": Target(
        "divergence of the Gaussian policies at the first step; trains the policy prior",
        needs="policy",
        loss=lambda s, t, c: losses.policy_loss(s.mean, s.log_std, t.policy[0], t.policy[1], t.mask),
        cached_as="policy",
        trains="policy",
    ),
    "plan": Target(
        "squared error of the policy's mean action and the teacher's planned one, of a cache; trains the policy prior",
        needs="plan",
        loss=lambda s, t, c: losses.plan_loss(s.mean, t.plan[0], s.own, t.mask),
        cached_as="plan",
        trains="policy",
        live=False,
    ),
}


def outputs_of(columns: Mapping[str, Tensor]) -> dict[str, Any]:
    """Bring cached columns, [1 to H, B, W] by name, to the form of :class:`TeacherOutputs`."""
    outputs: dict[str, Any] = dict(columns)
    if "policy" in columns:
        outputs["policy"] = columns["policy"][0].chunk(2, -1)
    return outputs


def only_cached(target: str) -> str:
    """Say why a target needs a cache, and how to make one."""
    return (
        f"distillation_targets={target} is learned from a cache alone, since planning in every update would take many "
        "times as long as the update. Make it with "
        f"`tdmpc2 targets DATA_DIR TEACHER columns={TARGETS[target].cached_as}` and train with distillation_cache=full"
    )


def only_offline(target: str) -> str:
    """Say why a run that learns online cannot have a target that needs a cache."""
    return (
        f"distillation_targets={target} needs what is made beforehand for stored episodes, and mode=online plays new "
        "ones: store what it has played (`tdmpc2 data from-run`) and learn the target with mode=offline"
    )


def loss_name(target: str) -> str:
    """Name a target's loss among the losses of an update: ``distillation`` for ``reward``, as in the reference."""
    return "distillation" if target == "reward" else f"distillation_{target}"
