"""Code paths of a CUDA GPU compute the same as the plain ones; `make gpu` runs these tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.planner import PlanNoise, draw_noise
from tdmpc2.training.specialists import train_specialists
from tdmpc2.training.stacked_agents import StackedAgents
from tests.helpers.agents import random_batch
from tests.helpers.online import config
from tests.helpers.stacks import KINDS, agents
from tests.helpers.toy_envs import POINT, STANDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU"),
]
CLOSE: dict[str, float] = {"rtol": 1e-3, "atol": 2e-5}


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute float32 products exactly, not in the shorter type (TF32) that GPUs may use for them."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def moved(numbers: Any, device: str) -> Any:
    """Move random numbers that were drawn on a CPU to a device."""
    return type(numbers)(*(None if x is None else x.to(device) for x in numbers))


def assert_same_weights(one: TDMPC2, other: TDMPC2) -> None:
    for name, weight in one.model.state_dict().items():
        torch.testing.assert_close(
            other.model.state_dict()[name].cpu(), weight.cpu(), **CLOSE, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("freeze", [("policy",), ("encoder", "dynamics", "reward", "Q", "task_embedding")])
def test_metrics_of_a_frozen_part_are_on_the_device(tiny_cfg: Config, freeze: tuple[str, ...]) -> None:
    """Without gradients torch's norm of them is on the CPU, and metrics of two devices cannot be stacked."""
    agent = TDMPC2(tiny_cfg.replace(device="cuda", freeze=freeze))
    stats = agent.update(moved(random_batch(tiny_cfg, 1), "cuda"))
    assert {value.device.type for value in stats.values()} == {"cuda"}


def test_update_equals_that_of_a_cpu(tiny_cfg: Config) -> None:
    here, there = TDMPC2(tiny_cfg), TDMPC2(tiny_cfg.replace(device="cuda"))
    for number in range(3):
        batch, noise = random_batch(tiny_cfg, number), here.draw_noise(8)
        expected, found = here.update(batch, noise), there.update(batch.to("cuda"), moved(noise, "cuda"))
        for name, value in expected.items():
            torch.testing.assert_close(found[name].cpu(), value, rtol=1e-3, atol=1e-4)
    assert_same_weights(here, there)


def test_plan_equals_that_of_a_cpu(tiny_cfg: Config) -> None:
    here, there = TDMPC2(tiny_cfg), TDMPC2(tiny_cfg.replace(device="cuda"))
    noise = draw_noise(tiny_cfg, 2, here.device, here.generator)
    means = []
    for agent in (here, there):
        task = agent.model.context(torch.tensor([1, 2], device=agent.device))
        z = agent.model.encode(torch.ones(2, tiny_cfg.obs_dim, device=agent.device), task)
        mean = torch.zeros(2, tiny_cfg.horizon, tiny_cfg.action_dim, device=agent.device)
        own: PlanNoise = moved(noise, str(agent.device))
        means.append(agent.planner(z, task, mean, own, eval_mode=True).mean.detach().cpu())
    torch.testing.assert_close(means[1], means[0], rtol=0, atol=4e-3)


def test_compiled_update_equals_the_plain_one(tiny_cfg: Config) -> None:
    cfg = tiny_cfg.replace(device="cuda")
    plain, fast = TDMPC2(cfg), TDMPC2(cfg.replace(compile="true"))
    fast.compile_update()
    assert fast.update_compiled
    for number in range(3):
        batch = random_batch(cfg, number).to("cuda")
        plain.update(batch)
        fast.update(batch)
    assert_same_weights(plain, fast)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_plan_as_one_graph_equals_the_plain_one(num_envs: int, tiny_cfg: Config) -> None:
    """The graph is repeated after the weights have changed in place."""
    cfg = tiny_cfg.replace(device="cuda")
    agent = TDMPC2(cfg)
    plain = agent.player(num_envs, seed=7)
    fast = agent.player(num_envs, seed=7, num_samples=cfg.num_samples)
    fast.compile_planner("true", 10_000)
    for number in range(3):
        obs = np.random.default_rng(number).normal(size=(num_envs, cfg.obs_dim)).astype(np.float32)
        for player in (plain, fast):
            player.act(obs, True, task=1)
        assert plain.plan_mean is not None
        torch.testing.assert_close(fast.plan_mean, plain.plan_mean, rtol=0, atol=4e-3)
        agent.update(random_batch(cfg, number).to("cuda"))


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_update_and_plan_equal_those_of_each_agent(kind: str) -> None:
    """On a GPU the stacked plan runs as one graph."""
    alone, stacked = agents(kind, device="cuda"), agents(kind, device="cuda")
    stack = StackedAgents(stacked)
    for number in range(3):
        batches = [random_batch(agent.cfg, 10 * number + i).to("cuda") for i, agent in enumerate(alone)]
        stack.update(batches)
        for agent, batch in zip(alone, batches, strict=True):
            agent.update(batch)
    for one, other in zip(alone, stacked, strict=True):
        assert_same_weights(one, other)
    players = [[agent.player(2, seed=7) for agent in group] for group in (alone, stacked)]
    for number in range(2):
        obs = [np.full((2, agent.cfg.obs_dim), number, np.float32) for agent in alone]
        tasks = [agent.cfg.task_ids[:2] if agent.cfg.multitask else None for agent in alone]
        asked = [p.asked(x, True, task) for p, x, task in zip(players[1], obs, tasks, strict=True)]
        stack.plan(players[1], asked, eval_mode=False)
        for one, other, x, task in zip(*players, obs, tasks, strict=True):
            one.act(x, True, task=task, eval_mode=False)
            torch.testing.assert_close(other.plan_mean, one.plan_mean, rtol=0, atol=4e-3)


def test_specialists_learn(tmp_path: Path) -> None:
    cfgs = [
        config(tmp_path, task, work_dir=str(tmp_path / str(i)), device="cuda", steps=33, utd=0.25)
        for i, task in enumerate((STANDS, POINT))
    ]
    assert all(path.exists() for path in train_specialists(cfgs))
