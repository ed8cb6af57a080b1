"""Layers of the world model. Parameter names are those of published checkpoints (specification section 15, layout a).

A layer computes its matrix product in the dtype of its weight and everything else (LayerNorm, activation, SimNorm)
in float32, so lowering the precision of a model is a cast of its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


def simnorm(x: Tensor, group: int = 8) -> Tensor:
    """Softmax within consecutive groups of the last axis, [..., D] -> [..., D]; D is a multiple of ``group``."""
    return torch.softmax(x.unflatten(-1, (-1, group)), -1).flatten(-2)


class Linear(nn.Module):
    """Affine map [..., in] -> [..., out] in the dtype of its weight, float32 out (float64 stays float64)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


class NormedLinear(Linear):
    """``act(LayerNorm(W x + b))``, [..., in] -> [..., out] (specification section 2)."""

    def __init__(self, in_features: int, out_features: int, act: Activation = F.mish) -> None:
        super().__init__(in_features, out_features)
        self.ln = nn.LayerNorm(out_features)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.ln(super().forward(x)))


def mlp(in_features: int, hidden: Sequence[int], out_features: int, act: Activation | None = None) -> nn.Sequential:
    """Hidden NormedLinear layers with Mish, then a plain affine map, or a NormedLinear if ``act`` is given."""
    widths = [in_features, *hidden]
    layers: list[nn.Module] = [NormedLinear(i, o) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    last = widths[-1]
    layers.append(NormedLinear(last, out_features, act) if act else Linear(last, out_features))
    return nn.Sequential(*layers)


class QEnsemble(nn.Module):
    """``num_q`` value networks in -> M -> M -> K as stacked weights; all heads in one batched product per layer.

    Parameter ``4 l + s`` belongs to layer l: s = 0 weight [Q, out, in], 1 bias [Q, out], 2 and 3 LayerNorm scale and
    shift [Q, out]; the last layer has only 8 and 9.
    """

    def __init__(self, num_q: int, in_features: int, width: int, num_bins: int) -> None:
        super().__init__()
        shapes: list[tuple[int, ...]] = []
        for i, o in ((in_features, width), (width, width)):
            shapes += [(num_q, o, i), (num_q, o), (num_q, o), (num_q, o)]
        shapes += [(num_q, num_bins, width), (num_q, num_bins)]
        self.params = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])

    def forward(
        self, x: Tensor, heads: Tensor | None = None, dropout_mask: Tensor | None = None, detach: bool = False
    ) -> Tensor:
        """Logits of every head, or of the chosen ones.

        Args:
            x: [..., in].
            heads: indices of the heads to evaluate, [n]; all by default.
            dropout_mask: factors on the first affine output of the evaluated heads, [n, ..., M]; none by default.
            detach: treat the weights as constants.

        Returns:
            [n, ..., K].
        """
        params = [p.detach() if detach else p for p in self.params]
        if heads is not None:
            params = [p.index_select(0, heads) for p in params]
        w0, b0, scale0, shift0, w1, b1, scale1, shift1, w2, b2 = params
        num_heads, lead = w0.shape[0], x.shape[:-1]
        flat = x.reshape(-1, x.shape[-1])  # [N, in]

        h = F.linear(flat.to(w0.dtype), w0.flatten(0, 1), b0.flatten()).to(x.dtype)
        h = h.unflatten(-1, (num_heads, -1)).transpose(0, 1)  # [n, N, M]
        if dropout_mask is not None:
            h = h * dropout_mask.reshape(h.shape)
        h = _norm_mish(h, scale0, shift0)
        h = _norm_mish(torch.baddbmm(b1[:, None], h.to(w1.dtype), w1.mT).to(x.dtype), scale1, shift1)
        logits = torch.baddbmm(b2[:, None], h.to(w2.dtype), w2.mT).to(x.dtype)
        return logits.reshape(num_heads, *lead, -1)


def _norm_mish(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Mish of LayerNorm with one scale and shift per head, h [n, N, M]."""
    return F.mish(torch.addcmul(shift[:, None], F.layer_norm(h, h.shape[-1:]), scale[:, None]))
