"""Mish of LayerNorm as one operator of training on a CPU: what torch.compile makes of it takes three times as long."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tdmpc2.cpu import library

_LANES = 16


class _Weights(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("bias", "gain", "shift", "factors")]


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in "networks rows width network_stride row_stride threads".split()]


def fits(width: int) -> bool:
    """Whether the operator can be used on rows of this width, on this machine. Builds it on first use."""
    return width % _LANES == 0 and not library.reason(library.UPDATE)


@torch.library.custom_op("tdmpc2::norm_mish", mutates_args=(), device_types="cpu")
def _forward(x: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor]:
    out, stats = _fake_forward(x, bias, gain, shift, factors)
    mean, inverse_std = stats
    arguments = (_pointer(x), _weights(x, bias, gain, shift, factors), _pointer(out), _pointer(mean))
    _function("norm_mish")(x.dtype == torch.bfloat16, *arguments, _pointer(inverse_std), _shape(x))
    return out, stats


@_forward.register_fake
def _fake_forward(
    x: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, factors: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(2, *x.shape[:2], dtype=torch.float32)


@torch.library.custom_op("tdmpc2::norm_mish_backward", mutates_args=(), device_types="cpu")
def _backward(
    dout: Tensor, x: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, factors: Tensor | None, stats: Tensor
) -> tuple[Tensor, Tensor]:
    dx, sums = _fake_backward(dout, x, bias, gain, shift, factors, stats)
    if x.stride() != dx.stride():  # where x has gaps
        x = torch.empty_like(dx).copy_(x)
    dout, (mean, inverse_std) = dout.contiguous(), stats
    weights = _weights(x, bias, gain, shift, factors)
    given = (_pointer(dout), _pointer(x), weights, _pointer(mean), _pointer(inverse_std))
    _function("norm_mish_backward")(x.dtype == torch.bfloat16, *given, _pointer(dx), _pointer(sums), _shape(x))
    return dx, sums


@_backward.register_fake
def _fake_backward(
    dout: Tensor, x: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, factors: Tensor | None, stats: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(3, *bias.shape, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _differentiate(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    dx, sums = _backward(dout, *ctx.saved_tensors)
    return dx, *sums.unbind(), None


_forward.register_autograd(_differentiate, setup_context=_save)


def norm_mish(x: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, factors: Tensor | None = None) -> Tensor:
    """``mish(LayerNorm(factors * (x + bias)))`` of n networks; everything in between is float32.

    Args:
        x: [n, N, M], float32 or bf16, M a multiple of 16; M must be the axis that is contiguous.
        bias: [n, M].
        gain: of the LayerNorm, [n, M].
        shift: [n, M].
        factors: of dropout, [n, N, M]; without gradient.

    Returns:
        [n, N, M] in the type of ``x``.
    """
    return _forward(x, bias, gain, shift, factors)[0]


def _function(name: str) -> Callable[..., None]:
    function: Callable[..., None] = getattr(library.load(library.UPDATE), name)
    return function


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _weights(x: Tensor, *weights: Tensor | None) -> _Weights:
    n, rows, width = x.shape
    for w in weights:
        if w is not None:
            assert w.is_contiguous(), w.stride()
            assert w.dtype == torch.float32, w.dtype
            assert w.shape in ((n, width), (n, rows, width)), (w.shape, x.shape)
    return _Weights(*(None if w is None else w.data_ptr() for w in weights))


def _shape(x: Tensor) -> _Shape:
    assert x.dtype in (torch.float32, torch.bfloat16), x.dtype
    assert x.stride(2) == 1, x.stride()
    assert x.shape[2] % _LANES == 0, x.shape
    return _Shape(*x.shape, x.stride(0), x.stride(1), torch.get_num_threads())
