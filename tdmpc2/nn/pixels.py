"""The encoder of images and the random shift that augments them: docs/algorithm.md, "Pixels".

Parameter names are those of published checkpoints: the convolutions are layers 2, 4, 6 and 8 of ``_encoder.rgb``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdmpc2.nn.convolutions import KERNELS, places
from tdmpc2.nn.layers import Activation, NormedLinear, identity, simnorm

SHIFT = 3  # pixels an image is moved by at most
_NO_VARIANCE = 1e-10


class PixelEncoder(nn.ModuleDict):
    """Four convolutions and SimNorm, uint8 images [..., C, height, width] -> [..., D].

    Their output is the latent state where it has its size, as in TD-MPC2; elsewhere a linear map with LayerNorm, layer
    10, brings it to that size, so that every model size can learn from images. Without LayerNorm SimNorm saturated, and
    all images had one latent state before the first reward was found.

    Args:
        shape: of an image, (C, height, width); 3 channels for each stacked frame.
        width: channels of every convolution.
        latent_dim: D.
        group: size of SimNorm's groups; 0: layer 10 is always there and its output is without, to be added to another
            encoder's.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, latent_dim: int, group: int) -> None:
        channels, *sides = shape
        layers: dict[str, nn.Module] = {}
        for index, (kernel, stride) in enumerate(KERNELS):
            layers[str(2 + 2 * index)] = nn.Conv2d(width if index else channels, width, kernel, stride)
        features = width * math.prod(map(places, sides))
        if not group or features != latent_dim:
            layers["10"] = NormedLinear(features, latent_dim, identity)
        super().__init__(layers)
        self.act: Activation = partial(simnorm, group=group) if group else identity

    @torch.no_grad()
    def fit(self, images: Tensor, average: Callable[[Sequence[Tensor]], None]) -> None:
        """Scale each layer so that its outputs have mean 0 and variance 1 over images: docs/algorithm.md, "Pixels".

        Most of an image is the same in all of them. What differs is a twentieth of what layers with random weights
        give, and what follows hardly sees it.

        Args:
            images: uint8 [N, C, height, width].
            average: takes the mean over all processes, in place.
        """
        x = images.to(self["2"].weight.dtype) / 255 - 0.5  # type: ignore[arg-type]
        for number, layer in enumerate(self.values()):
            assert isinstance(layer, nn.Conv2d | NormedLinear)
            convolves = isinstance(layer, nn.Conv2d)
            x = F.relu(x) if number and convolves else x if convolves else x.flatten(1)
            y = layer(x) if convolves else F.linear(x, layer.weight, layer.bias)  # before its LayerNorm
            rest = (0, 2, 3) if convolves else (0,)
            average([mean := y.mean(rest)])
            y = y - mean.view(-1, *[1] * (len(rest) - 1))
            average([variance := y.square().mean(rest)])
            factor = torch.where(variance > _NO_VARIANCE, variance.rsqrt(), 1.0)  # of equal images nothing is known
            layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.ndim - 1)))
            assert layer.bias is not None
            layer.bias.sub_(mean).mul_(factor)
            x = layer(x)

    def forward(self, images: Tensor, shift: Tensor | None = None) -> Tensor:
        """Encode images.

        Args:
            images: uint8 [..., C, height, width].
            shift: of each image, see :func:`random_shift`; none outside training.
        """
        rows, images = images.shape[:-3], images.reshape(-1, *images.shape[-3:])  # [N, C, 64, 64]
        if shift is not None:
            images = shift_images(images, shift.reshape(-1, 2))
        dtype: torch.dtype = self["2"].weight.dtype  # type: ignore[assignment]
        x = images.to(dtype) / 255 - 0.5
        first, *rest = (self[str(2 + 2 * index)] for index in range(len(KERNELS)))
        x = first(x)
        for layer in rest:
            x = layer(F.relu(x))
        x = x.flatten(1).to(dtype)  # channel by channel; autocast is for products alone
        return self.act(self["10"](x) if "10" in self else x).reshape(*rows, -1)


def split_observation(obs: Tensor, obs_dim: int, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Take the bytes of an observation of state and images apart: ``obs=rgb+state``.

    Args:
        obs: uint8 [..., 4 O + C height width]: the state as float32, then the images.
        obs_dim: O.
        shape: of the images, (C, height, width).

    Returns:
        float32 state [..., O] and uint8 images [..., C, height, width].
    """
    state, images = obs.split([4 * obs_dim, math.prod(shape)], -1)
    own = state.clone(memory_format=torch.contiguous_format)  # float32 begin at multiples of four bytes, a row need not
    return own.view(torch.float32), images.unflatten(-1, shape)


def random_shift(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Draw a shift for each image, int64 [*shape, 2] in 0..6: columns to the right, then rows down; 3 is the middle."""
    return torch.randint(2 * SHIFT + 1, (*shape, 2), device=device, generator=generator)


def shift_images(images: Tensor, shift: Tensor) -> Tensor:
    """Cut each image out of its copy that is padded by 3 with its border (DrQ-v2, Yarats et al. 2021, section 3.1).

    Args:
        images: [N, C, height, width].
        shift: [N, 2], see :func:`random_shift`; all channels of an image move together.

    Returns:
        Images of the same shape and type.
    """
    (height, width), device = images.shape[-2:], images.device
    columns = (torch.arange(width, device=device) + shift[:, :1] - SHIFT).clamp(0, width - 1)  # [N, width]
    rows = (torch.arange(height, device=device) + shift[:, 1:] - SHIFT).clamp(0, height - 1)  # [N, height]
    index = torch.arange(len(images), device=device)
    return images[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
