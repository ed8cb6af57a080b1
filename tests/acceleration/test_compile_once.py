"""Compiled functions: one agent never drops what another one had compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from tdmpc2.acceleration.compiled_update import compile_once, own_copy


def scaled_sum(x: Tensor, layer: torch.nn.Module) -> Tensor:
    return 2 * layer(x).sum()


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Replace the compiler by a backend that counts graphs."""
    counter, compile_with = CompileCounter(), torch.compile

    def compiled(function: Callable[..., Any], options: object, **keys: Any) -> Callable[..., Any]:
        return compile_with(function, backend=counter, **keys)

    monkeypatch.setattr(torch, "compile", compiled)
    return counter


def test_own_copy_of_many_agents_neither_meets_a_limit_nor_drops_what_others_compiled(counter: CompileCounter) -> None:
    """torch keeps eight variants of a function; the ninth agent of a sweep used to drop those of all others."""
    x = torch.ones(2, 3)
    layers = [torch.nn.Linear(3, size) for size in range(1, 13)]
    functions = [compile_once(scaled_sum, lambda x, layer: x.shape, {}) for _ in layers]
    for _ in range(2):
        for function, layer in zip(functions, layers, strict=True):
            assert torch.equal(function(x, layer), scaled_sum(x, layer))
    assert counter.frame_count == len(layers)


def test_compile_once_computes_other_sizes_uncompiled(counter: CompileCounter) -> None:
    layer = torch.nn.Linear(3, 1)
    function = compile_once(scaled_sum, lambda x, layer: x.shape, {})
    for rows in (4, 2, 4, 7):
        x = torch.ones(rows, 3)
        assert torch.equal(function(x, layer), scaled_sum(x, layer))
    assert counter.frame_count == 1


def test_own_copy_is_the_same_function_with_its_defaults() -> None:
    def function(x: int, y: int = 2, *, z: int = 3) -> int:
        return x + 10 * y + 100 * z

    copy = own_copy(function)
    assert copy(1) == 321
    assert copy(1, 4, z=5) == 541
    assert copy.__code__ is not function.__code__
