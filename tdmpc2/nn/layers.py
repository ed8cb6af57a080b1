"""Layers of the world model. Parameter names are those of published checkpoints (specification section 15, layout a).

A layer computes its matrix product in the format of its weight (:mod:`tdmpc2.nn.formats`) and everything else
(LayerNorm, activation, SimNorm) in float32, so lowering the precision of a model is a conversion of its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdmpc2.nn.formats import FLOATS, FORMATS, batched_product, product, to_int8

Activation = Callable[[Tensor], Tensor]
NormMish = Callable[..., Tensor]


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


def split_linear(
    parts: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    wide: torch.dtype | None = None,
) -> Tensor:
    """``weight @ concatenated parts + bias``, without concatenating.

    The parts' leading axes broadcast, so what is the same for many rows (a task embedding, a planner's first latent)
    is multiplied once.

    Args:
        parts: [..., in_i] with the in_i adding up to in.
        weight: [out, in]; its format is the product's.
        bias: [out].
        scale: of an int8 weight, [out, 1].
        wide: see :func:`~tdmpc2.nn.formats.product`.

    Returns:
        [..., out] in the dtype of the first part.
    """
    weights = weight.split([part.shape[-1] for part in parts], -1) if len(parts) > 1 else (weight,)
    total = product(parts[0], weights[0], bias, scale, wide)
    for part, own in zip(parts[1:], weights[1:], strict=True):
        total = total + product(part, own, None, scale, wide)
    return total


def _sum_of_products(parts: Sequence[Tensor], weight: Tensor) -> Tensor:
    """:func:`split_linear` without bias, in the type of autocast."""
    weights = weight.split([part.shape[-1] for part in parts], -1)
    return sum((F.linear(x, w) for x, w in zip(parts[1:], weights[1:], strict=True)), F.linear(parts[0], weights[0]))


class Linear(nn.Module):
    """Affine map of concatenated inputs, [..., in] -> [..., out], in the format of its weight, float32 out.

    Attributes:
        scale: of an int8 weight, [out, 1], else None.
        wide: what an int8 weight is widened to in the product; None: the inputs are quantised as well.
    """

    scale: Tensor | None
    wide: torch.dtype | None = None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.register_buffer("scale", None, persistent=False)

    def set_format(self, name: str, wide: torch.dtype = torch.float32) -> None:
        """Convert a float32 layer to one of :data:`~tdmpc2.nn.formats.FORMATS`; it can no longer be trained."""
        weight, self.scale, self.wide = _converted(self.weight, name, wide)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(self.bias.to(FLOATS.get(name, torch.float32)), requires_grad=False)

    def forward(self, *parts: Tensor) -> Tensor:
        x = split_linear(parts, self.weight, self.bias, self.scale, self.wide)
        return x.to(torch.promote_types(x.dtype, torch.float32))


def _converted(weight: Tensor, name: str, wide: torch.dtype) -> tuple[Tensor, Tensor | None, torch.dtype | None]:
    """Weight in a format, its scale, and what it is widened to."""
    assert name in FORMATS, name
    assert weight.dtype == torch.float32, "converted twice"
    if name in FLOATS:
        return weight.detach().to(FLOATS[name]), None, None
    return *to_int8(weight.detach()), wide if name == "int8-weight-only" else None


class NormedLinear(Linear):
    """``act(LayerNorm(W x + b))``, [..., in] -> [..., out] (specification section 2).

    Attributes:
        norm_mish: an operator for all that follows the product (:mod:`tdmpc2.acceleration.cpu.norm_mish`), where Mish
            does; its output has the type of the product's. None: torch's functions.
    """

    norm_mish: NormMish | None = None

    def __init__(self, in_features: int, out_features: int, act: Activation = mish) -> None:
        super().__init__(in_features, out_features)
        self.ln = nn.LayerNorm(out_features)
        self.act = act

    def forward(self, *parts: Tensor) -> Tensor:
        if self.norm_mish is None or self.act is not mish:
            return self.act(self.ln(super().forward(*parts)))
        x = _sum_of_products(parts, self.weight)
        weights = (w.unsqueeze(0) for w in (self.bias, self.ln.weight, self.ln.bias))
        return self.norm_mish(x.reshape(1, -1, x.shape[-1]), *weights).reshape(x.shape)


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
    shift [Q, out]; the last layer has only 8 and 9. ``scale0`` to ``scale2`` are the scales [Q, out, 1] of the layers
    with int8 weights, else None, ``wide`` what these are widened to. ``norm_mish``: see :class:`NormedLinear`.
    """

    norm_mish: NormMish | None = None
    scale0: Tensor | None
    scale1: Tensor | None
    scale2: Tensor | None

    def __init__(self, num_q: int, in_features: int, width: int, num_bins: int) -> None:
        super().__init__()
        shapes: list[tuple[int, ...]] = []
        for i, o in ((in_features, width), (width, width)):
            shapes += [(num_q, o, i), (num_q, o), (num_q, o), (num_q, o)]
        shapes += [(num_q, num_bins, width), (num_q, num_bins)]
        self.params = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])
        for layer in range(3):
            self.register_buffer(f"scale{layer}", None, persistent=False)
        self.wide: list[torch.dtype | None] = [None, None, None]

    def set_format(self, layer: int, name: str, wide: torch.dtype = torch.float32) -> None:
        """Convert a float32 layer; see :meth:`Linear.set_format`."""
        weight, scale, self.wide[layer] = _converted(self.params[4 * layer], name, wide)
        setattr(self, f"scale{layer}", scale)
        bias = self.params[4 * layer + 1].to(FLOATS.get(name, torch.float32))
        self.params[4 * layer] = nn.Parameter(weight, requires_grad=False)
        self.params[4 * layer + 1] = nn.Parameter(bias, requires_grad=False)

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
        scales = [self.scale0, self.scale1, self.scale2]
        if heads is not None:
            params = [p.index_select(0, heads) for p in params]
            scales = [None if scale is None else scale.index_select(0, heads) for scale in scales]
        w0, b0, gain0, shift0, w1, b1, gain1, shift1, w2, b2 = params
        if self.norm_mish is not None:
            h = _sum_of_products(parts, w0.flatten(0, 1))  # [..., n M]
            lead = h.shape[:-1]
            h = h.reshape(-1, *b0.shape).transpose(0, 1)  # [n, N, M]
            factors = None if dropout_mask is None else dropout_mask.reshape(h.shape)
            h = self.norm_mish(h, b0, gain0, shift0, factors)
            h = self.norm_mish(torch.bmm(h, w1.mT), b1, gain1, shift1)
            logits = torch.bmm(h, w2.mT).to(b2.dtype) + b2[:, None]
            return logits.reshape(len(logits), *lead, -1)
        scale0 = None if scales[0] is None else scales[0].flatten(0, 1)
        h = split_linear(parts, w0.flatten(0, 1), b0.flatten(), scale0, self.wide[0])  # [..., n M]
        lead = h.shape[:-1]
        h = h.reshape(-1, w0.shape[0], w0.shape[1]).transpose(0, 1)  # [n, N, M]
        if dropout_mask is not None:
            h = h * dropout_mask.reshape(h.shape)
        h = _norm_mish(h, gain0, shift0)
        h = _norm_mish(batched_product(h, w1, b1, scales[1], self.wide[1]), gain1, shift1)
        logits = batched_product(h, w2, b2, scales[2], self.wide[2])
        return logits.reshape(len(logits), *lead, -1)


def _norm_mish(h: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Mish of LayerNorm with one gain and shift per head, h [n, N, M]."""
    return mish(torch.addcmul(shift[:, None], F.layer_norm(h, h.shape[-1:]), gain[:, None]))
