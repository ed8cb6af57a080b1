"""One layer of the fused CPU kernels against plain PyTorch and the emulated formats."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tdmpc2.acceleration.cpu.networks import PackedLayer, linear, normed_linear
from tdmpc2.acceleration.low_precision import lower
from tdmpc2.nn import layers
from tdmpc2.nn.layers import Linear, NormedLinear
from tests.helpers.cpu_kernels import FORMATS, emulated, needs_library, no_database

pytestmark = pytest.mark.usefixtures("no_grad")


# -- one layer --------------------------------------------------------------------------------------------------------


def random_layer(cls: type[Linear], inputs: int, outputs: int, name: str, seed: int = 0) -> Linear:
    torch.manual_seed(seed)
    layer = cls(inputs, outputs).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.normal_()
    lower(layer, name, torch.bfloat16)
    return layer


@needs_library
@pytest.mark.parametrize("name", FORMATS)
@no_database
@given(st.integers(1, 100), st.integers(1, 150), st.integers(1, 140), st.integers(0, 3))
def test_cpu_matmul_of_any_shape_is_exact(name: str, rows: int, inputs: int, outputs: int, seed: int) -> None:
    layer = random_layer(Linear, inputs, outputs, name, seed)
    x = torch.randn(rows, inputs) * torch.rand(rows, 1) * 3
    want = emulated(x, layer.weight, layer.bias, layer.scale, layer.compute_dtype)
    got = normed_linear(x, PackedLayer(linear(layer)))
    assert_close(got, want, rtol=1e-5, atol=3e-6 * inputs)


@needs_library
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 16, 16), (100, 384, 384), (33, 101, 76), (30, 1376, 4096)])
def test_cpu_normed_linear_matches_emulated_format(name: str, sizes: tuple[int, int, int]) -> None:
    rows, inputs, outputs = sizes
    layer = random_layer(NormedLinear, inputs, outputs, name)
    assert isinstance(layer, NormedLinear)
    x = torch.nn.functional.mish(2 * torch.randn(rows, inputs))
    want = layers.mish(layer.ln(emulated(x, layer.weight, layer.bias, layer.scale, layer.compute_dtype)))
    assert_close(normed_linear(x, PackedLayer(linear(layer))), want, rtol=1e-4, atol=1e-5)


@needs_library
def test_cpu_int8_matmul_of_constant_rows_is_exact() -> None:
    layer = random_layer(Linear, 20, 10, "int8")
    x = torch.tensor([[0.0], [1.5], [-3.0], [1e-38]]).expand(4, 20)
    want = x @ (layer.weight * layer.scale).T + layer.bias
    assert_close(normed_linear(x, PackedLayer(linear(layer))), want, rtol=1e-5, atol=1e-5)


# -- the planner's functions ------------------------------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize("position", [0, 17, 70])
def test_cpu_int8_layer_with_one_nan_input_gives_nan_row(position: int) -> None:
    layer = Linear(71, 64)
    layer.weight.normal_()
    lower(layer, "int8")
    x = torch.randn(40, 71)
    x[3, position] = torch.nan
    got = normed_linear(x, PackedLayer(linear(layer)))
    assert got.isnan().all(1).nonzero().tolist() == got.isnan().any(1).nonzero().tolist() == [[3]]
    assert layer(x).isnan().all(1).nonzero().tolist() == [[3]]  # as in the plain product
