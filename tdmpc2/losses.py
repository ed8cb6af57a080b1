"""The losses of one update, top to bottom: pure functions that torch.compile takes as they stand.

They never synchronise with the device. Values that change between updates are tensors, since torch.compile would
compile again for each new Python number. H horizon, B batch, A action, D latent, K bins, Q heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.distillation.distillation import Distillation
from tdmpc2.distillation.ranking import sequence_values, sequences
from tdmpc2.distillation.targets import StudentOutputs, StudentPolicy, TeacherOutputs, loss_name
from tdmpc2.distributed import ProcessGroup
from tdmpc2.nn.math import soft_cross_entropy, squashed_entropy, updated_scale, updated_task_scales
from tdmpc2.nn.world_model import TaskContext, WorldModel
from tdmpc2.noise import UpdateNoise


class ModelLosses(NamedTuple):
    """The unweighted losses of world model and Q heads, each 0-d."""

    consistency: Tensor
    reward: Tensor
    value: Tensor
    distilled: dict[str, Tensor]  # by target; empty without a teacher
    termination: TerminationLoss | None  # None unless the model is episodic

    def total(self, cfg: Config, distilled: Tensor | float = 0.0) -> Tensor:
        """Add up the losses, each times its coefficient; ``distilled`` has its weights already."""
        total = cfg.consistency_coef * self.consistency + cfg.reward_coef * self.reward + cfg.value_coef * self.value
        total = total + distilled
        return total if self.termination is None else total + cfg.termination_coef * self.termination.loss

    def named(self) -> dict[str, Tensor]:
        """Name the losses as the log does, and what else is known of the termination head."""
        named = {"consistency_loss": self.consistency, "reward_loss": self.reward, "value_loss": self.value}
        named |= {f"{loss_name(target)}_loss": value for target, value in self.distilled.items()}
        if self.termination is not None:
            named |= {f"termination_{name}": value for name, value in self.termination._asdict().items()}
        return named


class TerminationLoss(NamedTuple):
    """The loss of the termination head, and how good it is, each 0-d."""

    loss: Tensor
    rate: Tensor  # share of the slices that end in a termination
    f1: Tensor  # of predicting these, at threshold 0.5


class PolicyLoss(NamedTuple):
    """The loss of the policy prior and what else is known after it."""

    loss: Tensor  # 0-d
    scale: Tensor  # the new running range of values, 0-d, or [T] if each of T tasks has its own
    first_step: StudentPolicy  # the policy at the first step, for its distillation
    cloning: Tensor | None  # 0-d, unweighted; None without demonstrations to imitate


def td_target(
    model: WorldModel,
    next_z: Tensor,
    reward: Tensor,
    task: TaskContext,
    noise: UpdateNoise,
    terminated: Tensor | None = None,
) -> Tensor:
    """Compute ``r + discount * min of two target heads`` at the policy's action, [H, B, 1].

    Nothing follows a step that terminated [H, B, 1]. docs/algorithm.md, "TD target".
    """
    action, _ = model.pi(next_z, task, noise.target_eps)
    value = model.Q(next_z, action, task, "min", target=True, heads=noise.target_heads)
    if terminated is not None:
        value = (1 - terminated) * value
    return reward + task.discount * value


def termination_loss(logit: Tensor, terminated: Tensor) -> TerminationLoss:
    """Compute the loss of the termination head (docs/algorithm.md, "Episodic tasks").

    Args:
        logit: of the imagined latents after each step, [H, B, 1].
        terminated: 1 where the step terminated, else 0, [H, B, 1].
    """
    predicted, actual = (logit[-1] > 0).float(), terminated[-1]
    hits = (predicted * actual).sum()
    precision, recall = hits / (predicted.sum() + 1e-9), hits / (actual.sum() + 1e-9)
    f1 = 2 * precision * recall / (precision + recall + 1e-9)
    return TerminationLoss(F.binary_cross_entropy_with_logits(logit, terminated), actual.mean(), f1)


def model_losses(
    model: WorldModel,
    distillation: Distillation,
    batch: Batch,
    task: TaskContext,
    noise: UpdateNoise,
    teacher: TeacherOutputs | None,
) -> tuple[ModelLosses, Tensor]:
    """Compute the unweighted losses of world model and Q heads (docs/algorithm.md, "Update").

    Args:
        model: the student.
        distillation: its targets.
        batch: obs [H+1, B, O] or images [H+1, B, C, 64, 64], action [H, B, A], reward [H, B, 1]; for an episodic model
            terminated [H, B, 1].
        task: of the rows; the embedding is trained.
        noise: the random numbers of the update.
        teacher: its outputs for the batch; None: nothing is distilled.

    Returns:
        The losses, and the imagined latents [H+1, B, D] as constants.
    """
    with torch.no_grad():
        next_z = model.encode(batch.obs[1:], task, None if noise.shift is None else noise.shift[1:])  # [H, B, D]
        ended = batch.terminated if model.cfg.episodic else None
        target = td_target(model, next_z, batch.reward, task, noise, ended)

    z = [model.encode(batch.obs[0], task, None if noise.shift is None else noise.shift[0])]
    for t, action in enumerate(batch.action):
        z.append(model.next(z[t], action, task))
    zs = torch.stack(z)  # [H+1, B, D]
    reward_logits = model.reward(zs[:-1], batch.action, task)  # [H, B, K]
    q_logits = model.Q(zs[:-1], batch.action, task, "all", dropout_mask=noise.value_dropout)  # [Q, H, B, K]

    ranking = None
    if teacher is not None and teacher.ranking is not None:
        assert noise.offsets is not None
        step = noise.offsets.shape[2]  # every so many slices give a state
        states = task if task.embedding is None else task.for_rows(slice(None, None, step))
        actions = sequences(batch.action, noise.offsets)
        ranking = sequence_values(model, z[0][::step], actions, states, noise.policy_heads)

    rho = model.rho[:-1]
    losses = ModelLosses(
        consistency=(rho * (zs[1:] - next_z).square().mean((1, 2))).mean(),
        reward=(rho * soft_cross_entropy(reward_logits, batch.reward, model.bins).mean((1, 2))).mean(),
        value=(rho * soft_cross_entropy(q_logits, target, model.bins).mean((2, 3))).mean(),
        distilled=distillation.losses(StudentOutputs(zs, reward_logits, q_logits, ranking), teacher, model),
        termination=None if ended is None else termination_loss(model.termination(zs[1:], task), ended),
    )
    return losses, zs.detach()


def policy_loss(
    model: WorldModel,
    group: ProcessGroup,
    zs: Tensor,
    task: TaskContext,
    noise: UpdateNoise,
    scale: Tensor,
    batch: Batch | None = None,
) -> PolicyLoss:
    """Compute the loss of the policy prior on constant latents zs [H+1, B, D] (docs/algorithm.md, "Policy prior").

    If the batch has demonstrations, the policy also imitates their actions. With one scale for each task, [T], the
    batch tells which task each row is of. The Q weights and the task embedding are constants here, so that no gradient
    is left in them for the next update. The distance to a teacher's policy is another loss, in
    ``distillation/losses.py``.
    """
    cfg = model.cfg
    action, info = model.pi(zs, task, noise.policy_eps)
    value = model.Q(
        zs, action, task, "avg", heads=noise.policy_heads, dropout_mask=noise.policy_dropout, detach=True
    )  # [H+1, B, 1]
    values = group.gather(value[0].detach())  # [N B, 1], of all N processes
    if scale.ndim:
        assert batch is not None
        scale = updated_task_scales(scale, values, group.gather(batch.task), cfg.tau)
        divisor = scale[batch.task].unsqueeze(-1)  # [B, 1]
    else:
        divisor = scale = updated_scale(scale, values, cfg.tau)
    if cfg.policy_loss == "squashed":
        entropy = squashed_entropy(info["presquash_mean"], info["log_std"], noise.policy_eps, task.action_mask)
    else:
        entropy = -info["log_prob"] if cfg.policy_loss == "opt" else info["scaled_entropy"]
    loss = -(model.rho * (cfg.entropy_coef * entropy + value / divisor).mean((1, 2))).mean()
    cloning = None
    if batch is not None and batch.demonstrated is not None:
        count = batch.demonstrated.sum()
        group.average([count])  # of one process's rows, all may be demonstrations or none
        cloning = cloning_loss(model, action[:-1], batch.action, batch.demonstrated[0], task, count)
        loss = loss + cfg.bc_coef * cloning
    first_step = StudentPolicy(info["presquash_mean"][0], info["log_std"][0], task.action_mask)
    return PolicyLoss(loss, scale, first_step, cloning)


def cloning_loss(
    model: WorldModel, action: Tensor, shown: Tensor, demonstrated: Tensor, task: TaskContext, count: Tensor
) -> Tensor:
    """Compute how far the policy's actions are from those of demonstrations (docs/algorithm.md, "Policy prior").

    Args:
        model: has the weights of the steps.
        action: the policy's samples, [H, B, A].
        shown: actions of the data, [H, B, A].
        demonstrated: 1 where the slice is of a demonstration, else 0, [B, 1].
        task: of the rows; entries of an action that a task does not have do not count.
        count: number of slices of demonstrations, 0-d, averaged over the processes.
    """
    own = torch.ones_like(action[0]) if task.action_mask is None else task.action_mask  # [B, A]
    error = ((action - shown) * own).square().sum(-1) / own.sum(-1)  # [H, B]
    weight = demonstrated[:, 0] / count.clamp(min=torch.finfo(count.dtype).tiny)  # 0 if there are none
    return (model.rho[:-1] * (error * weight).sum(1)).mean()
