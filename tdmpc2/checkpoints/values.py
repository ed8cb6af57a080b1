"""Checks of the values of a checkpoint in the type that is computed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_finite(state: Mapping[str, Any], origin: str) -> None:
    """Require values that are finite in float32, which is what is computed with, in any layout and precision.

    Raises:
        ValueError: the message names the tensor.
    """
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or _is_finite(tensor, state.get(f"{name}.scale")):
            continue
        values = _in_float32(tensor, state.get(f"{name}.scale"))
        bad = int(values.numel() - values.isfinite().sum())
        stored = "" if tensor.dtype == torch.float32 else f" in float32 (stored as {tensor.dtype})"
        raise ValueError(f"{origin}: '{name}' has {bad} values that are not finite{stored}; use an earlier checkpoint")


def _is_finite(tensor: Tensor, scale: Any) -> bool:
    if tensor.is_floating_point() and tensor.dtype != torch.float64:
        # A sum is many times faster than looking at each value, and false also where it alone overflows.
        return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())
    if tensor.dtype == torch.int8 and isinstance(scale, Tensor) and scale.is_floating_point() and scale.numel():
        if bool((128 * scale.float()).isfinite().all()):
            return True
    elif not (tensor.is_quantized or tensor.is_floating_point()):
        return True
    return bool(_in_float32(tensor, scale).isfinite().all())


def _in_float32(tensor: Tensor, scale: Any) -> Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    try:
        return tensor.float() * scale.float() if isinstance(scale, Tensor) else tensor.float()
    except RuntimeError:  # shapes that do not fit, which the conversion refuses by name
        return tensor.float()
