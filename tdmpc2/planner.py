"""MPPI planning as a function of (model, latents, plan state): docs/algorithm.md, "Planning".

Nothing is kept between calls and no randomness is hidden: the caller passes the previous plan's mean and a
:class:`PlanNoise`. E environments, H horizon, S samples, P policy samples, A actions, D latent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.nn.math import decode
from tdmpc2.nn.world_model import TaskContext, WorldModel, draw_heads


class PlanNoise(NamedTuple):
    """All random numbers of one plan."""

    policy: Tensor  # [H, E, P, A] standard normal, for the policy rollouts
    samples: Tensor  # [iterations, E, H, S - P, A] standard normal, for the Gaussian samples
    value: Tensor  # [iterations, E, S, A] standard normal, for the action of the terminal value
    heads: Tensor  # [iterations, 2] Q heads of the terminal value
    elite: Tensor  # [E, num_elites] Gumbel, for the choice of the executed elite
    action: Tensor  # [E, A] standard normal, for exploration

    def for_envs(self, rows: slice) -> PlanNoise:
        """Select the random numbers of some of the environments."""
        return PlanNoise(
            self.policy[:, rows].contiguous(),
            self.samples[:, rows].contiguous(),
            self.value[:, rows].contiguous(),
            self.heads,
            self.elite[rows],
            self.action[rows],
        )

    def of_iteration(self, i: int) -> IterationNoise:
        """Select the random numbers of iteration ``i``."""
        return IterationNoise(self.samples[i], self.value[i], self.heads[i])


class IterationNoise(NamedTuple):
    """The random numbers of one iteration: :class:`PlanNoise` without the iteration axis."""

    samples: Tensor  # [E, H, S - P, A]
    value: Tensor  # [E, S, A]
    heads: Tensor  # [2]


class Iteration(NamedTuple):
    """The result of one MPPI iteration."""

    mean: Tensor  # [E, H, A]
    std: Tensor  # [E, H, A]
    value: Tensor  # [E, S] value of every sample
    elite_value: Tensor  # [E, num_elites], descending
    score: Tensor  # [E, num_elites], sums to one
    elite_actions: Tensor  # [E, H, num_elites, A]


class Plan(NamedTuple):
    """The result of planning."""

    action: Tensor  # [E, A]
    mean: Tensor  # [E, H, A]: the plan state, pass it to the next call
    last: Iteration


IterationFn = Callable[[WorldModel, Tensor, TaskContext, Tensor, Tensor, Tensor, IterationNoise], Iteration]
RolloutFn = Callable[[WorldModel, Tensor, TaskContext, Tensor], Tensor]


def draw_noise(cfg: Config, num_envs: int, device: torch.device, generator: torch.Generator | None) -> PlanNoise:
    """Draw the random numbers of one plan of ``num_envs`` environments, on the device."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float32, device=device, generator=generator)

    iterations, samples, policy = cfg.plan_iterations, cfg.num_samples, cfg.num_pi_trajs
    uniform = torch.rand(num_envs, cfg.num_elites, dtype=torch.float32, device=device, generator=generator)
    return PlanNoise(
        policy=normal(cfg.horizon, num_envs, policy, cfg.action_dim),
        samples=normal(iterations, num_envs, cfg.horizon, samples - policy, cfg.action_dim),
        value=normal(iterations, num_envs, samples, cfg.action_dim),
        heads=torch.stack([draw_heads(cfg.num_q, device, generator) for _ in range(iterations)]),
        elite=-torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7))),
        action=normal(num_envs, cfg.action_dim),
    )


def plan(
    model: WorldModel,
    z: Tensor,
    task: TaskContext,
    prev_mean: Tensor,
    noise: PlanNoise,
    *,
    eval_mode: bool,
    iteration_fn: IterationFn | None = None,
    rollout_fn: RolloutFn | None = None,
) -> Plan:
    """Plan one action for each of E environments (docs/algorithm.md, "Planning").

    Args:
        model: world model; its configuration holds the planner's settings.
        z: encoded observations, [E, D].
        task: context of each environment's task.
        prev_mean: plan state of the previous call, already zero where an episode starts, [E, H, A]; not read where
            ``plan_start`` is ``policy``.
        noise: see :func:`draw_noise`.
        eval_mode: without exploration noise on the executed action.
        iteration_fn: faster replacement of :func:`iteration`.
        rollout_fn: faster replacement of :func:`policy_rollout`.
    """
    cfg = model.cfg
    task = task.unsqueeze(1)
    rollout = rollout_fn or policy_rollout
    if cfg.plan_start == "policy":  # one more rollout, without noise
        eps = torch.cat([torch.zeros_like(noise.policy[:, :, :1]), noise.policy], 2)
        actions = rollout(model, z, task, eps)
        mean, policy_actions = actions[:, :, 0], actions[:, :, 1:]
    else:
        policy_actions = rollout(model, z, task, noise.policy)
        mean = torch.cat([prev_mean[:, 1:], torch.zeros_like(prev_mean[:, :1])], 1)
    std = torch.full_like(mean, cfg.max_std)
    for i in range(cfg.plan_iterations):
        last = (iteration_fn or iteration)(model, z, task, mean, std, policy_actions, noise.of_iteration(i))
        mean, std = last.mean, last.std

    if cfg.plan_action == "mean":
        action = mean[:, 0]  # [E, A]
    else:
        elite = (last.score.log() + noise.elite).argmax(-1)  # [E]
        action = last.elite_actions[torch.arange(len(z), device=z.device), 0, elite]  # [E, A]
    if not eval_mode:
        action = action + std[:, 0] * noise.action
    return Plan(action.clamp(-1, 1), mean, last)


def policy_rollout(model: WorldModel, z: Tensor, task: TaskContext, eps: Tensor) -> Tensor:
    """Roll the policy prior through the dynamics.

    Args:
        z: [E, D].
        task: context broadcastable to [E, P].
        eps: standard normal, [H, E, P, A].

    Returns:
        Actions [E, H, P, A].
    """
    z = z.unsqueeze(1).expand(-1, eps.shape[2], -1)  # [E, P, D]
    actions = []
    for t, step_eps in enumerate(eps):
        actions.append(model.pi(z, task, step_eps)[0])
        if t + 1 < len(eps):
            z = model.next(z, actions[-1], task)
    return torch.stack(actions, 1)


def iteration(
    model: WorldModel,
    z: Tensor,
    task: TaskContext,
    mean: Tensor,
    std: Tensor,
    policy_actions: Tensor,
    noise: IterationNoise,
) -> Iteration:
    """Sample around (mean, std), evaluate the samples and refit to the elites.

    Args:
        z: [E, D].
        task: context broadcastable to [E, S].
        mean: [E, H, A].
        std: [E, H, A].
        policy_actions: rollouts of the policy prior, which are samples as well, [E, H, P, A].
        noise: the random numbers of this iteration.
    """
    actions = sample_actions(task, mean, std, policy_actions, noise)
    value = estimate_value(model, z, task, actions, noise.value, noise.heads)
    return refit(model.cfg, actions, value, task.action_mask)


def sample_actions(
    task: TaskContext, mean: Tensor, std: Tensor, policy_actions: Tensor, noise: IterationNoise
) -> Tensor:
    """Draw action sequences around (mean, std) and put them behind the policy's, [E, H, S, A]."""
    samples = (mean.unsqueeze(2) + std.unsqueeze(2) * noise.samples).clamp(-1, 1)
    actions = torch.cat([policy_actions, samples], 2)
    return actions if task.action_mask is None else actions * task.action_mask.unsqueeze(1)


def refit(cfg: Config, actions: Tensor, value: Tensor, mask: Tensor | None) -> Iteration:
    """Fit mean and standard deviation to the elites, weighted by value.

    Args:
        actions: [E, H, S, A].
        value: [E, S].
        mask: action mask [E, 1, A] or None.
    """
    elite_value, index = value.topk(cfg.num_elites, -1)
    gather = index[:, None, :, None].expand(-1, actions.shape[1], -1, actions.shape[-1])
    elite_actions = actions.gather(2, gather)  # [E, H, K, A]
    score = torch.exp(cfg.temperature * (elite_value - elite_value[:, :1]))
    score = score / score.sum(-1, keepdim=True)
    weight = score[:, None, :, None]
    norm = weight.sum(2) + 1e-9
    mean = (weight * elite_actions).sum(2) / norm
    variance = (weight * (elite_actions - mean.unsqueeze(2)).square()).sum(2) / norm
    std = variance.sqrt().clamp(cfg.min_std, cfg.max_std)
    if mask is not None:
        mean, std = mean * mask, std * mask
    return Iteration(mean, std, value, elite_value, score, elite_actions)


def estimate_value(
    model: WorldModel, z: Tensor, task: TaskContext, actions: Tensor, eps: Tensor, heads: Tensor
) -> Tensor:
    """Add up discounted model rewards and the terminal value of action sequences (docs/algorithm.md, "Planning").

    Args:
        z: [E, D].
        task: context broadcastable to [E, S].
        actions: [E, H, S, A].
        eps: standard normal for the terminal action, [E, S, A].
        heads: the two Q heads to average, [2].

    Returns:
        [E, S]; NaN becomes 0 and infinities the largest finite values.
    """
    return torch.nan_to_num(predicted_return(model, z, task, actions, eps, heads), nan=0.0)


def predicted_return(
    model: WorldModel, z: Tensor, task: TaskContext, actions: Tensor, eps: Tensor, heads: Tensor
) -> Tensor:
    """Compute what :func:`estimate_value` does, without replacing NaN and infinities."""
    total, weight, z = imagined_return(model, z, task, actions)
    action, _ = model.pi(z, task, eps)
    value = model.Q(z, action, task, "avg", heads=heads).squeeze(-1)
    return total + weight * value


def imagined_return(model: WorldModel, z: Tensor, task: TaskContext, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Add up the discounted model rewards of action sequences.

    Args:
        z: [E, D].
        task: context broadcastable to [E, S].
        actions: [E, H, S, A].

    Returns:
        The sums [E, S], the weight of what follows, broadcastable to [E, S], and the latents after the last step
        [E, S, D].
    """
    z = z.unsqueeze(1)  # [E, 1, D] at the first step: its products are shared by all samples
    total = torch.zeros_like(actions[:, 0, :, 0])
    discount = task.discount.squeeze(-1)  # broadcastable to [E, S]
    weight = torch.ones_like(discount)
    for t in range(actions.shape[1]):
        action = actions[:, t]
        total = total + weight * decode(model.reward(z, action, task), model.bins).squeeze(-1)
        z = model.next(z, action, task)
        weight = weight * discount
        if model.cfg.episodic:  # nothing more comes after a step that ends the episode
            weight = weight * (model.termination(z, task).squeeze(-1) <= 0)
    return total, weight, z
