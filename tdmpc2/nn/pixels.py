"""The encoder of images and the random shift that augments them: docs/algorithm.md, "Pixels".

Parameter names are those of published checkpoints: the convolutions are layers 2, 4, 6 and 8 of ``_encoder.rgb``.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdmpc2.nn.layers import Linear, simnorm

SHIFT = 3  # pixels an image is moved by at most
_KERNELS = ((7, 2), (5, 2), (3, 2), (3, 1))  # size and stride of each convolution
_FEATURES = 4 * 4  # places that are left of an image, for each channel


class PixelEncoder(nn.ModuleDict):
    """Four convolutions and SimNorm, uint8 images [..., C, 64, 64] -> [..., D].

    Their output is the latent state where it has its size, as in TD-MPC2; elsewhere a linear map, layer 10, brings it
    to that size, so that every model size can learn from images.

    Args:
        channels: of an image, 3 for each stacked frame.
        width: channels of every convolution.
        latent_dim: D.
        group: size of SimNorm's groups.
    """

    def __init__(self, channels: int, width: int, latent_dim: int, group: int) -> None:
        layers: dict[str, nn.Module] = {}
        for index, (kernel, stride) in enumerate(_KERNELS):
            layers[str(2 + 2 * index)] = nn.Conv2d(width if index else channels, width, kernel, stride)
        if (features := width * _FEATURES) != latent_dim:
            layers["10"] = Linear(features, latent_dim)
        super().__init__(layers)
        self.act = partial(simnorm, group=group)

    def forward(self, images: Tensor, shift: Tensor | None = None) -> Tensor:
        """Encode images.

        Args:
            images: uint8 [..., C, 64, 64].
            shift: of each image, see :func:`random_shift`; none outside training.
        """
        rows, images = images.shape[:-3], images.reshape(-1, *images.shape[-3:])  # [N, C, 64, 64]
        if shift is not None:
            images = shift_images(images, shift.reshape(-1, 2))
        x = images.to(self["2"].weight.dtype) / 255 - 0.5  # type: ignore[arg-type]
        first, *rest = (self[str(2 + 2 * index)] for index in range(len(_KERNELS)))
        x = first(x)
        for layer in rest:
            x = layer(F.relu(x))
        x = x.flatten(1)  # channel by channel
        return self.act(self["10"](x) if "10" in self else x).reshape(*rows, -1)


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
