"""All variants of the CPU kernels that run here compute the same: in fp32 and int8 to the last bit."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tdmpc2.acceleration.cpu import library, norm_mish
from tdmpc2.acceleration.cpu.networks import PackedNetworks
from tdmpc2.acceleration.low_precision import planning_format, set_precision
from tdmpc2.nn.world_model import WorldModel
from tests.acceleration.test_cpu_planner import inputs_of, random_model, rollout_inputs, small
from tests.helpers.cpu_kernels import needs_library

pytestmark = [needs_library, pytest.mark.usefixtures("no_grad")]
VARIANTS = [found.name for found in library.variants() if found.runs_here] if not library.reason() else []


@pytest.fixture(params=VARIANTS[1:])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Use each variant but the scalar one."""
    force(monkeypatch, request.param)
    yield request.param
    library._load.cache_clear()


def force(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(library.VARIABLE, name)
    library._load.cache_clear()
    assert library.load().name == name


def lowered(name: str, **changes: Any) -> WorldModel:
    model = random_model(small(**changes))
    return (
        model if name == "fp32" else set_precision(model, lambda matrix: planning_format(name, matrix), torch.bfloat16)
    )


def results(model: WorldModel) -> tuple[Tensor, Tensor]:
    """Compute values and actions with the planner's two functions."""
    networks = PackedNetworks(model)
    return networks.estimate_value(**inputs_of(model, 2, 57)), networks.policy_rollout(**rollout_inputs(model, 2, 11))


@pytest.mark.parametrize(
    "sizes", [{}, {"latent_dim": 40, "mlp_dim": 70, "num_bins": 31}, {"simnorm_dim": 4}, {"episodic": True}]
)
@pytest.mark.parametrize("name", ["fp32", "bf16", "int8"])
def test_variant_plans_as_the_scalar_one(
    variant: str, monkeypatch: pytest.MonkeyPatch, name: str, sizes: dict[str, int]
) -> None:
    """An int8 episode that was recorded on a laptop is the same on a robot's ARM processor."""
    model = lowered(name, **sizes)
    got = results(model)
    force(monkeypatch, library.SCALAR)
    want = results(model)
    if name == "bf16":
        assert_close(got, want, rtol=1e-3, atol=2e-2)
    else:
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_variant_computes_norm_mish_as_the_scalar_one(
    variant: str, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, dout = torch.randn(3, 21, 48).to(dtype), torch.randn(3, 21, 48).to(dtype)
    weights = tuple(torch.randn(3, 48) for _ in range(3))
    factors = torch.rand(3, 21, 48)

    def both() -> tuple[Tensor, ...]:
        out, stats = norm_mish._forward(x, *weights, factors)
        return out, stats, *norm_mish._backward(dout, x, *weights, factors, stats)

    got = both()
    force(monkeypatch, library.SCALAR)
    assert all(torch.equal(a, b) for a, b in zip(got, both(), strict=True))


# -- threads ----------------------------------------------------------------------------------------------------------


def use_threads(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the planning kernels use this many threads of their own; torch's would not survive a fork."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)


def test_kernels_use_no_more_threads_than_the_container_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch does not know the quota, and threads beyond it wait for each other."""
    use_threads(monkeypatch, 64)
    monkeypatch.setattr("tdmpc2.support.runtime.quota_cores", lambda: 2)
    used: list[int] = []
    networks = PackedNetworks(random_model(small()))
    watched = SimpleNamespace(estimate_value=lambda _, *counts: used.append(counts[4]))
    networks._kernels = watched  # type: ignore[assignment]
    networks.estimate_value(**inputs_of(random_model(small()), 2, 300))
    assert used == [2]


def test_kernels_called_from_several_threads_at_once_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may let players of one agent act in several threads at once."""
    use_threads(monkeypatch, 3)
    model = random_model(small())
    networks, inputs = PackedNetworks(model), inputs_of(model, 2, 300)
    want = networks.estimate_value(**inputs)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: networks.estimate_value(**inputs), range(40)):
            assert torch.equal(got, want)


def test_kernels_in_a_forked_process_have_threads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child has none of its parent's threads, so the kernels must start their own."""
    use_threads(monkeypatch, 3)
    model = random_model(small(num_q=3))
    networks, inputs = PackedNetworks(model), inputs_of(model, 2, 100)
    want = networks.estimate_value(**inputs)
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=lambda: answer.put(networks.estimate_value(**inputs).tolist()))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert answer.get() == want.tolist()
    assert torch.equal(networks.estimate_value(**inputs), want)


def test_gradient_of_norm_mish_does_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that continues on a machine with more cores must compute the same gradients."""
    x, weights = torch.randn(2, 203, 48), tuple(torch.randn(2, 48) for _ in range(3))
    found = []
    for threads in (1, 2, 3):
        use_threads(monkeypatch, threads)
        stats = norm_mish._forward(x, *weights, None)[1]
        found.append(norm_mish._backward(x, x.clone(), *weights, None, stats)[1])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
