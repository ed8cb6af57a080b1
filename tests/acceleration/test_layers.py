"""Layers that replace the plain ones for training, with the same numbers and parameters."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from tdmpc2.acceleration import layers
from tdmpc2.acceleration.low_precision import LowPrecisionQEnsemble, set_precision
from tdmpc2.config import Config
from tdmpc2.nn.layers import Linear, NormedLinear
from tdmpc2.nn.world_model import WorldModel


def norm_mish(x: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, factors: Tensor | None = None) -> Tensor:
    """Compute the operator of the CPU kernels in plain PyTorch."""
    h = x + bias[:, None]
    h = h if factors is None else h * factors
    return F.mish(F.layer_norm(h, h.shape[-1:]) * gain[:, None] + shift[:, None])


@pytest.fixture
def model(tiny_cfg: Config) -> WorldModel:
    model = WorldModel(tiny_cfg)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return model


def outputs(model: WorldModel) -> dict[str, Tensor]:
    """Compute every network of some inputs, with dropout in the Q heads."""
    cfg, generator = model.cfg, torch.Generator().manual_seed(1)
    obs, action = (torch.randn(5, size, generator=generator) for size in (cfg.obs_dim, cfg.action_dim))
    mask = (torch.rand(cfg.num_q, 5, cfg.mlp_dim, generator=generator) > 0.2) / 0.8
    task = torch.arange(5)
    z = model.encode(obs, task)
    return {
        "latent": z,
        "next": model.next(z, action, task),
        "reward": model.reward(z, action, task),
        "policy": model.policy_mean(z, task),
        "Q": model.Q(z, action, task, "all", dropout_mask=mask),
    }


def gradients(model: WorldModel) -> dict[str, Tensor]:
    model.zero_grad()
    torch.stack([x.square().mean() for x in outputs(model).values()]).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_fuse_changes_rounding_only(model: WorldModel) -> None:
    want, slopes = outputs(model), gradients(model)
    layers.fuse(model, norm_mish)
    assert isinstance(model._Qs, layers.FusedQEnsemble)
    assert_close(outputs(model), want, rtol=1e-5, atol=1e-6)
    assert_close(gradients(model), slopes, rtol=1e-4, atol=1e-6)


def test_fuse_keeps_parameters_and_their_names(model: WorldModel) -> None:
    before = dict(model.named_parameters())
    layers.fuse(model, norm_mish)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())


def test_fuse_leaves_layers_without_mish_plain(model: WorldModel) -> None:
    layers.fuse(model, norm_mish)
    assert [type(layer) for layer in model._dynamics] == [layers.FusedNormedLinear] * 2 + [NormedLinear]
    assert type(model._reward[-1]) is Linear


def test_set_precision_takes_fused_layers(model: WorldModel) -> None:
    """An agent that was trained with the operator acts in lower precision without it."""
    plain = copy.deepcopy(model)
    layers.fuse(model, norm_mish)
    for each in (plain, model):
        set_precision(each, "bf16")
    assert isinstance(model._Qs, LowPrecisionQEnsemble)
    z, action, task = torch.rand(3, 16), torch.rand(3, 6), torch.arange(3)
    assert torch.equal(model.next(z, action, task), plain.next(z, action, task))
    assert torch.equal(model.Q(z, action, task, "all"), plain.Q(z, action, task, "all"))


def test_prepare_for_compiler_changes_nothing_where_nothing_is_compiled(model: WorldModel) -> None:
    want = outputs(model)
    layers.prepare_for_compiler(model)
    assert model._pi[0].act is layers.mish
    assert_close(outputs(model), want, rtol=0, atol=0)


def test_prepare_for_compiler_keeps_simnorm(model: WorldModel) -> None:
    before = model._dynamics[-1].act
    layers.prepare_for_compiler(model)
    assert model._dynamics[-1].act is before


def test_mish_compiled_has_the_values_and_slopes_of_the_plain_one() -> None:
    """Inputs include large ones, where the exponential would overflow, and very negative ones."""
    x = torch.tensor([-90.0, -20.0, -1.2, -1e-3, 0.0, 0.5, 3.0, 19.0, 21.0, 500.0], requires_grad=True)
    fast = torch.compile(layers.mish, backend="aot_eager")
    got, want = fast(x), F.mish(x)
    assert_close(got, want, rtol=1e-6, atol=1e-30)
    assert_close(torch.autograd.grad(got.sum(), x)[0], torch.autograd.grad(want.sum(), x)[0], rtol=1e-5, atol=1e-7)


# -- autocast ---------------------------------------------------------------------------------------------------------


def test_keep_products_only_changes_nothing_without_autocast(model: WorldModel) -> None:
    want = outputs(model)
    layers.keep_products_only(model)
    assert_close(outputs(model), want, rtol=0, atol=0)


def test_keep_products_only_returns_float32_from_every_network_under_autocast(model: WorldModel) -> None:
    want = outputs(model)
    layers.keep_products_only(model)
    with torch.autocast("cpu", torch.bfloat16):
        got = outputs(model)
    for name, x in got.items():
        assert x.dtype == torch.float32, name
        error = float((x - want[name]).norm() / want[name].norm())
        assert 0 < error < 0.05, name


def test_keep_products_only_normalises_in_float32(model: WorldModel) -> None:
    """In bf16, the groups of a latent would add up to one only within 0.4 %."""
    layers.keep_products_only(model)
    with torch.autocast("cpu", torch.bfloat16):
        z = model.encode(torch.ones(4, model.cfg.obs_dim), torch.arange(4))
    assert_close(z.unflatten(-1, (-1, model.cfg.simnorm_dim)).sum(-1), torch.ones(4, 2), rtol=0, atol=1e-6)
