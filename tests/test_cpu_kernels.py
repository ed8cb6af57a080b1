"""The fused CPU kernels against plain PyTorch, and where they quantise against the same arithmetic in PyTorch."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tdmpc2 import planner
from tdmpc2.acceleration.cpu import library
from tdmpc2.acceleration.cpu.networks import PackedLayer, PackedNetworks, linear, normed_linear
from tdmpc2.config import Config
from tdmpc2.nn import layers
from tdmpc2.nn.layers import Linear, NormedLinear
from tdmpc2.nn.world_model import TaskContext, WorldModel, planning_format
from tdmpc2.quantization.recipes import relative_db
from tdmpc2.quantization.regret import plan_regret
from tests.conftest import load_golden

needs_library = pytest.mark.skipif(bool(library.reason()), reason=library.reason())
FORMATS = ("fp32", "bf16", "int8", "int8-weight-only")
no_database = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


# -- the kernels' arithmetic in PyTorch -------------------------------------------------------------------------------


def emulated(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, wide: torch.dtype | None = None
) -> Tensor:
    """The kernels' product, with exact sums."""
    factor = torch.ones(len(weight), 1) if scale is None else scale
    if weight.dtype == torch.int8 and wide is None:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        codes = ((x - low) * (torch.full_like(low, 255) / (high - low))).nan_to_num(0).round()
        step = ((high - low) / 255).double()
        total = step * (codes.double() @ weight.double().T) + low.double() * weight.double().sum(-1)
    else:
        total = x.to(wide or weight.dtype).double() @ weight.double().T
    total = total * factor.double().T
    return (total if bias is None else total + bias.double()).to(x.dtype)


def emulate(monkeypatch: pytest.MonkeyPatch, cfg: Config) -> None:
    """Give the plain functions the kernels' arithmetic: action, task and the first latent are multiplied in float32."""

    def product(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, wide: Any) -> Tensor:
        first_latent = x.shape[-1] == cfg.latent_dim and bool((x == x[..., :1, :]).all())
        if first_latent or x.shape[-1] in (cfg.action_dim, cfg.task_dim):
            weight, scale = weight.float() * (1 if scale is None else scale), None
        return emulated(x, weight, bias, scale, wide)

    def batched(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, wide: Any) -> Tensor:
        heads = zip(x, weight, bias, [None] * len(x) if scale is None else scale, strict=True)
        return torch.stack([emulated(*head, wide) for head in heads])

    monkeypatch.setattr(layers, "product", product)
    monkeypatch.setattr(layers, "batched_product", batched)


# -- one layer --------------------------------------------------------------------------------------------------------


def random_layer(cls: type[Linear], inputs: int, outputs: int, name: str, seed: int = 0) -> Linear:
    torch.manual_seed(seed)
    layer = cls(inputs, outputs).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.normal_()
    layer.set_format(name, torch.bfloat16)
    return layer


@needs_library
@pytest.mark.parametrize("name", FORMATS)
@no_database
@given(st.integers(1, 100), st.integers(1, 150), st.integers(1, 140), st.integers(0, 3))
def test_product_is_the_exact_one(name: str, rows: int, inputs: int, outputs: int, seed: int) -> None:
    layer = random_layer(Linear, inputs, outputs, name, seed)
    x = torch.randn(rows, inputs) * torch.rand(rows, 1) * 3
    want = emulated(x, layer.weight, layer.bias, layer.scale, layer.wide)
    got = normed_linear(x, PackedLayer(linear(layer, 0)))
    assert_close(got, want, rtol=1e-5, atol=3e-6 * inputs)


@needs_library
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 16, 16), (100, 384, 384), (33, 101, 76), (30, 1376, 4096)])
def test_normed_linear(name: str, sizes: tuple[int, int, int]) -> None:
    rows, inputs, outputs = sizes
    layer = random_layer(NormedLinear, inputs, outputs, name)
    assert isinstance(layer, NormedLinear)
    x = torch.nn.functional.mish(2 * torch.randn(rows, inputs))
    want = layers.mish(layer.ln(emulated(x, layer.weight, layer.bias, layer.scale, layer.wide)))
    assert_close(normed_linear(x, PackedLayer(linear(layer, 1))), want, rtol=1e-4, atol=1e-5)


@needs_library
def test_constant_rows_are_exact_in_int8() -> None:
    layer = random_layer(Linear, 20, 10, "int8")
    x = torch.tensor([[0.0], [1.5], [-3.0], [1e-38]]).expand(4, 20)
    want = x @ (layer.weight * layer.scale).T + layer.bias
    assert_close(normed_linear(x, PackedLayer(linear(layer, 0))), want, rtol=1e-5, atol=1e-5)


# -- the planner's functions ------------------------------------------------------------------------------------------


def random_model(cfg: Config, seed: int = 0) -> WorldModel:
    """A model whose outputs are far from constant."""
    generator = torch.Generator().manual_seed(seed)
    model = WorldModel(cfg).requires_grad_(False)
    for name, parameter in model.named_parameters():
        fan_in = parameter.shape[-1] if parameter.ndim > 1 else 4
        parameter.normal_(0, (3 if "_Qs.params.8" in name else 1) / fan_in**0.5, generator=generator)
        if "ln.weight" in name or name.endswith(("params.2", "params.6")):
            parameter.add_(1)
    return model


def small(task: str = "mt30", **changes: Any) -> Config:
    sizes = {"model_size": None, "mlp_dim": 40, "latent_dim": 24, "task_dim": 9, "num_q": 2, "device": "cpu"}
    return Config(task=task, **{**sizes, **changes})


def inputs_of(model: WorldModel, num_envs: int, samples: int, seed: int = 0) -> dict[str, Any]:
    """Arguments of ``estimate_value``."""
    cfg = model.cfg
    torch.manual_seed(seed)
    ids = torch.arange(num_envs) * 5 % len(cfg.task_specs)
    context = model.context(ids).unsqueeze(1)
    actions = torch.rand(num_envs, cfg.horizon, samples, cfg.action_dim) * 2 - 1
    return {
        "z": layers.simnorm(torch.randn(num_envs, cfg.latent_dim), cfg.simnorm_dim),
        "task": context,
        "actions": actions if context.action_mask is None else actions * context.action_mask.unsqueeze(1),
        "eps": torch.randn(num_envs, samples, cfg.action_dim),
        "heads": torch.randperm(cfg.num_q)[:2],
    }


def rollout_inputs(model: WorldModel, num_envs: int, samples: int) -> dict[str, Any]:
    inputs = inputs_of(model, num_envs, samples)
    eps = torch.randn(model.cfg.horizon, num_envs, samples, model.cfg.action_dim)
    return {"z": inputs["z"], "task": inputs["task"], "eps": eps}


def assert_equals_plain(cfg: Config, num_envs: int, samples: int) -> None:
    model = random_model(cfg)
    networks, inputs, rollout = (
        PackedNetworks(model),
        inputs_of(model, num_envs, samples),
        rollout_inputs(model, num_envs, samples),
    )
    want = planner.estimate_value(model, **inputs)
    assert_close(networks.estimate_value(**inputs), want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))
    assert float(want.abs().max()) > 0.1
    assert_close(networks.policy_rollout(**rollout), planner.policy_rollout(model, **rollout), rtol=0, atol=2e-4)


@needs_library
@pytest.mark.parametrize(
    ("cfg", "num_envs"),
    [
        (small(), 3),
        (small("mt80", num_q=5, horizon=1), 2),
        (small("dog-run", num_q=8, num_bins=200), 1),  # single-task, 38 actions
        (small("pendulum-spin", simnorm_dim=4, latent_dim=20, num_bins=2), 2),  # one action
        (Config(model_size=1, device="cpu"), 2),
        (Config(model_size=5, num_q=5, device="cpu"), 1),
    ],
    ids=["small", "mt80", "dog", "pendulum", "1M", "5M"],
)
def test_float32_is_the_plain_planner(cfg: Config, num_envs: int) -> None:
    assert_equals_plain(cfg, num_envs, 61)


@needs_library
@no_database
@given(
    st.integers(1, 3), st.integers(1, 60), st.integers(1, 4), st.integers(1, 70), st.integers(1, 5), st.integers(2, 40)
)
def test_odd_sizes(num_envs: int, samples: int, horizon: int, width: int, groups: int, bins: int) -> None:
    cfg = small(horizon=horizon, mlp_dim=width, latent_dim=8 * groups, num_bins=bins, task_dim=width)
    model = random_model(cfg, seed=bins)
    networks, inputs = PackedNetworks(model), inputs_of(model, num_envs, samples)
    # One unit wide, LayerNorm divides by the square root of its epsilon and rounding errors with it: loose.
    want, got = planner.estimate_value(model, **inputs), networks.estimate_value(**inputs)
    assert_close(got, want, rtol=2e-3, atol=2e-3 * max(1.0, float(want.abs().max())))
    rollout = rollout_inputs(model, num_envs, samples)
    assert_close(networks.policy_rollout(**rollout), planner.policy_rollout(model, **rollout), rtol=0, atol=1e-3)


MIXED = {"_dynamics.0": "int8", "_dynamics.1": "bf16", "_reward.1": "int8", "_reward.2": "bf16", "_pi.0": "bf16",
         "_pi.1": "int8", "_Qs.params.0": "bf16", "_Qs.params.4": "int8"}  # fmt: skip


@needs_library
@pytest.mark.parametrize("name", ["bf16", "int8", "int8-weight-only", "mixed", "only int8"])
@pytest.mark.parametrize("cfg", [small(num_q=5), Config(device="cpu")], ids=["small", "1M"])
def test_quantised_functions(monkeypatch: pytest.MonkeyPatch, cfg: Config, name: str) -> None:
    plain = random_model(cfg)
    inputs, rollout = inputs_of(plain, 2, 200), rollout_inputs(plain, 2, 24)

    def formats(matrix: str) -> str:
        if name == "only int8":  # codes of one byte in all layers, where others have room for more
            return "int8"
        return planning_format(name, matrix) if name != "mixed" else MIXED.get(matrix.removesuffix(".weight"), "fp32")

    model = copy.deepcopy(plain).set_precision(formats, torch.bfloat16)
    networks = PackedNetworks(model)
    exact = planner.estimate_value(plain, **inputs), planner.policy_rollout(plain, **rollout)
    emulate(monkeypatch, cfg)
    want = planner.estimate_value(model, **inputs), planner.policy_rollout(model, **rollout)
    got = networks.estimate_value(**inputs), networks.policy_rollout(**rollout)
    for got_one, want_one, exact_one in zip(got, want, exact, strict=True):
        # Sums in another order move a few inputs across the edge between two codes: far less than quantising did.
        assert relative_db(got_one, want_one) < relative_db(want_one, exact_one) - 10
        assert relative_db(got_one, exact_one) < -15


@needs_library
@pytest.mark.parametrize(("name", "limit"), [("bf16", -20), ("int8", -10)])
def test_values_of_the_published_student(published: dict[str, Tensor], name: str, limit: float) -> None:
    """Errors relative to the spread of an environment's values, in dB: what decides the ranking of its samples."""
    model = WorldModel(Config(device="cpu")).requires_grad_(False)
    model.load_state_dict(published)
    low = copy.deepcopy(model).set_precision(name)
    g, inputs = load_golden("model_forward.npz"), inputs_of(model, 6, 256)
    inputs["z"] = model.encode(g["obs"][:30:5], torch.arange(0, 30, 5))  # tasks as in the other inputs
    want = planner.estimate_value(model, **inputs)

    def error(values: Tensor) -> float:
        errors, std = values - want, want.std(-1, keepdim=True)
        errors = (errors - errors.mean(-1, keepdim=True)) / std  # without what all samples have in common
        return relative_db(1 + errors, torch.ones_like(errors))

    found = error(PackedNetworks(low).estimate_value(**inputs))
    assert found < limit
    assert found < error(planner.estimate_value(low, **inputs)) + 1  # no worse than the plain functions


@needs_library
def test_threads_give_equal_results() -> None:
    model = random_model(small()).set_precision("int8")
    networks, inputs, rollout = PackedNetworks(model), inputs_of(model, 3, 100), rollout_inputs(model, 1, 24)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append((networks.estimate_value(**inputs), networks.policy_rollout(**rollout)))
    finally:
        torch.set_num_threads(threads)
    for values, actions in results[1:]:
        assert torch.equal(values, results[0][0])
        assert torch.equal(actions, results[0][1])


@needs_library
@pytest.mark.parametrize("name", ["fp32", "bf16", "int8"])
def test_values_that_are_not_finite(name: str) -> None:
    model = random_model(small()).set_precision(name)
    inputs = inputs_of(model, 3, 20)
    inputs["z"][1, 3] = torch.nan
    inputs["actions"][2, 0, 7, 1] = torch.inf
    got = PackedNetworks(model).estimate_value(**inputs)
    assert not got[1].any()  # NaN counts as zero
    assert got[2, 7] == 0
    assert torch.equal(got == 0, planner.estimate_value(model, **inputs) == 0)

    model = random_model(small(vmax=200.0))
    model._Qs.params[9].fill_(-200)[:, -1] = 200  # certain of the last bin, whose value overflows
    inputs = inputs_of(model, 2, 20)
    want = planner.estimate_value(model, **inputs)
    assert float(want.max()) == torch.finfo(torch.float32).max
    assert torch.equal(PackedNetworks(model).estimate_value(**inputs), want)


@needs_library
@pytest.mark.parametrize("position", [0, 17, 70])
def test_one_nan_among_the_inputs_of_a_layer_is_not_quantised_away(position: int) -> None:
    layer = Linear(71, 64)
    layer.weight.normal_()
    layer.set_format("int8")
    x = torch.randn(40, 71)
    x[3, position] = torch.nan
    got = normed_linear(x, PackedLayer(linear(layer, 0)))
    assert got.isnan().all(1).nonzero().tolist() == got.isnan().any(1).nonzero().tolist() == [[3]]
    assert layer(x).isnan().all(1).nonzero().tolist() == [[3]]  # as the plain product


@needs_library
def test_plan_of_packed_networks_is_the_plain_plan() -> None:
    cfg = small(num_samples=64, num_elites=8, num_pi_trajs=8, iterations=3, num_q=3)
    model, ids = random_model(cfg), torch.tensor([1, 7])
    context = model.context(ids)
    noise = planner.draw_noise(cfg, 2, torch.device("cpu"), torch.Generator().manual_seed(0))
    args = (model, inputs_of(model, 2, 1)["z"], context, torch.zeros(2, cfg.horizon, cfg.action_dim), noise)
    want = planner.plan(*args, eval_mode=False)
    got = planner.plan(*args, eval_mode=False, **PackedNetworks(model).functions())
    assert_close(got.mean, want.mean, rtol=0, atol=1e-3)
    assert_close(got.action, want.action, rtol=0, atol=1e-3)


@needs_library
@pytest.mark.parametrize("name", ["bf16", "int8"])
def test_plans_of_the_published_student_are_as_good(published: dict[str, Tensor], name: str) -> None:
    model = WorldModel(Config(device="cpu")).requires_grad_(False)
    model.load_state_dict(published)
    low = copy.deepcopy(model).set_precision(name)
    g, rows = load_golden("model_forward.npz"), slice(0, 15)
    plan_fn = partial(planner.plan, **PackedNetworks(low).functions())
    found = plan_regret(model, low, g["obs"][rows], g["task"][rows], plan_fn=plan_fn)
    assert float(found.mean()) < 0.1
    assert float(found.max()) < 1.0


@needs_library
def test_packed_networks_are_copies() -> None:
    model = random_model(small(mlp_dim=64, latent_dim=64))  # nothing to pad
    networks, inputs = PackedNetworks(model), inputs_of(model, 2, 20)
    before = networks.estimate_value(**inputs)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(networks.estimate_value(**inputs), before)


@needs_library
def test_refused_models_and_contexts() -> None:
    with pytest.raises(ValueError, match=r"simnorm_dim=6: .*1, 2, 4, 8, 16"):
        PackedNetworks(WorldModel(small(simnorm_dim=6)))
    model = random_model(small())
    inputs = inputs_of(model, 2, 20)
    wide = TaskContext(*(None if x is None else x.expand(2, 20, -1) for x in inputs["task"]))
    with pytest.raises(RuntimeError, match="expand"):
        PackedNetworks(model).estimate_value(**{**inputs, "task": wide})


# -- the library ------------------------------------------------------------------------------------------------------


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache directory of the test's own, in which nothing is built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library._load.cache_clear()
    yield tmp_path / "tdmpc2"
    library._load.cache_clear()


@needs_library
def test_several_processes_build_at_once(uncached: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        paths = pool.map(library.build, [uncached] * 2, chunksize=1)
    assert paths[0] == paths[1]
    assert list(uncached.iterdir()) == [paths[0]]  # nothing temporary is left
    built = paths[0].stat().st_mtime_ns
    assert library.reason() == ""
    assert paths[0].stat().st_mtime_ns == built


@needs_library
@pytest.mark.parametrize("left", [0, 4000])
def test_a_damaged_library_is_built_anew(uncached: Path, left: int) -> None:
    path = library.build(uncached, library.UPDATE)
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    assert library.build(uncached, library.UPDATE).read_bytes() == whole


@needs_library
def test_there_is_one_openmp_runtime() -> None:
    maps = Path("/proc/self/maps").read_text().split()
    assert len({path for path in maps if "libgomp" in path or "libiomp" in path or "libomp" in path}) == 1


@pytest.mark.parametrize(
    ("compiler", "expected"),
    [
        ("no-such-compiler", "no C++ compiler: 'no-such-compiler' is not installed"),
        ("{broken}", "error: out of cheese"),
        ("{silent}", "exit code 3"),
        ("'unbalanced", "CXX='unbalanced: No closing quotation"),
    ],
)
def test_a_broken_compiler_is_a_reason(
    uncached: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, expected: str
) -> None:
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset(library._INSTRUCTIONS))
    scripts = {
        "broken": "echo note; echo 'x.cpp:1: error: out of cheese'; echo 'compilation terminated.'; exit 1",
        "silent": "exit 3",
    }
    for name, body in scripts.items():
        path = uncached.parent / name
        path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\n{{ {body}; }} >&2\n')
        path.chmod(0o755)
    monkeypatch.setenv("CXX", compiler.format(**{name: uncached.parent / name for name in scripts}))
    assert expected in library.reason()
    assert "\n" not in library.reason()
    with pytest.raises(RuntimeError, match="CPU kernels are not available"):
        library.load()
    assert not list(uncached.glob("*"))


def test_other_reasons(uncached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset(library._INSTRUCTIONS) - {"avx512_bf16"})
    assert "has no avx512_bf16" in library.reason()
    library._load.cache_clear()
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset(library._INSTRUCTIONS))
    uncached.write_text("a file where the directory should be")
    assert "exists" in library.reason() or "no C++ compiler" in library.reason()
