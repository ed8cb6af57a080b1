"""Layers of the world model, as the paper has them. Parameter names are those of published checkpoints.

The input of a network's first layer is a concatenation (latent, task, action). Layers take its parts one by one, so
that what is the same for many rows (the task, the first latent of a plan) is multiplied only once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
mish = F.mish


def identity(x: Tensor) -> Tensor:
    """Leave everything as it is: the activation of a layer whose output is added to another's."""
    return x


def simnorm(x: Tensor, group: int = 8) -> Tensor:
    """Softmax within consecutive groups of the last axis, [..., D] -> [..., D]; D is a multiple of ``group``."""
    return torch.softmax(x.unflatten(-1, (-1, group)), -1).flatten(-2)


def num_parameters(model: nn.Module) -> int:
    """Count the numbers that training changes; weights that are frozen do not count."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def split_weight(weight: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """Split the columns of a weight [out, in] into one matrix [out, in_i] for each part [..., in_i] of its input."""
    return weight.split([part.shape[-1] for part in parts], -1) if len(parts) > 1 else (weight,)


def linear(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply concatenated parts [..., in_i] by a weight [out, in] -> [..., out]; the leading axes broadcast."""
    first, *rest = zip(parts, split_weight(weight, parts), strict=True)
    return sum((F.linear(x, w) for x, w in rest), F.linear(*first, bias))


class Linear(nn.Module):
    """Affine map ``W x + b`` of an input in parts, [..., in] -> [..., out]."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=torch.float32))

    def forward(self, *parts: Tensor) -> Tensor:
        return linear(parts, self.weight, self.bias)


class NormedLinear(Linear):
    """``act(LayerNorm(W x + b))`` of an input in parts, [..., in] -> [..., out]."""

    def __init__(self, in_features: int, out_features: int, act: Activation = mish) -> None:
        super().__init__(in_features, out_features)
        self.ln = nn.LayerNorm(out_features, dtype=torch.float32)
        self.act = act

    def forward(self, *parts: Tensor) -> Tensor:
        return self.act(self.ln(super().forward(*parts)))


class MLP(nn.Sequential):
    """Layers in a row; the first takes the parts of its input."""

    def forward(self, *parts: Tensor) -> Tensor:
        first, *rest = self
        x = first(*parts)
        for layer in rest:
            x = layer(x)
        return x


def mlp(in_features: int, hidden: Sequence[int], out_features: int, act: Activation | None = None) -> MLP:
    """Build hidden NormedLinear layers with Mish, then a plain affine map, or a NormedLinear if ``act`` is given."""
    widths = [in_features, *hidden]
    layers: list[nn.Module] = [NormedLinear(i, o) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    last = widths[-1]
    layers.append(NormedLinear(last, out_features, act) if act else Linear(last, out_features))
    return MLP(*layers)


class QEnsemble(nn.Module):
    """``num_q`` value networks in -> M -> M -> K with stacked weights: one batched product per layer for all heads.

    Parameter ``4 l + s`` belongs to layer l: s = 0 is the weight [Q, out, in], 1 the bias [Q, out], 2 and 3 the scale
    and shift of the LayerNorm [Q, out]. The last layer has neither LayerNorm nor activation: only 8 and 9.
    """

    def __init__(self, num_q: int, in_features: int, width: int, num_bins: int) -> None:
        super().__init__()
        shapes: list[tuple[int, ...]] = []
        for i, o in ((in_features, width), (width, width)):
            shapes += [(num_q, o, i), (num_q, o), (num_q, o), (num_q, o)]
        shapes += [(num_q, num_bins, width), (num_q, num_bins)]
        self.params = nn.ParameterList([nn.Parameter(torch.zeros(shape, dtype=torch.float32)) for shape in shapes])
        self.act: Activation = mish

    def forward(
        self,
        *parts: Tensor,
        heads: Tensor | None = None,
        dropout_mask: Tensor | None = None,
        detach: bool = False,
    ) -> Tensor:
        """Compute the logits of every head, or of the chosen ones.

        Args:
            parts: the input's parts, [..., in_i]; leading axes broadcast.
            heads: indices of the heads to evaluate, [n]; all by default.
            dropout_mask: factors on the first affine output of the evaluated heads, [n, ..., M]; none by default.
            detach: treat the weights as constants.

        Returns:
            [n, ..., K].
        """
        w0, b0, gain0, shift0, w1, b1, gain1, shift1, w2, b2 = self.chosen(heads, detach)
        h, rows = self.first(parts, w0, b0)  # [n, N, M]
        if dropout_mask is not None:
            h = h * dropout_mask.reshape(h.shape)
        h = self.act(layer_norm(h, gain0, shift0))
        h = self.act(layer_norm(self.affine(h, w1, b1), gain1, shift1))
        return self.affine(h, w2, b2).reshape(len(w2), *rows, -1)

    def chosen(self, heads: Tensor | None, detach: bool = False) -> list[Tensor]:
        """Parameters of the chosen heads, each [n, ...]."""
        params = [p.detach() if detach else p for p in self.params]
        return params if heads is None else [p.index_select(0, heads) for p in params]

    def first(self, parts: Sequence[Tensor], weight: Tensor, bias: Tensor) -> tuple[Tensor, torch.Size]:
        """Apply the first affine map of n heads, one product since they share their input.

        Returns:
            [n, N, M], and the leading axes that were flattened into N rows.
        """
        return per_head(linear(parts, weight.flatten(0, 1), bias.flatten()), len(weight))

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Apply a later affine map, one for each head: x [n, N, in], weight [n, out, in] -> [n, N, out]."""
        return torch.baddbmm(bias[:, None], x, weight.mT)


def per_head(x: Tensor, heads: int) -> tuple[Tensor, torch.Size]:
    """Bring outputs of n heads beside each other [..., n M] to [n, N, M]; with them the flattened axes."""
    rows = x.shape[:-1]
    return x.reshape(rows.numel(), heads, -1).transpose(0, 1), rows


def layer_norm(h: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm of h [n, N, M] with one gain and shift [n, M] per head."""
    return torch.addcmul(shift[:, None], F.layer_norm(h, h.shape[-1:]), gain[:, None])
