"""Planners of the agents of a mixture, and their actions without a plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2.acceleration import fast_planner
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, MixEntry
from tdmpc2.loading import load_agent
from tdmpc2.play import collector
from tdmpc2.play.mixture import BehaviourPolicy, load_policies, policy_from_agent
from tests.helpers.playing import toy


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the CPU kernels, and replace the compiler by one that returns each function as it is."""
    monkeypatch.setattr(fast_planner, "can_compile", lambda device: True)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr("tdmpc2.acceleration.cpu.library._load", lambda: (None, "no g++"))


def planners(cfg: Config, number: int) -> list[BehaviourPolicy]:
    source = {"model": TDMPC2(cfg).model.state_dict(), "config": cfg.to_dict()}
    return [policy_from_agent(load_agent(source, device="cpu")) for _ in range(number)]


def plan(policies: list[BehaviourPolicy], times: int) -> set[str]:
    agents = [policy.agent for policy in policies if policy.agent is not None]
    for agent in agents:
        for _ in range(times):
            agent.act(torch.zeros(agent.cfg.obs_dim), t0=True)
    return {agent.planner.kind for agent in agents}


def test_planners_that_play_little_stay_plain(
    tiny_cfg: Config, compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planner compiled after some use would be compiled at another step of a continued collection."""
    monkeypatch.setattr(fast_planner, "WORTH_COMPILING", 1)
    cfg = tiny_cfg.replace(task="cartpole-balance")
    policies = planners(cfg, 2)
    collector._compile(cfg, policies, [])
    assert plan(policies, 3) == {"plain"}


def test_planners_of_a_large_mix_are_all_sped_up(tiny_cfg: Config, compiler: None) -> None:
    """Mixtures of more than four checkpoints used to plan without the CPU kernels and without compilation."""
    cfg = tiny_cfg.replace(task="cartpole-balance", episodes_per_task=2)
    policies = planners(cfg, 6)
    shards = [collector.Shard(i, 0, "cartpole-balance", i, "planner", 2) for i in range(6)]
    collector._compile(cfg, policies, shards)
    assert plan(policies, 1) == {"compiled"}


def test_steps_without_a_plan_do_not_count_for_compiling(
    model: str, compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_planner, "WORTH_COMPILING", 30)
    policies = load_policies([MixEntry(0.5, "policy", model), MixEntry(0.5, "planner", model)], load_agent)
    cfg = toy()
    shards = [collector.Shard(i, 0, cfg.task, i, "", 3) for i in (0, 1)]  # 21 steps each
    collector._compile(cfg, policies, shards)
    assert plan(policies, 1) == {"plain"}


@pytest.mark.parametrize("kinds", [("policy", "planner"), ("planner", "policy")])
def test_policy_and_planner_of_one_file_act_each_in_its_way(model: str, kinds: tuple[Any, Any]) -> None:
    """The agent copied for the second entry used to act as the first entry does."""
    cfg = toy()
    inputs = np.ones((2, cfg.obs_dim), np.float32), np.ones(2, bool), np.zeros(2, int)
    for policy in load_policies([MixEntry(0.5, kind, model, 0.0) for kind in kinds], load_agent):
        alone = load_agent(model, mpc=policy.entry.kind == "planner").player(seed=3)
        np.testing.assert_array_equal(policy.actor(cfg, 3)(*inputs), alone.act(*inputs[:2], task=inputs[2]))


def test_how_a_policy_computes_is_recorded_as_it_acts(model: str) -> None:
    """A policy takes the kernels at its first action, and a record of before said that it acts plainly."""
    cfg = toy()
    policies = load_policies([MixEntry(1.0, "policy", model)], load_agent)
    collector._compile(cfg, policies, [])
    recorded = collector._computing(policies, [2])
    inputs = np.ones((2, cfg.obs_dim), np.float32), np.ones(2, bool), np.zeros(2, int)
    policies[0].actor(cfg, 3)(*inputs)
    assert collector._computing(policies, [2]) == recorded
