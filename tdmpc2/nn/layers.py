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


def mish(x: Tensor) -> Tensor:
    """``x tanh(softplus(x))``, any shape; compiled, with one exponential instead of three transcendental functions."""
    if not torch.compiler.is_compiling():
        return F.mish(x)
    e = torch.exp(x.clamp(max=20.0))
    n = e * (e + 2)
    return x * (n / (n + 2))


def split_linear(parts: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """``weight @ concatenated parts + bias``, without concatenating.

    The parts' leading axes broadcast, so what is the same for many rows (a task embedding, a planner's first latent)
    is multiplied once.

    Args:
        parts: [..., in_i] with the in_i adding up to in.
        weight: [out, in]; its dtype is the product's.
        bias: [out].

    Returns:
        [..., out] in the dtype of the first part.
    """
    weights = weight.split([part.shape[-1] for part in parts], -1) if len(parts) > 1 else (weight,)
    total = F.linear(parts[0].to(weight.dtype), weights[0], bias).to(parts[0].dtype)
    for part, own in zip(parts[1:], weights[1:], strict=True):
        total = total + F.linear(part.to(weight.dtype), own).to(part.dtype)
    return total


class Linear(nn.Module):
    """Affine map of concatenated inputs, [..., in] -> [..., out], in the dtype of its weight, float32 out."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, *parts: Tensor) -> Tensor:
        return split_linear(parts, self.weight, self.bias)


class NormedLinear(Linear):
    """``act(LayerNorm(W x + b))``, [..., in] -> [..., out] (specification section 2)."""

    def __init__(self, in_features: int, out_features: int, act: Activation = mish) -> None:
        super().__init__(in_features, out_features)
        self.ln = nn.LayerNorm(out_features)
        self.act = act

    def forward(self, *parts: Tensor) -> Tensor:
        return self.act(self.ln(super().forward(*parts)))


class MLP(nn.Sequential):
    """Layers in a row; the first takes the parts of its input separately."""

    def forward(self, *parts: Tensor) -> Tensor:
        first, *rest = self
        x = first(*parts)
        for layer in rest:
            x = layer(x)
        return x


def mlp(in_features: int, hidden: Sequence[int], out_features: int, act: Activation | None = None) -> MLP:
    """Hidden NormedLinear layers with Mish, then a plain affine map, or a NormedLinear if ``act`` is given."""
    widths = [in_features, *hidden]
    layers: list[nn.Module] = [NormedLinear(i, o) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    last = widths[-1]
    layers.append(NormedLinear(last, out_features, act) if act else Linear(last, out_features))
    return MLP(*layers)


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
        self,
        *parts: Tensor,
        heads: Tensor | None = None,
        dropout_mask: Tensor | None = None,
        detach: bool = False,
    ) -> Tensor:
        """Logits of every head, or of the chosen ones.

        Args:
            parts: the input's parts, [..., in_i]; leading axes broadcast.
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
        h = split_linear(parts, w0.flatten(0, 1), b0.flatten())  # [..., n M]
        lead, dtype = h.shape[:-1], h.dtype
        h = h.reshape(-1, w0.shape[0], w0.shape[1]).transpose(0, 1)  # [n, N, M]
        if dropout_mask is not None:
            h = h * dropout_mask.reshape(h.shape)
        h = _norm_mish(h, scale0, shift0)
        h = _norm_mish(torch.baddbmm(b1[:, None], h.to(w1.dtype), w1.mT).to(dtype), scale1, shift1)
        logits = torch.baddbmm(b2[:, None], h.to(w2.dtype), w2.mT).to(dtype)
        return logits.reshape(len(logits), *lead, -1)


def _norm_mish(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Mish of LayerNorm with one scale and shift per head, h [n, N, M]."""
    return mish(torch.addcmul(shift[:, None], F.layer_norm(h, h.shape[-1:]), scale[:, None]))
