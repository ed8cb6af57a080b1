"""World models of N agents as one: every weight of theirs lies in one tensor [N, ...], and one call computes for all.

The losses and the planner are the plain ones, mapped over the first axis (``torch.vmap``). Observations and actions of
fewer numbers than the largest model's are padded with zeros. The columns of a weight that see them then have no
gradient, and the action mask takes out what the policy would say of them: to rounding, nothing changes for a model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tdmpc2 import planner
from tdmpc2.config import Config
from tdmpc2.nn.world_model import TaskContext, WorldModel

Facts = dict[str, Tensor]  # fields of a TaskContext that are there, each [N, ...]
_POLICY_HEAD = "_pi.2."  # its outputs are two halves: means, then standard deviations


class StackedModels(nn.Module):
    """N world models whose weights are views of stacked ones: what is stepped here is stepped there.

    Args:
        models: of equal configurations but for their tasks. Their weights are moved.

    Attributes:
        weights: by the models' own names, [N, ...], padded with zeros to the largest.
    """

    def __init__(self, models: Sequence[WorldModel]) -> None:
        super().__init__()
        self.models, self._call = list(models), _Call(models[0])
        self.weights: dict[str, Tensor] = {}
        for name, first in models[0].named_parameters():
            own = [model.get_parameter(name) for model in models]
            stacked = pad_stack([weight.detach() for weight in own])
            for weight, row in zip(own, stacked, strict=True):
                weight.data = row[tuple(map(slice, weight.shape))]
            self.weights[name] = stacked.requires_grad_(first.requires_grad)
        self._masks = pad_stack([model.action_masks for model in models])  # [N, tasks, A]
        self._discounts = pad_stack([model.discounts for model in models])  # [N, tasks]
        self._head_rows = _head_rows([model.cfg.action_dim for model in models], self._masks.device)

    def with_settings(self, cfg: Config) -> StackedModels:
        """Give the same weights other settings, as :meth:`tdmpc2.nn.world_model.WorldModel.with_settings`.

        Args:
            cfg: the settings; its tasks do not matter.
        """
        view = copy.copy(self)  # shares the tables of parameters and modules, of which one is to be another
        view._modules = {**self._modules, "_call": _Call(self.models[0].with_settings(cfg))}
        return view

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, Any]]:
        """Yield the stacked weights, in the order of the models' own."""
        yield from self.weights.items()

    def facts(self, ids: Tensor | None, num_envs: int = 1, *, train: bool = False) -> Facts:
        """Look up the tasks of all models, as :meth:`tdmpc2.nn.world_model.WorldModel.context`.

        Args:
            ids: of models of many tasks, [N, B].
            num_envs: rows B of models of a single task.
            train: as there.
        """
        if ids is None:
            mask, discount = self._masks.expand(-1, num_envs, -1), self._discounts.unsqueeze(-1).expand(-1, num_envs, 1)
            return {"action_mask": mask, "discount": discount}
        context = self.map(lambda model, rows: model.context(rows, train=train), ids)
        return context._asdict()

    def map(self, function: Callable[..., Any], *args: Any) -> Any:
        """Compute ``function(model, *args)`` for all models at once.

        Args:
            function: returns tensors, or tuples or dicts of them.
            args: tensors, or tuples or dicts of them, each [N, ...].
        """
        weights = dict(self.weights)
        if self._head_rows is not None:
            for name in ("weight", "bias"):
                head = weights[_POLICY_HEAD + name]
                rows = self._head_rows.view(*self._head_rows.shape, *[1] * (head.ndim - 2)).expand_as(head)
                weights[_POLICY_HEAD + name] = head.gather(1, rows)

        def of_one(own: Mapping[str, Tensor], *given: Any) -> Any:
            return functional_call(self._call, {f"model.{name}": w for name, w in own.items()}, (function, *given))

        return torch.vmap(of_one)(weights, *args)

    @torch.no_grad()
    def update_target(self, tau: float) -> None:
        """Move all target heads towards the online heads, as the models would."""
        online = [weight for name, weight in self.weights.items() if name.startswith("_Qs.")]
        target = [weight for name, weight in self.weights.items() if name.startswith("_target_Qs.")]
        torch._foreach_lerp_(target, online, tau)


class _Call(nn.Module):
    """A call of any function of a model, which ``functional_call`` can give other weights."""

    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self.model, *args)


def context_of(facts: Mapping[str, Tensor]) -> TaskContext:
    """Read what :meth:`StackedModels.facts` says of one of the models."""
    return TaskContext(facts.get("embedding"), facts["action_mask"], facts["discount"])


def plan(
    models: StackedModels, z: Tensor, task: TaskContext, prev_mean: Tensor, noise: planner.PlanNoise, *, eval_mode: bool
) -> planner.Plan:
    """Plan for E environments of each of N models, as :func:`tdmpc2.planner.plan` for one.

    Args:
        models: plan with the settings that they share.
        z: encoded observations, [N, E, D].
        task: of each environment, [N, E, ...].
        prev_mean: plan states, padded, [N, E, H, A].
        noise: padded, with a first axis N.
        eval_mode: without exploration noise.

    Returns:
        Everything with a first axis N.
    """
    facts = {name: fact for name, fact in task._asdict().items() if fact is not None}

    def of_one(model: WorldModel, z: Tensor, facts: Facts, mean: Tensor, own: tuple[Tensor, ...]) -> Any:
        return planner.plan(model, z, context_of(facts), mean, planner.PlanNoise(*own), eval_mode=eval_mode)

    found: planner.Plan = models.map(of_one, z, facts, prev_mean, tuple(noise))
    return found


def clip_each(gradients: Sequence[Tensor], limit: float) -> Tensor:
    """Clip the gradients [N, ...] of each model to a norm of its own, in place; returns the norms before, [N]."""
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
    norm = torch.linalg.vector_norm(norms, dim=0)
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))
    return norm


def pad_stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors of equal numbers of axes, those that are smaller than the largest padded with zeros."""
    shapes = [tensor.shape for tensor in tensors]
    if len(set(shapes)) == 1:
        return torch.stack(list(tensors))
    stacked = tensors[0].new_zeros(len(tensors), *map(max, zip(*shapes, strict=True)))
    for row, tensor in zip(stacked, tensors, strict=True):
        row[tuple(map(slice, tensor.shape))] = tensor
    return stacked


def _head_rows(action_dims: Sequence[int], device: torch.device) -> Tensor | None:
    """Find the rows of each policy head [2 A] that are means and standard deviations of A padded actions, [N, 2 A].

    A padded action takes a row that is not trained, since it is masked. Nothing where all models have as many actions.
    """
    most = max(action_dims)
    if min(action_dims) == most:
        return None
    rows = [
        [half * own + action if action < own else 2 * own for half in (0, 1) for action in range(most)]
        for own in action_dims
    ]
    return torch.tensor(rows, device=device)
