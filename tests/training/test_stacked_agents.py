"""Agents that learn and plan in a stack do what each of them would do alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.training.stacked_agents import StackedAgents, check_stackable
from tests.helpers.agents import random_batch
from tests.helpers.cpu_kernels import needs_library
from tests.helpers.stacks import KINDS, agents, configs

UPDATES = 5
TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}  # float32: products of another batch shape are summed in another order


def batch_of(agent: TDMPC2, seed: int) -> Batch:
    batch = random_batch(agent.cfg, seed)
    ended = (batch.reward > 1.8).float() if agent.cfg.episodic else None
    shown = (batch.reward[:1] > 1).float() if agent.cfg.bc_coef else None
    return batch._replace(terminated=ended, demonstrated=shown)


def updated(kind: str, **keys: object) -> tuple[list[TDMPC2], list[TDMPC2], StackedAgents]:
    """Update agents alone and in a stack, comparing their losses; return both groups and the stack."""
    alone, stacked = agents(kind, **keys), agents(kind, **keys)
    stack = StackedAgents(stacked)
    for number in range(UPDATES):
        batches = [batch_of(agent, 10 * number + i) for i, agent in enumerate(alone)]
        found = stack.update(batches)
        for agent, batch, own in zip(alone, batches, found, strict=True):
            expected = agent.update(batch)
            assert list(own) == list(expected)
            for name, value in expected.items():
                torch.testing.assert_close(own[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    return alone, stacked, stack


@pytest.mark.parametrize(
    ("kind", "keys"),
    [*((kind, {}) for kind in KINDS), ("padded", {"policy_loss": "opt"}), ("equal", {"episodic": True}),
     ("padded", {"policy_loss": "squashed"}),
     ("equal", {"dropout": 0.0, "num_q": 2, "grad_clip_norm": 0.1}),
     ("bodies", {"value_scale": "per_task"}),
     ("padded", {"bc_coef": 0.5, "demonstrations": "any", "mode": "online"})],
)  # fmt: skip
def test_updates_of_a_stack_equal_those_of_each_agent(kind: str, keys: dict[str, object]) -> None:
    """Weights, moments, running scales and random numbers are compared, for several kinds of stacks."""
    alone, stacked, _ = updated(kind, **keys)
    for one, other in zip(alone, stacked, strict=True):
        for name, weight in one.model.state_dict().items():
            torch.testing.assert_close(other.model.state_dict()[name], weight, **TOLERANCE)
        torch.testing.assert_close(other.scale, one.scale, rtol=1e-5, atol=0)
        assert torch.equal(one.generator.get_state(), other.generator.get_state())
        for mine, its in ((one.optim, other.optim), (one.pi_optim, other.pi_optim)):
            for p, q in zip(mine.param_groups[-1]["params"], its.param_groups[-1]["params"], strict=True):
                if p not in mine.state:
                    assert q not in its.state
                    continue
                assert float(its.state[q]["step"]) == UPDATES == float(mine.state[p]["step"])
                for name in ("exp_avg", "exp_avg_sq"):
                    torch.testing.assert_close(its.state[q][name], mine.state[p][name], rtol=1e-3, atol=1e-6)


#: The agent's own budget; fewer samples and iterations, as while collecting; and more iterations.
BUDGETS: list[dict[str, int]] = [{}, {"num_samples": 8, "iterations": 1}, {"num_samples": 16, "iterations": 3}]


@pytest.mark.parametrize(("kind", "budget"), [*((kind, {}) for kind in KINDS), *(("padded", b) for b in BUDGETS[1:])])
def test_plans_of_a_stack_equal_those_of_each_agent(kind: str, budget: dict[str, int]) -> None:
    """Plan means are compared because rounding may change the sampled elite; the second plan continues the first."""
    alone, stacked, stack = updated(kind)
    players = [[agent.player(2, seed=7, mpc=True, **budget) for agent in group] for group in (alone, stacked)]
    for number in range(2):
        obs = [np.random.default_rng(number).normal(size=(2, agent.cfg.obs_dim)).astype(np.float32) for agent in alone]
        tasks = [agent.cfg.task_ids[:2] if agent.cfg.multitask else None for agent in alone]
        asked = [p.asked(x, number == 0, task) for p, x, task in zip(players[1], obs, tasks, strict=True)]
        plans = stack.plan(players[1], asked, eval_mode=False)
        for one, other, x, task, plan in zip(*players, obs, tasks, plans, strict=True):
            action = one.act(x, number == 0, task=task, eval_mode=False)
            assert one.plan_mean is not None
            torch.testing.assert_close(other.plan_mean, one.plan_mean, rtol=0, atol=4e-3)
            assert plan.action.shape == action.shape
            assert torch.equal(one.generator.get_state(), other.generator.get_state())


def test_plans_of_unequally_many_iterations_are_not_made_together() -> None:
    """Tasks of 20 actions or more plan with two more iterations, which padding cannot imitate."""
    stack = StackedAgents(made := agents("equal"))
    players = [agent.player(1, seed=7, iterations=number) for number, agent in enumerate(made, 1)]
    obs = np.zeros((1, made[0].cfg.obs_dim), np.float32)
    with pytest.raises(ValueError, match="plans of 1 and of 2 iterations are not made together"):
        stack.plan(players, [player.asked(obs, True, None) for player in players], eval_mode=False)


def test_files_of_a_stacked_agent_are_those_of_any_agent(tmp_path: Path) -> None:
    """The files have the agent's own sizes and load into an agent that is not stacked."""
    alone, stacked, _ = updated("padded")
    for one, other in zip(alone, stacked, strict=True):
        other.save(tmp_path / "stacked.pt", overwrite=True)
        one.save(tmp_path / "alone.pt", overwrite=True)
        sizes = [(tmp_path / f"{name}.pt").stat().st_size for name in ("stacked", "alone")]
        assert abs(sizes[0] - sizes[1]) < 0.02 * sizes[1]
        fresh = TDMPC2(one.cfg)
        fresh.load(tmp_path / "stacked.pt")
        fresh.load_training_state(other.training_state())
        for name, weight in fresh.model.state_dict().items():
            assert torch.equal(weight, other.model.state_dict()[name])


@needs_library
def test_kernels_plan_with_the_weights_of_a_stacked_agent() -> None:
    """Weights in a stack are views with gaps and change without the agent's own optimiser."""
    _, stacked, stack = updated("padded")
    agent = stacked[1]
    obs = np.ones((2, agent.cfg.obs_dim), np.float32)
    plain, fast = agent.player(2, seed=7), agent.player(2, seed=7, num_samples=agent.cfg.num_samples)
    fast.compile_planner("auto", 0)
    assert (plain.plans_by, fast.plans_by) == ("plain", "kernels")
    for _ in range(2):
        means = []
        for player in (plain, fast):
            player.act(obs, True)
            means.append(player.plan_mean)
        torch.testing.assert_close(means[1], means[0], rtol=0, atol=4e-3)
        stack.update([batch_of(one, 99) for one in stacked])


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"lr": 1e-3}, "lr=0.001 of walker-run is 0.0003 for walker-walk"), ({"obs": "rgb"}, "obs"),
     ({"batch_size": 4}, "batch_size=4 of walker-run is 8"), ({"save_freq": 3}, "save_freq=3 of walker-run"),
     ({"collect_iterations": 3}, "collect_iterations=3 of walker-run is None"),
     ({"mode": "online", "demonstrations": "any"}, "demonstrations='any' of walker-run is None for walker-walk")],
)  # fmt: skip
def test_agents_that_do_not_fit_are_refused(keys: dict[str, object], message: str) -> None:
    """The message names the key, even one of the run, since the first agent's value would count for all."""
    cfgs = configs("equal")
    with pytest.raises(ValueError, match=message):
        StackedAgents([TDMPC2(cfgs[0]), TDMPC2(cfgs[1].replace(**keys))])


def test_agents_with_a_teacher_or_rates_of_their_own_are_refused() -> None:
    """The teacher was left out of the update, and all went by the rate of the first."""
    cfg = configs("equal")[0]
    with pytest.raises(ValueError, match="a teacher is not stacked: train walker-walk on its own"):
        StackedAgents([TDMPC2(cfg, TDMPC2(cfg))])
    pair = [cfg.replace(lr_schedule="linear", steps=steps) for steps in (10, 1000)]
    with pytest.raises(ValueError, match=r"steps=1000 of walker-walk is 10 for walker-walk: .* one lr_schedule=linear"):
        StackedAgents([TDMPC2(cfg) for cfg in pair])


def test_agents_of_different_age_are_refused() -> None:
    """Adam's correction of the first steps would be wrong for one of the agents."""
    made = agents("equal")
    made[0].update(batch_of(made[0], 1))
    with pytest.raises(ValueError, match="have made 0 to 1 updates"):
        StackedAgents(made)


def test_stack_of_agents_that_have_learned_goes_on() -> None:
    """Moments are taken over: two updates alone and one in a stack equal three alone."""
    alone, joined = agents("padded"), agents("padded")
    for number in range(2):
        for group in (alone, joined):
            for agent in group:
                agent.update(batch_of(agent, number))
    StackedAgents(joined).update([batch_of(agent, 5) for agent in joined])
    for one, other in zip(alone, joined, strict=True):
        one.update(batch_of(one, 5))
        for name, weight in one.model.state_dict().items():
            torch.testing.assert_close(other.model.state_dict()[name], weight, **TOLERANCE)


def test_models_of_different_tasks_are_refused() -> None:
    """All would act and learn with the masks and discounts of the first."""
    cfg = Config(task="mt30", mode="online", model_size=1)
    other = cfg.replace(task_specs=cfg.task_specs[::-1])
    with pytest.raises(ValueError, match="they are models of different tasks"):
        check_stackable(other, cfg)
