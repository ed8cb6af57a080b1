"""Number formats of weights, and matrix products in them.

==================  ================  ====================================================================
format              weight            product
==================  ================  ====================================================================
fp32, bf16, fp16    the same          inputs cast to the weight's type
int8                int8 and scales   every input row quantised between its own bounds, sums in int32
int8-weight-only    int8 and scales   weights widened to the activations' type (bf16 where that is fast)
==================  ================  ====================================================================

An int8 weight is symmetric around zero with one float32 scale per output row. Everything that follows a product is
float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = (*FLOATS, "int8", "int8-weight-only")
INT8_MAX = 127  # -128 is left out, so that the grid is symmetric
#: Smaller products are computed with widened int8 weights: quantising their inputs costs more than it saves.
_FEWEST_ROWS, _FEWEST_INPUTS = 32, 32


def to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round to multiples of one scale per row, [..., out, in] -> int8 [..., out, in] and float32 [..., out, 1].

    Rows of zeros (new reward and Q heads) have scale 1, and so have rows so small that their scale would lose its
    precision.
    """
    scale = x.abs().amax(-1, keepdim=True) / INT8_MAX
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    return (x / scale).round().to(torch.int8), scale


def matmul(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    compute_dtype: torch.dtype = torch.int8,
) -> Tensor:
    """Multiply rows by a weight in any format: ``x weight^T + bias``, [..., in] -> [..., out] in the type of ``x``.

    Args:
        x: float32 inputs.
        weight: [out, in]; a floating-point one is multiplied in its own type.
        bias: [out].
        scale: of an int8 weight, [out, 1].
        compute_dtype: of an int8 weight's product. ``torch.int8`` quantises the inputs too, unless there are so few
            that it does not pay; a floating-point type widens the weight instead.
    """
    if scale is None:
        return F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
    rows = x.shape[:-1].numel()
    int8 = compute_dtype == torch.int8
    if int8 and x.device.type in ("cpu", "cuda") and rows >= _FEWEST_ROWS and x.shape[-1] >= _FEWEST_INPUTS:
        total = _int8_matmul(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1]) * scale.mT
    else:
        wide = torch.float32 if int8 else compute_dtype
        total = F.linear(x.to(wide), weight.to(wide)).to(x.dtype) * scale.mT
    return total if bias is None else total + bias


def batched_matmul(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    compute_dtype: torch.dtype = torch.int8,
) -> Tensor:
    """Compute :func:`matmul` for n networks: x [n, N, in], weight [n, out, in], bias [n, out] -> [n, N, out]."""
    if scale is None:
        return torch.baddbmm(bias[:, None], x.to(weight.dtype), weight.mT).to(x.dtype)
    networks = zip(x, weight, bias, scale, strict=True)
    return torch.stack([matmul(*network, compute_dtype) for network in networks])


def _int8_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply in int8, x [N, in] by weight [out, in] -> [N, out], without the weight's scale.

    A row is 256 steps from its smallest to its largest value, x = low + step (q + 128). SimNorm and Mish have no or
    hardly any negative values, so steps on both sides of zero would be twice as wide.
    """
    low, high = x.aminmax(dim=-1, keepdim=True)
    step = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    rows = ((x - low) / step - 128).round().to(torch.int8)
    sums = weight.sum(-1, dtype=torch.int32)  # [out]
    out = len(weight)
    if x.device.type == "cuda":  # takes sizes that are multiples of eight
        rows, weight = F.pad(rows, (0, -x.shape[-1] % 8)), F.pad(weight, (0, -x.shape[-1] % 8, 0, -out % 8))
    return torch._int_mm(rows, weight.mT)[:, :out] * step + (low + 128 * step) * sums
