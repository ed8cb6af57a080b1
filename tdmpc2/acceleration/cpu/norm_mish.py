"""Mish of LayerNorm as one operator of training on a CPU: what torch.compile makes of it takes three times as long."""

from __future__ import annotations

import ctypes
import functools
from typing import Any, cast

import torch
from torch import Tensor

from tdmpc2.acceleration.cpu import library
from tdmpc2.support.runtime import kernel_threads

_LANES = 16


def fits(width: int) -> bool:
    """True if the operator can be used on rows of this width, on this machine."""
    return width % _LANES == 0 and not library.reason()


def _forward(x: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor]:
    out, stats = _fake_forward(x, bias, gain, shift, factors)
    weights, shape = _weights(x, bias, gain, shift, factors), _shape(x)
    _call("norm_mish", x, x.data_ptr(), *weights, out.data_ptr(), stats.data_ptr(), *shape)
    return out, stats


def _fake_forward(
    x: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, factors: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((2, *x.shape[:2]), dtype=torch.float32)


def _backward(
    dout: Tensor, x: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, factors: Tensor | None, stats: Tensor
) -> tuple[Tensor, Tensor]:
    dx, sums = _fake_backward(dout, x, bias, gain, shift, factors, stats)
    if x.stride() != dx.stride():  # where x has gaps
        x = torch.empty_like(dx).copy_(x)
    dout = dout.contiguous()
    given = (x.data_ptr(), *_weights(x, bias, gain, shift, factors), stats.data_ptr())
    _call("norm_mish_backward", x, dout.data_ptr(), *given, dx.data_ptr(), sums.data_ptr(), *_shape(x))
    return dx, sums


def _fake_backward(
    dout: Tensor, x: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, factors: Tensor | None, stats: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((3, *bias.shape), dtype=torch.float32)


class _NormMish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor | None) -> Tensor:
        out, stats = torch.ops.tdmpc2.norm_mish(*inputs)
        ctx.save_for_backward(*inputs, stats)
        return cast(Tensor, out)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        dx, sums = torch.ops.tdmpc2.norm_mish_backward(dout, *ctx.saved_tensors)
        return dx, *sums.unbind(), None


# Neither custom_op nor register_autograd, whose wrappers take longer than the operator itself on a small batch.
_OPERATORS = torch.library.Library("tdmpc2", "DEF")
_OPERATORS.define("norm_mish(Tensor x, Tensor bias, Tensor gain, Tensor shift, Tensor? factors) -> (Tensor, Tensor)")
_OPERATORS.define(
    "norm_mish_backward(Tensor dout, Tensor x, Tensor bias, Tensor gain, Tensor shift, Tensor? factors, Tensor stats)"
    " -> (Tensor, Tensor)"
)
for _name, _function, _fake in (
    ("norm_mish", _forward, _fake_forward),
    ("norm_mish_backward", _backward, _fake_backward),
):
    _OPERATORS.impl(_name, _function, "CPU")
    _OPERATORS.impl(_name, torch.library.fallthrough_kernel, "Autograd")  # its derivative is _NormMish's
    torch.library.register_fake(f"tdmpc2::{_name}", _fake, lib=_OPERATORS)


def norm_mish(x: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, factors: Tensor | None = None) -> Tensor:
    """``mish(LayerNorm(factors * (x + bias)))`` of n networks, once differentiable; what is in between is float32.

    Args:
        x: [n, N, M], float32 or bf16, M a multiple of 16; M must be the axis that is contiguous.
        bias: [n, M].
        gain: of the LayerNorm, [n, M].
        shift: [n, M].
        factors: of dropout, [n, N, M]; without gradient.

    Returns:
        [n, N, M] in the type of ``x``.
    """
    return cast(Tensor, _NormMish.apply(x, bias, gain, shift, factors))


def _call(name: str, x: Tensor, *arguments: int) -> None:
    """Pointers as integers, and numbers; the first says of what type x is."""
    assert x.dtype in (torch.float32, torch.bfloat16), x.dtype
    function = getattr(library.load(), name)
    function(x.dtype == torch.bfloat16, *map(ctypes.c_int64, arguments))


def _weights(x: Tensor, *weights: Tensor | None) -> list[int]:
    """Addresses; 0 for None."""
    n, rows, width = x.shape
    for w in weights:
        if w is not None:
            assert w.is_contiguous(), w.stride()
            assert w.dtype == torch.float32, w.dtype
            assert w.shape in ((n, width), (n, rows, width)), (w.shape, x.shape)
    return [0 if w is None else w.data_ptr() for w in weights]


def _shape(x: Tensor) -> tuple[int, ...]:
    """``Shape`` of norm_mish.cpp: sizes, strides, and threads."""
    assert x.stride(2) == 1, x.stride()
    assert x.shape[2] % _LANES == 0, x.shape
    parallel = _openmp_parallel()
    # As many as torch has itself, whatever the quota is: a team of another size would end threads and start them again.
    threads = torch.get_num_threads() if parallel else kernel_threads()
    return (*x.shape, x.stride(0), x.stride(1), threads, parallel)


@functools.cache
def _openmp_parallel() -> int:
    """Return the address of GOMP_parallel, by which the threads of the OpenMP library that is loaded share a loop.

    torch's threads are of that library, and look for work for a moment after each of torch's operators. Threads of our
    own would compete with them for the cores. 0 where there is no such library.
    """
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0
