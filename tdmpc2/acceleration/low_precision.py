"""Layers that act in lower precision, put in place of the plain ones from outside by :func:`set_precision`.

Only matrix products are computed in the format of their weight (:mod:`tdmpc2.nn.formats`); everything that follows a
product is float32. These layers cannot be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from tdmpc2.nn.formats import FLOATS, FORMATS, batched_matmul, matmul, to_int8
from tdmpc2.nn.layers import Linear, NormedLinear, QEnsemble, layer_norm, per_head, split_weight
from tdmpc2.nn.world_model import WorldModel

#: int8 keeps the inputs of these in floating point: quantised, they made half of the squared error of a plan's value.
_FLOAT_INPUTS = ("_dynamics.2.weight", "_Qs.params.8")


class LowPrecisionLinear(Linear):
    """Affine map with a weight in one of :data:`~tdmpc2.nn.formats.FORMATS`, float32 out.

    Attributes:
        scale: of an int8 weight, [out, 1], else None.
        compute_dtype: what the product is computed in: the weight's own floating-point type; of an int8 weight the
            type it is widened to, or int8.
    """

    scale: Tensor | None
    compute_dtype: torch.dtype

    def forward(self, *parts: Tensor) -> Tensor:
        return _split_matmul(parts, self.weight, self.bias, self.scale, self.compute_dtype)


class LowPrecisionNormedLinear(NormedLinear, LowPrecisionLinear):
    """Such an affine map, then LayerNorm and activation in float32."""


class LowPrecisionQEnsemble(QEnsemble):
    """Value networks with weights in one of :data:`~tdmpc2.nn.formats.FORMATS` for each layer, float32 out.

    Attributes:
        scale0, scale1, scale2: of layers with int8 weights, [Q, out, 1], else None.
        compute_dtypes: of the three layers, see :class:`LowPrecisionLinear`.
    """

    scale0: Tensor | None
    scale1: Tensor | None
    scale2: Tensor | None
    compute_dtypes: list[torch.dtype]

    def forward(
        self, *parts: Tensor, heads: Tensor | None = None, dropout_mask: Tensor | None = None, detach: bool = False
    ) -> Tensor:
        assert dropout_mask is None, "dropout is for training"
        w0, b0, gain0, shift0, w1, b1, gain1, shift1, w2, b2 = self.chosen(heads)
        scales = [self.scale0, self.scale1, self.scale2]
        if heads is not None:
            scales = [None if scale is None else scale.index_select(0, heads) for scale in scales]
        first, second, third = zip(scales, self.compute_dtypes, strict=True)
        scale0 = None if scales[0] is None else scales[0].flatten(0, 1)
        h, rows = per_head(_split_matmul(parts, w0.flatten(0, 1), b0.flatten(), scale0, first[1]), len(w0))
        h = self.act(layer_norm(h, gain0, shift0))
        h = self.act(layer_norm(batched_matmul(h, w1, b1, *second), gain1, shift1))
        return batched_matmul(h, w2, b2, *third).reshape(len(w2), *rows, -1)


def _split_matmul(
    parts: Sequence[Tensor], weight: Tensor, bias: Tensor, scale: Tensor | None, compute_dtype: torch.dtype
) -> Tensor:
    """Compute :func:`~tdmpc2.nn.layers.linear` in the format of the weight."""
    first, *rest = zip(parts, split_weight(weight, parts), strict=True)
    total = matmul(*first, bias, scale, compute_dtype)
    for x, w in rest:
        total = total + matmul(x, w, None, scale, compute_dtype)
    return total


# -- conversion -------------------------------------------------------------------------------------------------------


def set_precision(
    model: WorldModel, precision: str | Callable[[str], str], compute_dtype: torch.dtype = torch.float32
) -> WorldModel:
    """Convert a float32 model's weight matrices to the formats it is to act in; it can no longer be trained.

    LayerNorms, the embedding and all that follows a product stay float32. There are no target heads of its own
    afterwards: they are the online heads.

    Args:
        model: changed in place.
        precision: one of :data:`~tdmpc2.nn.formats.FORMATS` for all matrices but the encoder's, which runs once per
            plan, where planning repeats the others for every sample. Or the format of each matrix by its name.
        compute_dtype: what int8 weights are widened to where a product is not int8 itself; the encoder's to float32.

    Returns:
        The model.
    """
    format_of = precision if callable(precision) else partial(planning_format, precision)
    model.requires_grad_(False)
    for network in model.networks():
        wide = torch.float32 if network.observes else compute_dtype
        if isinstance(network.module, QEnsemble):
            lower_heads(network.module, [format_of(name) for name in network.matrices], wide)
        else:
            for layer, name in zip(network.module, network.matrices, strict=True):
                assert isinstance(layer, Linear)
                lower(layer, format_of(name), wide)
    model._target_Qs = model._Qs
    return model


def planning_format(precision: str, matrix: str) -> str:
    """Format of a weight matrix in a model that plans in ``precision``."""
    if matrix.startswith("_encoder."):
        return "fp32"
    return "int8-weight-only" if precision == "int8" and matrix in _FLOAT_INPUTS else precision


def lower(layer: Linear, name: str, compute_dtype: torch.dtype = torch.float32) -> None:
    """Convert one float32 layer to a format.

    Args:
        layer: changed in place.
        name: one of :data:`~tdmpc2.nn.formats.FORMATS`.
        compute_dtype: what ``int8-weight-only`` weights are widened to.
    """
    weight, scale, dtype = _converted(layer.weight, name, compute_dtype)
    layer.__class__ = LowPrecisionNormedLinear if isinstance(layer, NormedLinear) else LowPrecisionLinear
    lowered = cast(LowPrecisionLinear, layer)
    lowered.weight = nn.Parameter(weight, requires_grad=False)
    lowered.bias = _bias(layer.bias, name)
    lowered.register_buffer("scale", scale, persistent=False)
    lowered.compute_dtype = dtype


def lower_heads(heads: QEnsemble, names: Sequence[str], compute_dtype: torch.dtype = torch.float32) -> None:
    """Convert the three layers of float32 value networks to a format each; see :func:`lower`."""
    dtypes = []
    for index, name in enumerate(names):
        weight, scale, dtype = _converted(heads.params[4 * index], name, compute_dtype)
        heads.params[4 * index] = nn.Parameter(weight, requires_grad=False)
        heads.params[4 * index + 1] = _bias(heads.params[4 * index + 1], name)
        heads.register_buffer(f"scale{index}", scale, persistent=False)
        dtypes.append(dtype)
    heads.__class__ = LowPrecisionQEnsemble
    cast(LowPrecisionQEnsemble, heads).compute_dtypes = dtypes


def _converted(weight: Tensor, name: str, wide: torch.dtype) -> tuple[Tensor, Tensor | None, torch.dtype]:
    """Weight in a format, its scale, and what its product is computed in."""
    assert name in FORMATS, name
    assert weight.dtype == torch.float32, "converted twice"
    if name in FLOATS:
        return weight.detach().to(FLOATS[name]), None, FLOATS[name]
    return *to_int8(weight.detach()), wide if name == "int8-weight-only" else torch.int8


def _bias(bias: Tensor, name: str) -> nn.Parameter:
    """The bias of a product is added in its type, or else in float32."""
    return nn.Parameter(bias.detach().to(FLOATS.get(name, torch.float32)), requires_grad=False)
