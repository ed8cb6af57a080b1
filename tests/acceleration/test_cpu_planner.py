"""The planner's functions in the fused CPU kernels against plain PyTorch."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tdmpc2 import planner
from tdmpc2.acceleration.cpu.networks import PackedNetworks
from tdmpc2.acceleration.low_precision import planning_format, set_precision
from tdmpc2.config import Config
from tdmpc2.nn import layers
from tdmpc2.nn.world_model import TaskContext, WorldModel
from tdmpc2.quantization.recipes import relative_db
from tdmpc2.quantization.regret import plan_regret
from tests.helpers.cpu_kernels import emulate, needs_library, no_database
from tests.helpers.reference import load_golden

pytestmark = pytest.mark.usefixtures("no_grad")


def random_model(cfg: Config, seed: int = 0) -> WorldModel:
    """Make a model whose outputs are far from constant."""
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
    """Make arguments of ``estimate_value``."""
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
def test_cpu_planner_in_fp32_equals_plain(cfg: Config, num_envs: int) -> None:
    assert_equals_plain(cfg, num_envs, 61)


@needs_library
@no_database
@given(
    st.integers(1, 3), st.integers(1, 60), st.integers(1, 4), st.integers(1, 70), st.integers(1, 5), st.integers(2, 40)
)
def test_cpu_planner_of_odd_sizes_equals_plain(
    num_envs: int, samples: int, horizon: int, width: int, groups: int, bins: int
) -> None:
    cfg = small(horizon=horizon, mlp_dim=width, latent_dim=8 * groups, num_bins=bins, task_dim=width)
    model = random_model(cfg, seed=bins)
    networks, inputs = PackedNetworks(model), inputs_of(model, num_envs, samples)
    # With one unit, LayerNorm divides rounding errors by the square root of its epsilon, so the limit is loose.
    want, got = planner.estimate_value(model, **inputs), networks.estimate_value(**inputs)
    assert_close(got, want, rtol=2e-3, atol=2e-3 * max(1.0, float(want.abs().max())))
    rollout = rollout_inputs(model, num_envs, samples)
    assert_close(networks.policy_rollout(**rollout), planner.policy_rollout(model, **rollout), rtol=0, atol=1e-3)


MIXED = {"_dynamics.0": "int8", "_dynamics.1": "bf16", "_reward.1": "int8", "_reward.2": "bf16", "_pi.0": "bf16",
         "_pi.1": "int8", "_Qs.params.0": "bf16", "_Qs.params.4": "int8"}  # fmt: skip


@needs_library
@pytest.mark.parametrize("name", ["bf16", "int8", "int8-weight-only", "mixed", "only int8"])
@pytest.mark.parametrize("cfg", [small(num_q=5), Config(device="cpu")], ids=["small", "1M"])
def test_cpu_planner_quantised_matches_emulated_arithmetic(
    monkeypatch: pytest.MonkeyPatch, cfg: Config, name: str
) -> None:
    plain = random_model(cfg)
    inputs, rollout = inputs_of(plain, 2, 200), rollout_inputs(plain, 2, 24)

    def formats(matrix: str) -> str:
        if name == "only int8":  # all layers have codes of one byte, others have wider ones
            return "int8"
        return planning_format(name, matrix) if name != "mixed" else MIXED.get(matrix.removesuffix(".weight"), "fp32")

    model = set_precision(copy.deepcopy(plain), formats, torch.bfloat16)
    networks = PackedNetworks(model)
    exact = planner.estimate_value(plain, **inputs), planner.policy_rollout(plain, **rollout)
    emulate(monkeypatch, cfg, among_int8=name not in ("bf16", "int8-weight-only"))
    want = planner.estimate_value(model, **inputs), planner.policy_rollout(model, **rollout)
    got = networks.estimate_value(**inputs), networks.policy_rollout(**rollout)
    for got_one, want_one, exact_one in zip(got, want, exact, strict=True):
        # Sums in another order move a few inputs to the next code, which is far less than the error of quantising.
        assert relative_db(got_one, want_one) < relative_db(want_one, exact_one) - 10
        assert relative_db(got_one, exact_one) < -15


@needs_library
@pytest.mark.parametrize(("name", "limit"), [("bf16", -20), ("int8", -10)])
def test_cpu_planner_values_of_published_student_are_within_limit(
    published: dict[str, Tensor], name: str, limit: float
) -> None:
    """Errors are measured relative to the spread of an environment's values, which decides how samples rank."""
    model = WorldModel(Config(device="cpu")).requires_grad_(False)
    model.load_state_dict(published)
    low = set_precision(copy.deepcopy(model), name)
    g, inputs = load_golden("model_forward.npz"), inputs_of(model, 6, 256)
    inputs["z"] = model.encode(g["obs"][:30:5], torch.arange(0, 30, 5))  # tasks as in the other inputs
    want = planner.estimate_value(model, **inputs)

    def error(values: Tensor) -> float:
        errors, std = values - want, want.std(-1, keepdim=True)
        errors = (errors - errors.mean(-1, keepdim=True)) / std  # errors that all samples share change no ranking
        return relative_db(1 + errors, torch.ones_like(errors))

    found = error(PackedNetworks(low).estimate_value(**inputs))
    assert found < limit
    assert found < error(planner.estimate_value(low, **inputs)) + 1  # no worse than the plain functions


@needs_library
def test_cpu_planner_with_several_threads_is_equal() -> None:
    model = set_precision(random_model(small()), "int8")
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
def test_cpu_planner_with_non_finite_values_counts_zero(name: str) -> None:
    model = set_precision(random_model(small()), name)
    inputs = inputs_of(model, 3, 20)
    inputs["z"][1, 3] = torch.nan
    inputs["actions"][2, 0, 7, 1] = torch.inf
    got = PackedNetworks(model).estimate_value(**inputs)
    assert not got[1].any()  # NaN counts as zero
    assert got[2, 7] == 0
    assert torch.equal(got == 0, planner.estimate_value(model, **inputs) == 0)

    model = random_model(small(vmax=200.0))
    model._Qs.params[9].fill_(-200)[:, -1] = 200  # all weight is on the last bin, whose value overflows
    inputs = inputs_of(model, 2, 20)
    want = planner.estimate_value(model, **inputs)
    assert float(want.max()) == torch.finfo(torch.float32).max
    assert torch.equal(PackedNetworks(model).estimate_value(**inputs), want)


@needs_library
@pytest.mark.parametrize("start", ["previous", "policy"])
def test_packed_networks_plan_equals_plain_plan(start: str) -> None:
    cfg = small(num_samples=64, num_elites=8, num_pi_trajs=8, iterations=3, num_q=3, plan_start=start)
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
def test_packed_networks_of_published_student_have_little_regret(published: dict[str, Tensor], name: str) -> None:
    model = WorldModel(Config(device="cpu")).requires_grad_(False)
    model.load_state_dict(published)
    low = set_precision(copy.deepcopy(model), name)
    g, rows = load_golden("model_forward.npz"), slice(0, 15)
    plan_fn = partial(planner.plan, **PackedNetworks(low).functions())
    found = plan_regret(model, low, g["obs"][rows], g["task"][rows], plan_fn=plan_fn)
    assert float(found.mean()) < 0.1
    assert float(found.max()) < 1.0


@needs_library
def test_packed_networks_after_weight_change_stay_as_packed() -> None:
    model = random_model(small(mlp_dim=64, latent_dim=64))  # nothing to pad
    networks, inputs = PackedNetworks(model), inputs_of(model, 2, 20)
    before = networks.estimate_value(**inputs)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(networks.estimate_value(**inputs), before)


@needs_library
def test_packed_networks_of_unsupported_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"simnorm_dim=6: .*1, 2, 4, 8, 16"):
        PackedNetworks(WorldModel(small(simnorm_dim=6)))
    model = random_model(small())
    inputs = inputs_of(model, 2, 20)
    wide = TaskContext(*(None if x is None else x.expand(2, 20, -1) for x in inputs["task"]))
    with pytest.raises(RuntimeError, match="expand"):
        PackedNetworks(model).estimate_value(**{**inputs, "task": wide})
