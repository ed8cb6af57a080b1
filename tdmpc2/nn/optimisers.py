"""Parameters as the two optimisers of an update take them, and the state that a continued run brings back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn.utils import clip_grad_norm_


class Parameters(NamedTuple):
    """Trainable parameters of a world model, by how they are trained."""

    encoder: list[nn.Parameter]  # with a learning rate of its own
    others: list[nn.Parameter]
    policy: list[nn.Parameter]  # by an optimiser of its own


def split_parameters(model: nn.Module) -> Parameters:
    """Divide the parameters of a world model among the optimisers; target heads are in none of them."""
    parts = Parameters([], [], [])
    for name, parameter in model.named_parameters():
        if name.startswith("_encoder."):
            parts.encoder.append(parameter)
        elif name.startswith("_pi."):
            parts.policy.append(parameter)
        elif parameter.requires_grad:
            parts.others.append(parameter)
    return parts


def model_optimiser(
    encoder: Sequence[Tensor], others: Sequence[Tensor], more: Sequence[Tensor], *, lr: float, enc_lr_scale: float
) -> torch.optim.Adam:
    """Make the optimiser of everything but the policy; ``more`` are parameters of the distillation, if it has any."""
    groups: list[dict[str, Any]] = [{"params": encoder, "lr": lr * enc_lr_scale}, {"params": others}]
    return torch.optim.Adam([*groups, {"params": more}] if more else groups, lr=lr, fused=True)


def rate_factor(schedule: str, end: float, done: float) -> float:
    """Compute the factor on the learning rates of the next update.

    Args:
        schedule: ``constant``, ``linear`` or ``cosine``.
        end: the factor when all updates are done.
        done: share of the updates that is done; more than 1 counts as 1.
    """
    done = min(done, 1.0)
    left = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return 1.0 if schedule == "constant" else end + (1 - end) * left[schedule]


def take_step(optimiser: torch.optim.Optimizer, parameters: Iterable[Tensor], factor: float = 1.0) -> None:
    """Take a step, and count it in the parameters' versions, which fused Adam does not; packed networks go by them.

    ``factor`` is on the learning rates of this step; what is saved of the optimiser are the rates without it.
    """
    rates = [group["lr"] for group in optimiser.param_groups]
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    optimiser.step()
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate
    increment_version(parameters)


def clip_gradients(parameters: Sequence[Tensor], largest: float) -> Tensor:
    """Scale gradients down to a total norm of at most ``largest``, in place; returns the norm before, 0-d.

    Where they are small enough torch's function multiplies them by 1. On a CPU, where it costs nothing to look, that
    pass over all of them is saved; the numbers are the same.
    """
    grads = gradients(parameters)
    if not grads:  # all frozen; torch's function would answer on the CPU
        return torch.zeros((), device=parameters[0].device)
    if grads[0].device.type != "cpu":
        return clip_grad_norm_(parameters, largest)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    if not norm + 1e-6 <= largest:  # also NaN, which spreads
        torch._foreach_mul_(grads, largest / (norm + 1e-6))
    return norm


def gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Collect the gradients of those that have one."""
    return [p.grad for p in parameters if p.grad is not None]


def load_moments(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Bring an optimiser's moments to where they were; its settings stay the configuration's, whatever a file says."""
    moments = {index: {key: _own(tensor) for key, tensor in entry.items()} for index, entry in state["state"].items()}
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})


def _own(tensor: Tensor) -> Tensor:
    """Copy a view: small tensors of a file share a storage, which another process would be sent with each of them."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
