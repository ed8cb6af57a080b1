"""The convolutions of the encoder of images, as numbers: what they leave of an image."""

from __future__ import annotations

KERNELS = ((7, 2), (5, 2), (3, 2), (3, 1))  # size and stride of each


def places(side: int) -> int:
    """Count the places that are left of a side, in pixels: 64 -> 29 -> 13 -> 6 -> 4."""
    for kernel, stride in KERNELS:
        side = (side - kernel) // stride + 1
    return side
