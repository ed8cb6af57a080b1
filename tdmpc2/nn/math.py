"""Pure functions: discrete regression in symlog space, the squashed Gaussian, and the running value scale.

Formulas are those of docs/algorithm.md, "Discrete regression", "Policy prior" and "Value scale".
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG_2PI = math.log(2 * math.pi)


def symlog(x: Tensor) -> Tensor:
    """``sign(x) ln(1 + |x|)``, any shape."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """Inverse of :func:`symlog`, any shape."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def bin_centres(num_bins: int, vmin: float, vmax: float) -> Tensor:
    """K evenly spaced centres on [vmin, vmax] in symlog space, [K]."""
    return torch.linspace(vmin, vmax, num_bins, dtype=torch.float32)


def _bin_position(x: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Lower bin index and the weight of the bin above it, for raw values x [...]."""
    num_bins = bins.shape[-1]
    bin_size = (bins[-1] - bins[0]) / (num_bins - 1)
    position = (symlog(x).clamp(bins[0], bins[-1]) - bins[0]) / bin_size
    index = position.nan_to_num().floor().clamp(0, num_bins - 1)  # NaN stays in the weight, not in the index
    return index.long(), position - index


def two_hot(x: Tensor, bins: Tensor) -> Tensor:
    """Raw values x [..., 1] as weights on the two nearest bins, [..., K]."""
    index, weight = _bin_position(x, bins)
    above = (index + 1).clamp(max=bins.shape[-1] - 1)
    target = x.new_zeros(*x.shape[:-1], bins.shape[-1])
    return target.scatter(-1, index, 1 - weight).scatter_add(-1, above, weight)


def decode(logits: Tensor, bins: Tensor) -> Tensor:
    """Expected value of logits [..., K] in raw units, [..., 1]; the expectation is taken in symlog space."""
    return symexp((torch.softmax(logits, -1) * bins).sum(-1, keepdim=True))


def soft_cross_entropy(logits: Tensor, x: Tensor, bins: Tensor) -> Tensor:
    """Cross-entropy of logits [..., K] against the two-hot of raw values x [..., 1], [..., 1].

    Only the two bins with weight are read; leading axes broadcast.
    """
    index, weight = _bin_position(x, bins)
    above = (index + 1).clamp(max=bins.shape[-1] - 1)
    pair = torch.cat([index, above], -1).expand(*logits.shape[:-1], 2)
    log_prob = torch.log_softmax(logits, -1).gather(-1, pair)
    return -((1 - weight) * log_prob[..., :1] + weight * log_prob[..., 1:])


def bounded_log_std(raw: Tensor, low: float, high: float) -> Tensor:
    """Head output to a log standard deviation in (low, high), any shape."""
    return low + 0.5 * (high - low) * (torch.tanh(raw) + 1)


class GaussianStats(NamedTuple):
    """Log-probability and entropies of one squashed-Gaussian sample, each [..., 1]."""

    log_prob: Tensor  # TD-MPC-Opt's: the density is scaled by the number of active dimensions
    entropy: Tensor  # TD-MPC2's
    scaled_entropy: Tensor  # TD-MPC2's


def squashed_gaussian_stats(
    eps: Tensor, log_std: Tensor, action: Tensor, active_dims: Tensor | float, all_dims: Tensor | float | None = None
) -> GaussianStats:
    """Compute log-probability and entropies of ``action = tanh(mean + eps exp(log_std))``.

    docs/algorithm.md, "Policy prior".

    Args:
        eps: standard-normal draw, zero on inactive dimensions, [..., A].
        log_std: zero on inactive dimensions, [..., A].
        action: squashed sample, [..., A].
        active_dims: number of active dimensions of the task, broadcastable to [..., 1].
        all_dims: number of dimensions that the density's constant counts, broadcastable to [..., 1]; those of ``eps``
            by default, inactive ones included.
    """
    correction = torch.log(torch.relu(1 - action.square()) + 1e-6).sum(-1, keepdim=True)
    density = (-0.5 * eps.square() - log_std).sum(-1, keepdim=True)
    log_prob = active_dims * (density - 0.5 * _LOG_2PI) - correction
    presquash = density - (action.shape[-1] if all_dims is None else all_dims) * 0.5 * _LOG_2PI
    squashed = presquash - correction
    scaled_entropy = -squashed * (active_dims * presquash / (squashed + 1e-8))
    return GaussianStats(log_prob, -squashed, scaled_entropy)


def squashed_entropy(mean: Tensor, log_std: Tensor, eps: Tensor, mask: Tensor | None = None) -> Tensor:
    """Estimate the entropy of ``tanh(mean + eps exp(log_std))`` from one sample: the negative density at it.

    docs/algorithm.md, "Policy prior": it is largest where actions are spread evenly over [-1, 1], and its gradient does
    not vanish where tanh saturates.

    Args:
        mean: before tanh, zero on inactive dimensions, [..., A].
        log_std: zero on inactive dimensions, [..., A].
        eps: standard-normal draw, [..., A].
        mask: one on active dimensions, broadcastable to [..., A]; None: all are.

    Returns:
        [..., 1].
    """
    u = mean + eps * log_std.exp()
    correction = 2 * (math.log(2) - u - F.softplus(-2 * u))  # log(1 - tanh(u)^2)
    entropy = 0.5 * (eps.square() + _LOG_2PI) + log_std + correction
    return (entropy if mask is None else entropy * mask).sum(-1, keepdim=True)


def percentile_range(x: Tensor, low: float = 5.0, high: float = 95.0) -> tuple[Tensor, Tensor]:
    """Interpolate percentiles of x [B, ...] along the batch linearly, each [...]: docs/algorithm.md, "Value scale"."""
    ordered = x.sort(0).values
    last = x.shape[0] - 1

    def percentile(p: float) -> Tensor:
        position = p * last / 100
        below = math.floor(position)
        return torch.lerp(ordered[below], ordered[min(below + 1, last)], position - below)

    return percentile(low), percentile(high)


def updated_scale(scale: Tensor, x: Tensor, tau: float) -> Tensor:
    """Running value scale after one batch of values x [B, 1]: an average of the 5-95 percentile range, at least 1."""
    low, high = percentile_range(x)
    return torch.lerp(scale, (high - low).clamp(min=1.0).reshape(scale.shape), tau)


def updated_task_scales(scales: Tensor, x: Tensor, ids: Tensor, tau: float) -> Tensor:
    """Running value scale of each task [T] after one batch: that of :func:`updated_scale`, over the task's own rows.

    A task with fewer than two rows in the batch keeps its scale, since they have no range.

    Args:
        scales: so far, [T].
        x: values, [B, 1].
        ids: tasks of the rows, [B].
        tau: rate of the average.
    """
    own = ids == torch.arange(len(scales), device=ids.device).unsqueeze(1)  # [T, B]
    ordered = torch.where(own, x.reshape(1, -1), torch.inf).sort(1).values  # a task's own values come first
    count = own.sum(1)  # [T]
    last = (count - 1).clamp(min=0)

    def percentile(p: float) -> Tensor:
        position = p * last.to(x.dtype) / 100
        below = position.long()
        low, high = (ordered.gather(1, index.unsqueeze(1)).squeeze(1) for index in (below, (below + 1).minimum(last)))
        return torch.lerp(low, high, position - below)

    moved = torch.lerp(scales, (percentile(95.0) - percentile(5.0)).clamp(min=1.0), tau)
    return torch.where(count > 1, moved, scales)
