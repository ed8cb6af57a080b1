"""Regret: the value lost by planning with another model, as the float32 model sees it.

Actions of two precisions cannot be compared: the executed elite is drawn (docs/algorithm.md, "Planning"), so the last
bit of a sum can change it. The float32 model's value of the mean sequence of either plan can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tdmpc2 import planner
from tdmpc2.config import Config
from tdmpc2.nn.world_model import TaskContext, WorldModel
from tdmpc2.planner import Iteration, Plan, PlanNoise

PlanFn = Callable[..., Plan]


def plan_regret(
    reference: WorldModel,
    other: WorldModel,
    obs: Tensor,
    task: Tensor | None,
    *,
    seed: int = 0,
    plan_fn: PlanFn = planner.plan,
) -> Tensor:
    """:func:`plan_regrets` of one model, [E]."""
    return plan_regrets(reference, [other], obs, task, seed=seed, plan_fn=plan_fn)[0]


@torch.no_grad()
def plan_regrets(
    reference: WorldModel,
    others: Sequence[WorldModel],
    obs: Tensor,
    task: Tensor | None,
    *,
    seed: int = 0,
    plan_fn: PlanFn = planner.plan,
) -> Tensor:
    """Compute regrets: the value of the reference's own plan minus that of other models' plans, under the reference.

    All plans start an episode and use the same random numbers, as far as their budgets have them in common. The value
    of a mean is the reference's: its rewards, then all Q heads at the policy's mean action. The unit is the standard
    deviation of the values of the reference's first iteration, which are those of actions drawn at random.

    Args:
        reference: the float32 model; plans with the settings of its configuration, uncompiled.
        others: the same model in other precisions, or with another planning budget in their configurations.
        obs: [E, O]; memory is that of planning for E environments at once.
        task: ids [E]; None for single-task models.
        seed: of the random numbers.
        plan_fn: plans for ``others``: :func:`~tdmpc2.planner.plan` or a function with its arguments, such as
            :class:`~tdmpc2.acceleration.fast_planner.FastPlanner`'s.

    Returns:
        [len(others), E]; negative where the other plan is better.

    Raises:
        ValueError: another horizon: the value of more or fewer steps is that of another question.
    """
    cfg = reference.cfg
    for other in others:
        if other.cfg.horizon != cfg.horizon:
            raise ValueError(
                f"horizon={other.cfg.horizon} against the reference's horizon={cfg.horizon}: regret compares sequences "
                "of one length; compare plans of other horizons by playing (python evaluate.py)"
            )
    generator = torch.Generator(obs.device).manual_seed(seed)
    noise = planner.draw_noise(_largest([cfg, *(other.cfg for other in others)]), len(obs), obs.device, generator)
    values: list[Tensor] = []  # of every sample, in each iteration of the reference, [E, S]

    def noting(*args: Any) -> Iteration:
        result = planner.iteration(*args)
        values.append(result.value)
        return result

    def mean_of(model: WorldModel, plan: PlanFn) -> Tensor:
        context = model.context(task)
        z = model.encode(obs, context)  # observations may be bytes
        prev_mean = z.new_zeros(len(obs), cfg.horizon, cfg.action_dim)
        return plan(model, z, context, prev_mean, _part(noise, model.cfg), eval_mode=True).mean

    own = mean_of(reference, partial(planner.plan, iteration_fn=noting))
    means = torch.stack([own, *(mean_of(other, plan_fn) for other in others)], 2)  # [E, H, 1 + n, A]
    context = reference.context(task)
    value = values_of_means(reference, reference.encode(obs, context), context, means)  # [E, 1 + n]
    spread = values[0].std(-1, keepdim=True).clamp(min=torch.finfo(value.dtype).tiny)  # a new model's values are all 0
    return ((value[:, :1] - value[:, 1:]) / spread).T


def values_of_means(model: WorldModel, z: Tensor, context: TaskContext, means: Tensor) -> Tensor:
    """Value plans by what they intend to do: the model's rewards, then all Q heads at the policy's mean action.

    Args:
        model: values the plans.
        z: encoded observations, [E, D].
        context: of each environment's task.
        means: n plans of each environment, [E, H, n, A].

    Returns:
        [E, n].
    """
    eps, heads = torch.zeros_like(means[:, 0]), torch.arange(model.cfg.num_q, device=z.device)
    return planner.estimate_value(model, z, context.unsqueeze(1), means, eps, heads)


def _largest(cfgs: Sequence[Config]) -> Config:
    """The first configuration with a budget whose noise has that of every one as a part."""
    policy = max(cfg.num_pi_trajs for cfg in cfgs)
    return cfgs[0].replace(
        iterations=max(cfg.iterations for cfg in cfgs),
        num_samples=policy + max(cfg.num_samples - cfg.num_pi_trajs for cfg in cfgs),
        num_pi_trajs=policy,
        num_elites=max(cfg.num_elites for cfg in cfgs),
    )


def _part(noise: PlanNoise, cfg: Config) -> PlanNoise:
    iterations = cfg.plan_iterations
    return PlanNoise(
        noise.policy[:, :, : cfg.num_pi_trajs],
        noise.samples[:iterations, :, :, : cfg.num_samples - cfg.num_pi_trajs],
        noise.value[:iterations, :, : cfg.num_samples],
        noise.heads[:iterations],
        noise.elite[:, : cfg.num_elites],
        noise.action,
    )
