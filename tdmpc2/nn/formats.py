"""Matrix products in the number formats a layer can be computed in.

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
    """Nearest multiples (half to even) of one scale per row: [..., out, in] -> int8 [..., out, in], fp32 [..., out, 1].

    Rows of zeros (new reward and Q heads) have scale 1, and so have rows so small that their scale would lose its
    precision.
    """
    scale = x.abs().amax(-1, keepdim=True) / INT8_MAX
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    return (x / scale).round().to(torch.int8), scale


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, wide: torch.dtype | None = None
) -> Tensor:
    """``x weight^T + bias``, [..., in] -> [..., out] in the type of ``x``.

    Args:
        x: float32 inputs.
        weight: [out, in], in the format of the product.
        bias: [out].
        scale: of an int8 weight, [out, 1].
        wide: what an int8 weight is widened to; None: the inputs are quantised as well.
    """
    if scale is None:
        return F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
    rows = x.shape[:-1].numel()
    quantised = wide is None and x.device.type in ("cpu", "cuda")
    if quantised and rows >= _FEWEST_ROWS and x.shape[-1] >= _FEWEST_INPUTS:
        total = _int8_product(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1]) * scale.mT
    else:
        wide = wide or torch.float32
        total = F.linear(x.to(wide), weight.to(wide)).to(x.dtype) * scale.mT
    return total if bias is None else total + bias


def batched_product(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None = None, wide: torch.dtype | None = None
) -> Tensor:
    """One product for each of n networks: x [n, N, in], weight [n, out, in], bias [n, out] -> [n, N, out]."""
    if scale is None:
        return torch.baddbmm(bias[:, None], x.to(weight.dtype), weight.mT).to(x.dtype)
    networks = zip(x, weight, bias, scale, strict=True)
    return torch.stack([product(*network, wide) for network in networks])


def _int8_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [N, in], int8 weight [out, in] -> [N, out] without the weight's scale.

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
