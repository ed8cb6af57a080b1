"""The losses of one update, top to bottom: functions of tensors that are compiled as they stand.

They wait for no device, and have nothing that differs between updates but tensors (a number would be compiled in).
H horizon, B batch, O observation, A action, D latent, K bins, Q heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tdmpc2.distillation import distillation as distill
from tdmpc2.distillation import losses as distill_losses
from tdmpc2.distributed import ProcessGroup
from tdmpc2.nn.math import soft_cross_entropy, updated_scale
from tdmpc2.nn.world_model import TaskContext, WorldModel
from tdmpc2.noise import UpdateNoise


def td_target(
    model: WorldModel, next_z: Tensor, reward: Tensor, discount: Tensor, context: TaskContext, noise: UpdateNoise
) -> Tensor:
    """``r + discount * min of two target heads`` at the policy's action, [H, B, 1] (section 8)."""
    action, _ = model.pi(next_z, context, noise.target_eps)
    value = model.Q(next_z, action, context, "min", target=True, heads=noise.target_heads)
    return reward + discount * value


def model_losses(
    model: WorldModel,
    distillation: distill.Distillation,
    rho: Tensor,
    obs: Tensor,
    action: Tensor,
    reward: Tensor,
    discount: Tensor,
    context: TaskContext,
    noise: UpdateNoise,
    taught: distill.TeacherOutputs | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """What trains everything but the policy (section 9, steps 1 to 5, and section 10), without coefficients.

    Args:
        model: the student.
        distillation: its targets.
        rho: rho^t, [H+1].
        obs: [H+1, B, O].
        action: [H, B, A].
        reward: [H, B, 1].
        discount: of the rows' tasks, [B, 1] or [1].
        context: of the rows' tasks; the embedding is trained.
        noise: the random numbers of the update.
        taught: what the teacher says of the batch; None: nothing is distilled.

    Returns:
        Name -> loss, each 0-d, and the imagined latents [H+1, B, D] as constants.
    """
    with torch.no_grad():
        next_z = model.encode(obs[1:], context)  # [H, B, D]
        target = td_target(model, next_z, reward, discount, context, noise)

    z = [model.encode(obs[0], context)]
    for t in range(len(action)):
        z.append(model.next(z[t], action[t], context))
    zs = torch.stack(z)  # [H+1, B, D]
    reward_logits = model.reward(zs[:-1], action, context)  # [H, B, K]
    q_logits = model.Q(zs[:-1], action, context, "all", dropout_mask=noise.value_dropout)  # [Q, H, B, K]

    losses = {
        "consistency": (rho[:-1] * (zs[1:] - next_z).square().mean((1, 2))).mean(),
        "reward": (rho[:-1] * soft_cross_entropy(reward_logits, reward, model.bins).mean((1, 2))).mean(),
        "value": (rho[:-1] * soft_cross_entropy(q_logits, target, model.bins).mean((2, 3))).mean(),
    }
    if taught is not None:
        distilled = distillation.losses(taught, zs, reward_logits, q_logits, rho[:-1], model.bins)
        losses |= {distill.metric(name): loss for name, loss in distilled.items()}
    return losses, zs.detach()


class PolicyLoss(NamedTuple):
    """Each 0-d."""

    loss: Tensor
    divergence: Tensor | None  # from the teacher's policy, if that is distilled
    scale: Tensor  # the new running range of values


def policy_loss(
    model: WorldModel,
    group: ProcessGroup,
    rho: Tensor,
    zs: Tensor,
    context: TaskContext,
    noise: UpdateNoise,
    scale: Tensor,
    taught: distill.TeacherOutputs | None,
) -> PolicyLoss:
    """What trains the policy prior on constant latents zs [H+1, B, D] (section 9.1).

    The Q weights and the task embedding are constants here, so no gradient is left in them for the next update.
    """
    cfg = model.cfg
    action, info = model.pi(zs, context, noise.policy_eps)
    value = model.Q(
        zs, action, context, "avg", heads=noise.policy_heads, dropout_mask=noise.policy_dropout, detach=True
    )  # [H+1, B, 1]
    scale = updated_scale(scale, group.gather(value[0].detach()), cfg.tau)
    entropy = -info["log_prob"] if cfg.policy_loss == "opt" else info["scaled_entropy"]
    loss = -(rho * (cfg.entropy_coef * entropy + value / scale).mean((1, 2))).mean()
    divergence = None
    if taught is not None and taught.policy is not None:
        divergence = distill_losses.policy_loss(info["presquash_mean"][0], info["log_std"][0], *taught.policy)
    return PolicyLoss(loss, divergence, scale)
