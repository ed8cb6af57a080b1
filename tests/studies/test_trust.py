"""Trust figures: rollouts are compared with predicting no change, computed by hand."""

from __future__ import annotations

import json

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.studies.heldout import heldout_errors, heldout_figures
from tdmpc2.studies.trust import rollout_is_worse, trust_figures
from tests.helpers.agents import random_batch, small_config


def test_rollout_is_worse_than_no_change_where_it_is_farther_away() -> None:
    encoded = torch.zeros(4, 3, 2)
    encoded[3] = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])  # the distance of predicting no change is 1
    predicted = encoded.clone()
    predicted[3] += torch.tensor([[0.0, 0.5], [0.0, 2.0], [0.0, 1.0]])  # nearer, farther and equally far
    predicted[2] = 100.0  # only the third step counts
    assert rollout_is_worse(predicted, encoded).tolist() == [False, True, False]


def test_trust_figures_are_of_each_task() -> None:
    worse = torch.tensor([True, False, True, True, False])
    squares = {"reward_rmse": torch.tensor([1.0, 9.0, 4.0, 4.0, 4.0]), "latent_rmse": torch.zeros(5)}
    found = trust_figures(worse, squares, torch.tensor([2, 2, 0, 0, 0]), ("a", "b", "c"))
    assert (found["steps"], found["starts"]) == (3, 5)
    assert found["tasks"]["c"] == {"starts": 2, "rollout_worse": 0.5, "reward_rmse": pytest.approx(5**0.5)}
    assert found["tasks"]["a"] == {"starts": 3, "rollout_worse": pytest.approx(2 / 3), "reward_rmse": 2}
    assert found["rollout_worse"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert "value_rmse" in trust_figures(worse, squares | {"value_rmse": squares["reward_rmse"]}, worse.long(), "ab")[
        "tasks"]["a"]  # fmt: skip


def test_figures_of_agent_are_those_of_its_own_rollouts(tiny_cfg: Config) -> None:
    """Latents rolled out with the data's actions are compared with encoded observations, start by start."""
    agent, teacher = TDMPC2(tiny_cfg), TDMPC2(tiny_cfg.replace(seed=7))
    generator = torch.Generator().manual_seed(0)
    for network in (agent, teacher):  # the last layers start at zero
        for param in network.model.parameters():
            param.data += 0.1 * torch.randn(param.shape, generator=generator)
    batches: list[Batch] = [random_batch(tiny_cfg, seed) for seed in (0, 1)]
    errors, trust = heldout_figures(agent, batches, teacher)
    assert errors == heldout_errors(agent, batches, teacher)
    worse: dict[str, list[bool]] = {}
    with torch.no_grad():
        for batch in batches:
            for b, task in enumerate(batch.task):
                first = z = agent.model.encode(batch.obs[0, b], task)
                for t in range(3):
                    z = agent.model.next(z, batch.action[t, b], task)
                truth = agent.model.encode(batch.obs[3, b], task)
                name = tiny_cfg.task_names[int(task)]
                worse.setdefault(name, []).append(bool((z - truth).norm() > (first - truth).norm()))
    assert {name: found["rollout_worse"] for name, found in trust["tasks"].items()} == pytest.approx(
        {name: sum(values) / len(values) for name, values in worse.items()}
    )
    total = sum(found["starts"] * found["reward_rmse"] ** 2 for found in trust["tasks"].values())
    assert (total / trust["starts"]) ** 0.5 == pytest.approx(errors["reward_rmse"])
    assert json.dumps(trust)
    assert trust["starts"] == 16
    assert any(found["value_rmse"] > 0 for found in trust["tasks"].values())


def test_figures_of_short_horizon_are_of_its_last_step() -> None:
    cfg = small_config(horizon=2)
    assert heldout_figures(TDMPC2(cfg), [random_batch(cfg, 0)])[1]["steps"] == 2
