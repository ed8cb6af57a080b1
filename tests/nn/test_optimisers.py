"""Gradient clipping is torch's, to the last bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from tdmpc2.nn.optimisers import clip_gradients


def parameters(scale: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.zeros(shape, requires_grad=True) for shape in ((3, 5), (7,), (2, 2))]
    for parameter in found[:2]:  # the last one has no gradient
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return found


@pytest.mark.parametrize("scale", [1e-6, 1.0, 4.2, 1e3, 0.0, math.inf, math.nan])
def test_clipped_gradients_and_norm_equal_torchs(scale: float) -> None:
    own, torchs = parameters(scale), parameters(scale)
    for mine, theirs in zip(own, torchs, strict=True):
        if mine.grad is not None and theirs.grad is not None:
            mine.grad[0], theirs.grad[0] = (torch.nan_to_num(grad[0], 1.0) for grad in (mine.grad, theirs.grad))
    norm, expected = clip_gradients(own, 20.0), clip_grad_norm_(torchs, 20.0)
    torch.testing.assert_close(norm, expected, rtol=0, atol=0, equal_nan=True)
    for mine, theirs in zip(own, torchs, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("distance", [-1, 0, 1])
def test_norm_beside_the_limit_is_clipped_as_by_torch(distance: int) -> None:
    limit = torch.tensor(20.0)
    for _ in range(abs(distance)):
        limit = torch.nextafter(limit, torch.tensor(math.copysign(math.inf, distance)))
    norms = []
    for clip in (clip_gradients, clip_grad_norm_):
        parameter = torch.zeros(1, requires_grad=True)
        parameter.grad = limit.clone()[None]
        clip([parameter], 20.0)
        norms.append(parameter.grad.clone())
    assert torch.equal(*norms)


def test_norm_of_no_gradients_is_zero() -> None:
    assert clip_gradients([torch.zeros(2, requires_grad=True)], 20.0) == 0
