"""The loss of each distillation target: pure functions of the student's and the teacher's outputs.

``mask`` is 1 for the rows that have a teacher and 0 for the others, [B, 1]; None: all have one. H horizon, B batch,
A action, D_S and D_T latent sizes of student and teacher, K bins, Q heads, N states, S sequences.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tdmpc2.distillation.projection import PCA
from tdmpc2.nn.layers import Linear
from tdmpc2.nn.math import decode, soft_cross_entropy

#: Share of a value, plus 10, that is too little to tell two of them apart. Of large values it is a fortieth of the
#: distance between two of the default bins.
LEAST_SPREAD = 0.005


def of_taught(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Keep the losses of rows that have a teacher and set the others to 0, [..., B, 1].

    Their mean is still over all B rows: a row counts as much whichever other rows are in its batch, and the losses of
    several processes average to that of the whole batch.
    """
    return rows if mask is None else rows * mask


def reward_loss(student_logits: Tensor, teacher_value: Tensor, bins: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of decoded rewards, in raw reward units.

    Args:
        student_logits: the student's reward logits of the first step, [B, K].
        teacher_value: the teacher's decoded reward, [B, 1].
    """
    return of_taught((decode(student_logits, bins) - teacher_value).square(), mask).mean()


def reward_horizon_loss(
    student_logits: Tensor, teacher_value: Tensor, bins: Tensor, rho: Tensor, mask: Tensor | None = None
) -> Tensor:
    """``1/H sum_t rho^t MSE_t`` of decoded rewards, in raw reward units, normalised like the reward loss.

    Args:
        student_logits: reward logits on the student's imagined latents z_0 to z_{H-1}, [H, B, K].
        teacher_value: the teacher's decoded reward at its encoding of the real observations, [H, B, 1].
        rho: rho^t, [H].

    Raises:
        ValueError: the teacher's rewards are of fewer steps.
    """
    if len(teacher_value) < len(student_logits):
        raise ValueError(
            f"distillation_targets=reward_horizon needs the teacher's reward of {len(student_logits)} steps, but "
            f"teacher_reward has {len(teacher_value)}"
        )
    error = decode(student_logits, bins) - teacher_value[: len(student_logits)]
    return (rho * of_taught(error.square(), mask).mean((1, 2))).mean()


def reward_logits_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """``T^2 CE(softmax(teacher / T), softmax(student / T))`` (Hinton et al. 2015), mean over the batch.

    T^2 keeps the size of the gradient at any temperature. The least the loss can be is T^2 times the teacher's entropy.

    Args:
        student_logits: the student's reward logits of the first step, [B, K].
        teacher_logits: the teacher's, on the same bins, [B, K].
    """
    target = torch.softmax(teacher_logits / temperature, -1)
    cross_entropy = (target * torch.log_softmax(student_logits / temperature, -1)).sum(-1, keepdim=True)
    return -of_taught(cross_entropy, mask).mean() * temperature**2


def next_state_linear_loss(z: Tensor, teacher_z: Tensor, projection: Linear) -> Tensor:
    """Mean squared error of the projected latent, over batch and D_T.

    Args:
        z: the student's first predicted latent z_1, [B, D_S].
        teacher_z: the teacher's encoding of the second observation, [B, D_T].
        projection: trained with the student, [B, D_S] -> [B, D_T].
    """
    return F.mse_loss(projection(z), teacher_z)


def next_state_pca_loss(z: Tensor, teacher_z: Tensor, pca: PCA, group: int) -> Tensor:
    """Mean squared error to the teacher's latent in the student's space, over batch and D_S.

    The teacher's leading principal components are put through the student's SimNorm: a student's latent lies on
    simplices, which the components themselves do not.

    Args:
        z: the student's first predicted latent z_1, [B, D_S].
        teacher_z: the teacher's encoding of the second observation, [B, D_T].
        pca: fitted before training, D_T -> D_S.
        group: the student's ``simnorm_dim``.
    """
    return F.mse_loss(z, pca.project(teacher_z, group))


def value_loss(q_logits: Tensor, teacher_value: Tensor, bins: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy with the two-hot of the teacher's value, mean over heads and batch, as in the value loss.

    Args:
        q_logits: logits of all the student's heads at the first step, [Q, B, K].
        teacher_value: the teacher's decoded value of the same observation and action, [B, 1].
    """
    return of_taught(soft_cross_entropy(q_logits, teacher_value, bins), mask).mean()


def value_horizon_loss(q_logits: Tensor, teacher_value: Tensor, bins: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute :func:`value_loss` on the imagined latents of all H steps, every step alike.

    The value at the first step alone leaves open what the heads say of imagined latents, which planning reads. z_H,
    with whose value a plan ends, is not taught: the batch has no action for it.

    Args:
        q_logits: logits of all the student's heads on its imagined latents z_0 to z_{H-1}, [Q, H, B, K].
        teacher_value: the teacher's decoded value at its encoding of the real observations, [H, B, 1].

    Raises:
        ValueError: the teacher's values are of fewer steps.
    """
    steps = q_logits.shape[1]
    if len(teacher_value) < steps:
        raise ValueError(
            f"distillation_targets=value_horizon needs the teacher's value of {steps} steps, but "
            f"teacher_value has {len(teacher_value)}"
        )
    return value_loss(q_logits, teacher_value[:steps], bins, mask)


def ranking_loss(values: Tensor, teacher_values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Huber loss of the differences between the values of one state's sequences, in units of how much they differ.

    Each state counts about alike, however much its sequences differ; what they have in common is no part of it. The
    unit is the sum of both standard deviations and of what is too little to tell apart, :data:`LEAST_SPREAD` of the
    value: without the student's own, a state in which it finds large differences and the teacher none would outweigh
    all others.

    Args:
        values: the student's, [2, N, S].
        teacher_values: the teacher's of the same sequences, [2, N, S].
        mask: of all B rows, of which every S-th gave a state.
    """
    mean = teacher_values.mean(-1, keepdim=True)
    own, theirs = values - values.mean(-1, keepdim=True), teacher_values - mean
    spread = sum(x.detach().square().mean(-1, keepdim=True).sqrt() for x in (own, theirs))
    spread = spread + LEAST_SPREAD * (mean.abs() + 10)
    error = F.huber_loss(own / spread, theirs / spread, reduction="none").mean(-1, keepdim=True)  # [2, N, 1]
    return of_taught(error, None if mask is None else mask[:: values.shape[-1]]).mean()


def plan_loss(mean: Tensor, teacher_plan: Tensor, own: Tensor | None, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of the policy's mean action and the teacher's planned one, over the task's own entries.

    Args:
        mean: of the student's policy before tanh, [B, A].
        teacher_plan: the mean action of the teacher's plan for the same observation, [B, A].
        own: 1 for the entries of an action that the row's task has, else 0, [B, A]; None: it has all.
    """
    own = torch.ones_like(mean) if own is None else own
    error = ((mean.tanh() - teacher_plan) * own).square().sum(-1, keepdim=True) / own.sum(-1, keepdim=True)
    return of_taught(error, mask).mean()


def policy_loss(
    mean: Tensor, log_std: Tensor, teacher_mean: Tensor, teacher_log_std: Tensor, mask: Tensor | None = None
) -> Tensor:
    """``KL(teacher || student)`` of the Gaussians before tanh, summed over action dimensions, mean over the batch.

    Both are zero on dimensions that a task does not have, and those add nothing. tanh is the same for both and would
    not change the divergence.

    Args:
        mean: before tanh, [B, A].
        log_std: [B, A].
        teacher_mean: [B, A].
        teacher_log_std: [B, A].
    """
    scaled = ((teacher_mean - mean) / log_std.exp()).square()
    ratio = torch.exp(2 * (teacher_log_std - log_std))
    return of_taught((log_std - teacher_log_std + (ratio + scaled - 1) / 2).sum(-1, keepdim=True), mask).mean()
