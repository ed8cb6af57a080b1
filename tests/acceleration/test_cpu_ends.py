"""Both ends of a plan in the CPU kernels, the encoder and the fit to the elites, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tdmpc2 import planner
from tdmpc2.acceleration.cpu.networks import PackedNetworks
from tdmpc2.acceleration.low_precision import set_precision
from tdmpc2.config import Config
from tests.acceleration.test_cpu_planner import random_model, small
from tests.helpers.cpu_kernels import needs_library

pytestmark = [needs_library, pytest.mark.usefixtures("no_grad")]


@pytest.mark.parametrize(
    "cfg",
    [small(), small("mt80", num_enc_layers=4), small("dog-run"), small("pendulum-spin", simnorm_dim=4, latent_dim=20)],
    ids=["mt30", "deep", "dog", "pendulum"],
)
def test_kernels_encode_as_plain(cfg: Config) -> None:
    model = random_model(cfg)
    obs, context = torch.randn(3, cfg.obs_dim), model.context(torch.tensor([1, 0, 1]) % len(cfg.task_specs))
    found = PackedNetworks(model).encode(obs, context)
    assert_close(found, model.encode(obs, context), rtol=0, atol=2e-5)
    alone = PackedNetworks(model).encode(obs[1:2], model.context(torch.tensor([0])))
    assert torch.equal(alone[0], found[1])  # whatever else is in the batch


def test_kernels_encode_with_int8_weights_as_plain() -> None:
    """The kernels widen int8 encoder weights to float32, as PyTorch does."""
    model = random_model(small())
    set_precision(model, lambda matrix: "int8-weight-only" if matrix.startswith("_encoder") else "int8")
    obs, context = torch.randn(3, model.cfg.obs_dim), model.context(torch.tensor([1, 2, 3]))
    assert_close(PackedNetworks(model).encode(obs, context), model.encode(obs, context), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("samples", "elites", "horizon"), [(64, 8, 3), (7, 7, 1), (512, 64, 5), (2, 1, 2)])
def test_kernels_refit_as_plain(samples: int, elites: int, horizon: int) -> None:
    cfg = small(num_samples=samples, num_elites=elites, num_pi_trajs=1, horizon=horizon)
    model = random_model(cfg)
    context = model.context(torch.tensor([0, 21])).unsqueeze(1)  # tasks with six actions and with fewer
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(2, horizon, samples, cfg.action_dim, generator=generator) * 2 - 1
    value = torch.stack([torch.randperm(samples, generator=generator) for _ in range(2)]) * 10 / samples - 5.0
    got = PackedNetworks(model).refit(cfg, actions, value, context.action_mask)
    for mine, plain in zip(got, planner.refit(cfg, actions, value, context.action_mask), strict=True):
        assert_close(mine, plain, rtol=1e-5, atol=1e-6)


def test_kernels_refit_to_values_that_had_to_be_replaced() -> None:
    """Values that overflow become the largest numbers, whose difference is infinite; scores still add up to 1."""
    cfg = small(num_samples=4, num_elites=3, num_pi_trajs=1)
    largest = torch.finfo(torch.float32).max
    value = torch.tensor([[largest, 0.0, -largest, -largest]])
    got = PackedNetworks(random_model(cfg)).refit(cfg, torch.rand(1, cfg.horizon, 4, cfg.action_dim), value, None)
    assert got.elite_value.tolist() == [[largest, 0.0, -largest]]
    assert got.score.tolist() == [[1.0, 0.0, 0.0]]
    assert bool(got.mean.isfinite().all())
