"""The policy alone: with the CPU kernels it acts as plainly, and follows changes of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from tdmpc2 import load_agent
from tdmpc2.acceleration.cpu.networks import PackedNetworks
from tdmpc2.acceleration.cpu.weight_versions import WeightVersions
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.quantization.recipes import RECIPES, quantize_state
from tests.acceleration.test_fast_planner import SMALL
from tests.helpers.cpu_kernels import needs_library

MANY = Config(device="cpu", task="mt30", mpc=False, **SMALL)


def observations(cfg: Config, count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, cfg.obs_dim)).astype(np.float32)


def actions_of(agent: TDMPC2, count: int, **how: Any) -> np.ndarray:
    task = list(range(count)) if agent.cfg.multitask else None
    return agent.player(seed=3).act(observations(agent.cfg, count), True, task=task, **how)


@needs_library
@pytest.mark.parametrize("count", [1, 3, 30])
@pytest.mark.parametrize("eval_mode", [True, False], ids=["mean", "noise"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_policy_acts_by_kernels_as_plainly(count: int, eval_mode: bool, precision: str) -> None:
    agent = TDMPC2(MANY)
    if precision == "int8":
        agent.set_precision("int8", lambda matrix: "int8", torch.float32)
    plain = actions_of(agent, count, eval_mode=eval_mode)
    agent.compile_planner()
    assert agent.planner.kind == "kernels"
    fast = actions_of(agent, count, eval_mode=eval_mode)
    # In int8 the kernels multiply the task's part of a first layer in float32, which rounds activations otherwise.
    assert_allclose(fast, plain, rtol=0, atol=2e-3 if precision == "int8" else 1e-5)
    assert fast.std() > 0
    own = agent.model.action_masks[:count].numpy()
    assert not fast[own == 0].any()  # padding


@needs_library
def test_action_of_an_observation_does_not_depend_on_others_beside_it() -> None:
    agent = TDMPC2(MANY)
    agent.compile_planner()
    many = actions_of(agent, 30)
    player, obs = agent.player(), observations(agent.cfg, 30)
    alone = [player.act(obs[i], True, task=i) for i in range(30)]
    np.testing.assert_array_equal(np.stack(alone), many)


@needs_library
def test_loaded_policy_takes_the_kernels_unless_told_not_to(tmp_path: Path) -> None:
    TDMPC2(MANY).save(tmp_path / "model.pt")
    for compile_, kind in ("auto", "kernels"), ("true", "kernels"), ("false", "plain"):
        agent = load_agent(tmp_path / "model.pt", mpc=False, compile=compile_)
        actions_of(agent, 2)
        assert agent.planner.kind == kind


def test_policy_without_kernels_leaves_the_choice_to_the_first_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A policy is not worth compiling, so acting by it must neither wait for a compiler nor speak of one."""
    TDMPC2(MANY).save(tmp_path / "model.pt")
    monkeypatch.setattr("tdmpc2.acceleration.cpu.library._load", lambda: (None, "this processor is a toaster"))
    agent = load_agent(tmp_path / "model.pt", mpc=False, compile="auto")
    for _ in range(2):
        actions_of(agent, 2)
    assert agent.planner.kind == "plain"
    (told,) = caplog.messages
    assert "this processor is a toaster. The policy acts plainly" in told
    agent.player(mpc=True).act(observations(agent.cfg, 1), True, task=0)
    assert len(caplog.messages) == 2


@needs_library
def test_kernels_act_beside_another_default_device() -> None:
    """A program whose default device was a GPU had its process ended: the kernels were given addresses there."""
    agent = TDMPC2(Config(device="cpu", task="walker-walk", **SMALL))
    agent.compile_planner()
    obs, players = observations(agent.cfg, 1), [agent.player(seed=1, mpc=mpc) for mpc in (False, True, False, True)]
    wanted = [player.act(obs, True) for player in players[:2]]
    with torch.device("meta"):
        agent.model._pi[2].bias.data.add_(0)
        found = [player.act(obs, True) for player in players[2:]]
        repacked = PackedNetworks(agent.model).policy(torch.from_numpy(obs), agent.model.context(None), None)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(repacked, wanted[0])


@needs_library
@pytest.mark.parametrize("bounds", [(-100, 2), (-10, 100), (-200, -150)])
def test_kernels_take_any_bounds_of_the_policy(bounds: tuple[float, float]) -> None:
    """Beyond what their exponential is made for they gave actions of the opposite sign."""
    agent = TDMPC2(MANY.replace(log_std_min=bounds[0], log_std_max=bounds[1]))
    plain = actions_of(agent, 8, eval_mode=False)
    agent.compile_planner()
    assert_allclose(actions_of(agent, 8, eval_mode=False), plain, rtol=0, atol=1e-5)


@needs_library
def test_policy_follows_its_weights() -> None:
    agent = TDMPC2(MANY)
    agent.compile_planner()
    before = actions_of(agent, 4)
    with torch.no_grad():
        agent.model._pi[2].bias.add_(1.0)
    changed = actions_of(agent, 4)
    assert np.abs(changed - before).max() > 1e-3
    agent.model._pi[2].weight = nn.Parameter(torch.zeros_like(agent.model._pi[2].weight), requires_grad=False)
    assert np.abs(actions_of(agent, 4) - changed).max() > 1e-3


@pytest.mark.parametrize(
    "place", ["written", "data", "replaced", "moved", "module", "network", "encoder", "encoders", "bins"]
)
def test_versions_tell_every_way_in_which_weights_change(place: str) -> None:
    model = TDMPC2(MANY).model.requires_grad_(False)
    versions = WeightVersions(model)
    assert not versions.changed()
    layer = model._dynamics[1]
    if place == "written":
        layer.weight.mul_(2)
    elif place == "data":  # PyTorch counts no such writes, nor those of fused optimisers
        layer.weight.data.mul_(2)
    elif place == "replaced":
        layer.bias = nn.Parameter(layer.bias.clone(), requires_grad=False)
    elif place == "moved":
        layer.weight.data = layer.weight.data.clone()
    elif place == "module":
        model._dynamics[1] = TDMPC2(MANY).model._dynamics[1]
    elif place == "network":
        model._reward = TDMPC2(MANY).model._reward
    elif place == "encoder":
        model._encoder["state"] = TDMPC2(MANY).model._encoder["state"]
    elif place == "encoders":
        model._encoder = TDMPC2(MANY).model._encoder
    else:
        model.bins = model.bins.clone()
    assert versions.changed()


def test_target_heads_are_not_among_what_acts() -> None:
    """They change in every update, and no plan reads them."""
    model = TDMPC2(MANY).model.requires_grad_(False)
    versions = WeightVersions(model)
    for weight in model._target_Qs.parameters():
        weight.mul_(2)
    assert not versions.changed()


@needs_library
def test_loaded_policy_keeps_int8_weights_where_their_kernels_are_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """They used to be widened to float32 as soon as the policy acted alone."""
    monkeypatch.setattr("tdmpc2.precision.kernel_seconds", lambda: {"fp32": 1.0, "bf16": 1.0, "int8": 0.7})
    state = quantize_state(TDMPC2(MANY).model.state_dict(), RECIPES["int8"])
    agent = load_agent({"model": state, "config": MANY.to_dict()}, mpc=False, compile="auto", device="cpu")
    assert agent.precision == "int8"
    actions_of(agent, 2)
    assert agent.planner.kind == "kernels"


def test_loaded_policy_of_images_does_not_go_by_the_kernels_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They encode states alone, so what they are fast at says nothing of it."""
    times: list[int] = []
    monkeypatch.setattr("tdmpc2.precision.kernel_seconds", lambda: times.append(1) or {})
    cfg = Config(device="cpu", task="cup-catch", mode="online", obs="rgb", mpc=False, **SMALL)
    state = quantize_state(TDMPC2(cfg).model.state_dict(), RECIPES["int8"])
    load_agent({"model": state, "config": cfg.to_dict()}, mpc=False, compile="auto", device="cpu", quiet=True)
    assert not times
