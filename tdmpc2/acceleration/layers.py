"""Faster layers for training, which take the place of the plain ones of :mod:`tdmpc2.nn.layers` from outside.

A replaced layer is the same object with the same parameters under the same names; only its class is another one. So an
optimiser, a checkpoint or the model itself does not notice, and the plain layers know nothing of their replacements.
Those for acting in lower precision are in :mod:`tdmpc2.acceleration.low_precision`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdmpc2.nn import layers
from tdmpc2.nn.layers import Linear, NormedLinear, QEnsemble, linear, per_head, split_weight

NormMish = Callable[..., Tensor]


# -- Mish for the compiler --------------------------------------------------------------------------------------------


def mish(x: Tensor) -> Tensor:
    """Compute Mish, any shape; where it is compiled, with one exponential instead of three transcendental functions."""
    if not torch.compiler.is_compiling():
        return F.mish(x)
    e = torch.exp(x.clamp(max=20.0))
    n = e * (e + 2)
    return x * (n / (n + 2))


def prepare_for_compiler(model: nn.Module) -> None:
    """Put the Mish that compiles well in place of the plain one; uncompiled, the model computes what it did before."""
    for layer in model.modules():
        if isinstance(layer, (NormedLinear, QEnsemble)) and layer.act is layers.mish:
            layer.act = mish


def has_mish(layer: nn.Module) -> bool:
    """True for a layer whose activation is Mish, whichever function computes it."""
    return isinstance(layer, (NormedLinear, QEnsemble)) and layer.act in (layers.mish, mish)


# -- one operator for bias, LayerNorm and Mish ------------------------------------------------------------------------


class FusedNormedLinear(NormedLinear):
    """A product, then one operator for all that follows; its output has the type of the product's.

    Attributes:
        norm_mish: see :func:`tdmpc2.acceleration.cpu.norm_mish.norm_mish`.
    """

    norm_mish: NormMish

    def forward(self, *parts: Tensor) -> Tensor:
        x = linear(parts, self.weight)
        weights = (w.unsqueeze(0) for w in (self.bias, self.ln.weight, self.ln.bias))
        return self.norm_mish(x.reshape(1, -1, x.shape[-1]), *weights).reshape(x.shape)


class FusedQEnsemble(QEnsemble):
    """Value networks of the same kind, with dropout in the operator as well."""

    norm_mish: NormMish

    def forward(
        self, *parts: Tensor, heads: Tensor | None = None, dropout_mask: Tensor | None = None, detach: bool = False
    ) -> Tensor:
        w0, b0, gain0, shift0, w1, b1, gain1, shift1, w2, b2 = self.chosen(heads, detach)
        h, rows = per_head(linear(parts, w0.flatten(0, 1)), len(w0))  # [n, N, M]
        factors = None if dropout_mask is None else dropout_mask.reshape(h.shape)
        h = self.norm_mish(h, b0, gain0, shift0, factors)
        h = self.norm_mish(torch.bmm(h, w1.mT), b1, gain1, shift1)
        logits = torch.bmm(h, w2.mT).to(b2.dtype) + b2[:, None]
        return logits.reshape(len(logits), *rows, -1)


def fuse(model: nn.Module, norm_mish: NormMish) -> None:
    """Train with one operator for bias, LayerNorm and Mish wherever a layer has these three."""
    for layer in model.modules():
        if has_mish(layer) and not is_fused(layer):
            vars(layer).update(norm_mish=norm_mish, unfused=type(layer))
            layer.__class__ = FusedQEnsemble if isinstance(layer, QEnsemble) else FusedNormedLinear


def unfuse(model: nn.Module) -> None:
    """Give the layers back the classes that they had."""
    for layer in model.modules():
        if is_fused(layer):
            layer.__class__ = vars(layer).pop("unfused")
            del vars(layer)["norm_mish"]


def is_fused(layer: nn.Module) -> bool:
    """True for a layer whose class is a fused one."""
    return isinstance(layer, (FusedNormedLinear, FusedQEnsemble))


# -- products under autocast ------------------------------------------------------------------------------------------


class AutocastLinear(Linear):
    """Computes its product in the type of autocast, and returns it in that of its bias."""

    def forward(self, *parts: Tensor) -> Tensor:
        return _float32_sum(parts, self.weight, self.bias)


class AutocastNormedLinear(NormedLinear, AutocastLinear):
    """Such a product, then LayerNorm and activation in the type of the bias."""


class AutocastQEnsemble(QEnsemble):
    """Value networks whose products are computed in the type of autocast."""

    def first(self, parts: Sequence[Tensor], weight: Tensor, bias: Tensor) -> tuple[Tensor, torch.Size]:
        return per_head(_float32_sum(parts, weight.flatten(0, 1), bias.flatten()), len(weight))

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return super().affine(x, weight, bias).to(bias.dtype)


def _float32_sum(parts: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Compute :func:`~tdmpc2.nn.layers.linear` with the parts' products in the type of autocast and their sum not."""
    first, *rest = zip(parts, split_weight(weight, parts), strict=True)
    return sum((F.linear(x, w).to(bias.dtype) for x, w in rest), F.linear(*first, bias).to(bias.dtype))


_FOR_AUTOCAST: dict[type[nn.Module], type[nn.Module]] = {
    Linear: AutocastLinear,
    NormedLinear: AutocastNormedLinear,
    QEnsemble: AutocastQEnsemble,
}


def keep_products_only(model: nn.Module) -> None:
    """Confine autocast to the products: all else stays float32, as bf16 would cost the losses their precision."""
    for layer in model.modules():
        layer.__class__ = _FOR_AUTOCAST.get(type(layer), type(layer))
