"""Matrix products in every number format, and the formats in which agents of each kind of file compute."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tdmpc2.acceleration.low_precision import lower, lower_heads
from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tdmpc2.nn.formats import batched_matmul, matmul, to_int8
from tdmpc2.nn.layers import Linear, NormedLinear, QEnsemble
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.precision import execution
from tdmpc2.quantization.measure import weight_bytes
from tdmpc2.quantization.recipes import RECIPES, quantize_state
from tdmpc2.support.runtime import has_cpp_compiler
from tests.helpers.reference import shared_file

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Compute the int8 product in float64: each row in 256 steps from its smallest to its largest value."""
    low, high = (bound.double() for bound in x.aminmax(dim=-1, keepdim=True))
    step = (high - low) / 255
    rows = ((x.double() - low) / step).round() * step + low
    return (rows @ weight.double().T) * scale.double().T


@settings(max_examples=25, deadline=None)
@given(st.integers(32, 70), st.integers(32, 150), st.integers(1, 40), st.integers(0, 5))
def test_int8_matmul_is_exact(rows: int, inputs: int, outputs: int, seed: int) -> None:
    x, (weight, scale) = normal(rows, inputs, seed=seed), to_int8(normal(outputs, inputs, seed=seed + 1))
    bias = normal(outputs)
    want = exact(x, weight, scale)
    # In float32 a tie may round either way, which changes one input by one step.
    step = float((x.max() - x.min()) / 255 * scale.max() * 127)
    got = matmul(x, weight, bias, scale)
    assert float((got - bias - want).abs().max()) <= step * 1.01
    assert float((got - bias - want).norm() / want.norm()) < 2e-3
    columns = slice(0, inputs - inputs % 4)  # a view with gaps, as of a split weight
    x, weight = x[:, columns], weight[:, columns]
    assert_close(matmul(x, weight, None, scale), exact(x, weight, scale).float(), rtol=0, atol=step * 1.01)


@pytest.mark.parametrize(("rows", "inputs"), [(1, 200), (40, 6)])
def test_int8_matmul_of_small_sizes_dequantises_the_weight(rows: int, inputs: int) -> None:
    x, (weight, scale) = normal(rows, inputs), to_int8(normal(5, inputs))
    assert_close(matmul(x, weight, None, scale), x @ (weight * scale).T, rtol=1e-5, atol=1e-5)


def test_int8_matmul_of_constant_rows_is_exact() -> None:
    weight, scale = to_int8(normal(8, 64))
    x = normal(40, 64)
    x[3], x[4], x[5] = 0, 1e-44, 2.5
    got = matmul(x, weight, None, scale)
    assert got.isfinite().all()
    assert not got[3].any()
    assert_close(got[5], (x[5] @ (weight * scale).T), rtol=1e-5, atol=1e-5)


def test_weight_only_matmul_equals_dequantised_weight() -> None:
    x, (weight, scale) = normal(40, 64), to_int8(normal(8, 64))
    assert_close(matmul(x, weight, None, scale, torch.float32), x @ (weight * scale).T, rtol=1e-5, atol=1e-5)
    low = matmul(x, weight, None, scale, torch.bfloat16)
    assert low.dtype == torch.float32
    assert_close(low, (x.bfloat16() @ weight.bfloat16().T).float() * scale.T, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("wide", [torch.int8, torch.float32])
def test_batched_matmuls_are_single_ones(wide: torch.dtype) -> None:
    x, bias, (weight, scale) = normal(3, 40, 64), normal(3, 8), to_int8(normal(3, 8, 64))
    got = batched_matmul(x, weight, bias, scale, wide)
    for head in range(3):
        assert torch.equal(got[head], matmul(x[head], weight[head], bias[head], scale[head], wide))


@pytest.mark.parametrize(("name", "limit"), [("fp32", 0), ("bf16", 1e-2), ("fp16", 2e-3), ("int8", 2e-2)])
def test_layer_in_format_is_within_its_error(name: str, limit: float) -> None:
    layer = NormedLinear(70, 48)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    x, action = normal(40, 64), normal(40, 6, seed=1)
    want = layer(x, action).detach()
    lower(layer, name)
    got = layer(x, action).detach()
    assert got.dtype == torch.float32
    error = float((got - want).norm() / want.norm())
    assert error == 0 if not limit else 0 < error < limit
    with pytest.raises(AssertionError):
        lower(layer, "int4")


def test_int8_ensemble_heads_equal_single_layers() -> None:
    ensemble = QEnsemble(5, 70, 32, 11)
    for parameter in ensemble.params:
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    x, want = normal(40, 70), ensemble(normal(40, 70))
    lower_heads(ensemble, ["int8"] * 3)
    everything, two = ensemble(x), ensemble(x, heads=torch.tensor([3, 1]))
    assert 0 < float((everything - want).norm() / want.norm()) < 0.05
    assert_close(two, everything[[3, 1]])


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="compiling needs a C++ compiler")
def test_int8_layer_compiled_equals_plain() -> None:
    layer = Linear(128, 64)
    torch.nn.init.normal_(layer.weight)
    lower(layer, "int8")
    x = normal(64, 128)
    assert_close(torch.compile(layer)(x), layer(x), rtol=1e-3, atol=0.02)


# -- files ------------------------------------------------------------------------------------------------------------


def formats(agent: TDMPC2) -> dict[str, set[torch.dtype]]:
    """Collect the types of each network's weights."""
    found: dict[str, set[torch.dtype]] = {}
    for name, parameter in agent.model.named_parameters():
        if parameter.ndim > 1 and not name.startswith(("_task_emb", "_target")) and ".ln." not in name:
            if name.startswith("_Qs.") and parameter.ndim != 3:
                continue
            found.setdefault(name.split(".")[0], set()).add(parameter.dtype)
    return found


@pytest.fixture
def payload(tiny_cfg: Config) -> Callable[[str], dict[str, object]]:
    state = WorldModel(tiny_cfg, torch.Generator().manual_seed(0)).state_dict()

    def make(recipe: str) -> dict[str, object]:
        config = {"config": tiny_cfg.to_dict()}
        if recipe == "fp32":
            return {"model": state, **config}
        return {"model": quantize_state(state, RECIPES[recipe]), "recipe": RECIPES[recipe].entry(), **config}

    return make


def test_load_agent_computes_in_the_files_formats(
    payload: Callable[[str], dict[str, object]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tdmpc2.precision.kernel_seconds", dict)
    monkeypatch.setattr("tdmpc2.precision.fastest_float", lambda stored, *_: "fp32" if stored == "fp32" else "bf16")
    monkeypatch.setattr("tdmpc2.precision.has_fast_int8", lambda device: True)
    for recipe, name, dtype in [
        ("fp32", "fp32", torch.float32),
        ("bf16", "bf16", torch.bfloat16),
        ("int8", "int8", torch.int8),
        ("int8-weight-only", "int8-weight-only", torch.int8),
    ]:
        agent = load_agent(payload(recipe), device="cpu", compile=False)
        assert agent.precision == name
        found = formats(agent)
        assert {key: found[key] for key in ("_dynamics", "_reward", "_pi", "_Qs")} == {
            key: {dtype} for key in ("_dynamics", "_reward", "_pi", "_Qs")
        }
        assert found["_encoder"] == ({torch.float32, torch.int8} if dtype == torch.int8 else {torch.float32})
        assert agent.act(torch.zeros(24), t0=True, task="walker-walk").shape == (6,)
    assert not caplog.messages
    weight_only = load_agent(payload("int8-weight-only"), device="cpu", compile=False)
    assert weight_only.model._dynamics[0].compute_dtype == torch.bfloat16  # type: ignore[union-attr]
    assert weight_bytes(weight_only.model) < 0.5 * weight_bytes(load_agent(payload("fp32"), device="cpu").model)


def test_load_agent_falling_back_says_so_in_one_line(
    payload: Callable[[str], dict[str, object]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tdmpc2.precision.kernel_seconds", dict)
    monkeypatch.setattr("tdmpc2.precision.has_fast_int8", lambda device: False)
    for recipe in ("fp16", "bf16", "int8"):
        caplog.clear()
        assert load_agent(payload(recipe), device="cpu").precision == "fp32"
        (message,) = caplog.messages
        assert message.endswith(f"{recipe} file: {recipe} weights are computed in fp32, the fastest this cpu does well")
    caplog.clear()
    assert load_agent(payload("int8"), device="cpu", precision="int8").precision == "int8"
    assert not caplog.messages


def test_load_agent_with_precision_asked_for_uses_it(payload: Callable[[str], dict[str, object]]) -> None:
    for recipe in ("fp32", "fp16", "int8", "int8-weight-only"):
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("int8", torch.int8)):
            agent = load_agent(payload(recipe), device="cpu", precision=precision)
            assert agent.precision == precision
            assert formats(agent)["_Qs"] == formats(agent)["_pi"] == {dtype}
    # Int8 weights are the same numbers, whether they were stored or quantised while loading.
    first = load_agent(payload("fp32"), device="cpu", precision="int8").model
    second = load_agent(payload("int8"), device="cpu", precision="int8").model
    assert torch.equal(first._pi[1].weight, second._pi[1].weight)  # type: ignore[union-attr]


def test_agent_below_fp32_acts_but_does_not_train(payload: Callable[[str], dict[str, object]]) -> None:
    agent = load_agent(payload("int8"), device="cpu", precision="int8")
    with pytest.raises(ValueError, match="loaded to act in int8"):
        agent.update(None)
    with pytest.raises(ValueError, match="loaded to act in int8"):
        agent.save("x.pt")


@pytest.mark.parametrize("kind", ["fp16", "int8", "mixed"])
def test_load_agent_of_published_file_has_its_formats(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    file = load_file(shared_file(f"checkpoints/mt30_1M_steps_045dist_{kind}.pt"))
    with caplog.at_level(logging.WARNING):
        agent = load_agent(file.path, device="cpu", num_samples=32, num_elites=8, num_pi_trajs=4)  # type: ignore[arg-type]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{file.path}: {kind} file: ")
    assert agent.precision == execution("auto", file, CPU).name
    assert agent.precision in ("bf16", "fp32")
    assert agent.act(torch.zeros(24), t0=True, task="walker-walk").shape == (6,)
