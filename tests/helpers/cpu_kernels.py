"""The CPU kernels' arithmetic in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from tdmpc2.acceleration import low_precision
from tdmpc2.acceleration.cpu import library
from tdmpc2.config import Config

needs_library = pytest.mark.skipif(bool(library.reason()), reason=library.reason())
FORMATS = ("fp32", "bf16", "int8", "int8-weight-only")
no_database = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def emulated(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    wide: torch.dtype | None = None,
    *,
    among_int8: bool = False,
) -> Tensor:
    """Compute the kernels' product with exact sums."""
    factor = torch.ones(len(weight), 1) if scale is None else scale
    if weight.dtype == torch.int8 and (wide in (None, torch.int8) or among_int8):
        largest = 255 if wide in (None, torch.int8) else 4095
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        codes = ((x - low) * (torch.full_like(low, largest) / (high - low))).nan_to_num(0).round()
        step = ((high - low) / largest).double()
        total = step * (codes.double() @ weight.double().T) + low.double() * weight.double().sum(-1)
    else:
        total = x.to(wide or weight.dtype).double() @ weight.double().T
    total = total * factor.double().T
    return (total if bias is None else total + bias.double()).to(x.dtype)


def emulate(monkeypatch: pytest.MonkeyPatch, cfg: Config, *, among_int8: bool) -> None:
    """Give the plain functions the kernels' arithmetic: action, task and the first latent are multiplied in float32.

    Args:
        monkeypatch: undoes it.
        cfg: of the model.
        among_int8: whether the model has int8 products.
    """

    def matmul(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, wide: Any) -> Tensor:
        first_latent = x.shape[-1] == cfg.latent_dim and bool((x == x[..., :1, :]).all())
        if first_latent or x.shape[-1] in (cfg.action_dim, cfg.task_dim):
            weight, scale, wide = weight.float() * (1 if scale is None else scale), None, torch.float32
        return emulated(x, weight, bias, scale, wide, among_int8=among_int8)

    def batched(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, wide: Any) -> Tensor:
        heads = zip(x, weight, bias, [None] * len(x) if scale is None else scale, strict=True)
        return torch.stack([emulated(*head, wide, among_int8=among_int8) for head in heads])

    monkeypatch.setattr(low_precision, "matmul", matmul)
    monkeypatch.setattr(low_precision, "batched_matmul", batched)
