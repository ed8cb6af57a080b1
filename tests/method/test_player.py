"""Players: each keeps the plans and random numbers of its own environments."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tests.helpers.playing import SMALL_AGENT


def observation(seed: int) -> Tensor:
    return torch.randn(24, generator=torch.Generator().manual_seed(seed))


def test_act_other_task_without_start_raises(tiny_cfg: Config) -> None:
    """A second caller used to overwrite silently the plan that the first one then continued from."""
    agent = TDMPC2(tiny_cfg)
    agent.act(observation(0), t0=True, task=0)
    agent.act(observation(1), t0=True, task=5)
    with pytest.raises(ValueError, match=r"last called for .* and now for .* although no episode starts: pass t0=True"):
        agent.act(observation(0), task=0)


@pytest.mark.parametrize(("task", "message"), [
    ("walker-run", "task='walker-run' is not this agent's one task, walker-walk"), (1, "task=1 is not this agent's"),
    (["walker-walk"] * 2, "2 tasks for 1 environments"),
])  # fmt: skip
@pytest.mark.parametrize("mpc", [True, False])
def test_act_of_one_task_refuses_another(task: object, message: str, mpc: bool) -> None:
    """The file of another walker played the whole task without a word, and badly."""
    agent = TDMPC2(Config(task="walker-walk", mpc=mpc, **SMALL_AGENT))
    with pytest.raises(ValueError, match=re.escape(message)):
        agent.act(observation(0), t0=True, task=task)  # type: ignore[arg-type]
    for own in (None, "walker-walk", 0, torch.tensor([0])):
        agent.act(observation(0), t0=True, task=own)


def test_expected_return_of_a_policy_refuses_what_acting_refuses() -> None:
    """Of an observation that is not finite it was NaN."""
    agent = TDMPC2(Config(task="walker-walk", mpc=False, **SMALL_AGENT))
    player = agent.player()
    player.act(observation(0), t0=True)
    assert player.expected_return(observation(0)).shape == (1,)
    with pytest.raises(ValueError, match="the observation has values that are not finite"):
        player.expected_return(observation(0) * float("nan"))


def test_first_player_of_an_agent_has_random_numbers_of_its_own() -> None:
    agent = TDMPC2(Config(task="walker-walk", mpc=False, **SMALL_AGENT))
    players = [agent, agent.player(), agent.player()]
    first = [player.act(observation(0), t0=True, eval_mode=False) for player in players]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_act_other_task_in_one_environment_names_it(tiny_cfg: Config) -> None:
    agent = TDMPC2(tiny_cfg)
    obs = torch.stack([observation(0), observation(1)])
    agent.act(obs, t0=True, task=["walker-stand", "cup-catch"])
    agent.act(obs, t0=[False, True], task=["walker-stand", "cup-spin"])
    with pytest.raises(ValueError, match=r"for walker-stand and now for cup-spin \(environment 0\)"):
        agent.act(obs, task=["cup-spin", "cup-spin"])


def test_refused_call_leaves_the_plan(tiny_cfg: Config) -> None:
    agent, other = TDMPC2(tiny_cfg), TDMPC2(tiny_cfg)
    for each in (agent, other):
        each.act(observation(0), t0=True, task=0)
    with pytest.raises(ValueError, match="although no episode starts"):
        agent.act(observation(0), task=1)
    assert torch.equal(agent.act(observation(1), task=0), other.act(observation(1), task=0))


def test_players_interleaved_act_as_if_alone(tiny_cfg: Config) -> None:
    """Several players of one agent, and the agent's own, share no plan and no random number."""
    agent = TDMPC2(tiny_cfg)

    def alone(seed: int, task: int) -> list[Tensor]:
        player = agent.player(num_envs=1, seed=seed)
        return [player.act(observation(step), step == 0, task=task, eval_mode=False) for step in range(3)]

    expected = alone(1, task=0), alone(2, task=5)
    first, second = agent.player(seed=1), agent.player(seed=2)
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for step in range(3):
        found[0].append(first.act(observation(step), step == 0, task=0, eval_mode=False))
        agent.act(observation(7), t0=step == 0, task=9)
        found[1].append(second.act(observation(step), step == 0, task=5, eval_mode=False))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(torch.stack(one), torch.stack(other))


def test_player_leaves_the_generator_of_the_agent(tiny_cfg: Config) -> None:
    agent = TDMPC2(tiny_cfg)
    before = agent.generator.get_state()
    agent.player().act(observation(0), t0=True, task=0, eval_mode=False)
    assert torch.equal(agent.generator.get_state(), before)


def test_player_with_fixed_environments_refuses_another_number(tiny_cfg: Config) -> None:
    player = TDMPC2(tiny_cfg).player(num_envs=2)
    with pytest.raises(ValueError, match="for 2 environments, but got 3 observations"):
        player.act(torch.zeros(3, 24), t0=True, task=0)


def test_player_without_planning_uses_the_policy(tiny_cfg: Config) -> None:
    agent = TDMPC2(tiny_cfg)
    action = agent.player(mpc=False).act(observation(0), t0=True, task=0, eval_mode=True)
    z = agent.model.encode(observation(0), 0)
    torch.testing.assert_close(action, agent.model.policy_mean(z, 0).detach())


@pytest.mark.parametrize("change", ["weights", "data", "task"])
def test_player_looks_a_task_up_again_after_a_change(tiny_cfg: Config, change: str) -> None:
    """A player's cached look-up of a task is renewed when the weights or the task change."""
    agent = TDMPC2(tiny_cfg.replace(mpc=False))
    with torch.no_grad():
        torch.nn.init.normal_(agent.model._task_emb.weight)
        torch.nn.init.normal_(agent.model._pi[-1].weight)
    obs, player = torch.ones(tiny_cfg.obs_dim), agent.player()
    first = player.act(obs, True, task=0)
    assert torch.equal(player.act(obs, task=0), first)
    with torch.no_grad():
        weight = agent.model._task_emb.weight
        (weight.data if change == "data" else weight).mul_(1 if change == "task" else -1)
    later = player.act(obs, task=int(change == "task"))
    assert not torch.equal(later, first)
    assert torch.equal(later, agent.player().act(obs, True, task=int(change == "task")))


def test_player_takes_no_plans_of_another_horizon(tiny_cfg: Config) -> None:
    agent = TDMPC2(tiny_cfg)
    player, other = agent.player(), agent.player(horizon=tiny_cfg.horizon + 1)
    other.act(observation(0), True, task=0)
    with pytest.raises(ValueError, match=r"plans are of steps and actions \[\d, 6\], not"):
        player.load_state(other.state())


def test_repr_of_an_agent_says_what_it_is(tiny_cfg: Config) -> None:
    text = repr(TDMPC2(tiny_cfg, TDMPC2(tiny_cfg)))
    assert text.startswith("TDMPC2(30 tasks of mt30, ")
    assert "fp32 on cpu, acts by planning (plain), with a teacher" in text


def test_players_without_a_seed_draw_differently_and_reproducibly(tiny_cfg: Config) -> None:
    def two_actions() -> list[Tensor]:
        agent = TDMPC2(tiny_cfg)
        players = agent.player(), agent.player()
        return [player.act(observation(0), t0=True, task=0, eval_mode=False) for player in players]

    first, second = two_actions()
    assert not torch.equal(first, second)
    assert torch.equal(torch.stack(two_actions()), torch.stack([first, second]))


def test_act_task_tensor_reused_by_the_caller_is_noticed(tiny_cfg: Config) -> None:
    agent, ids = TDMPC2(tiny_cfg), torch.tensor([0])
    agent.act(observation(0), t0=True, task=ids)
    ids.fill_(1)
    with pytest.raises(ValueError, match="although no episode starts"):
        agent.act(observation(0), task=ids)


@pytest.mark.parametrize(
    ("obs", "changes", "message"),
    [
        (torch.zeros(2, 2, 24), {}, r"Observations of shape \[2, 2, 24\]: pass \[24\], or \[E, 24\]"),
        (torch.zeros(2, 24), {"t0": [True] * 3}, "3 values of t0 for 2 environments"),
        (torch.zeros(24), {"task": True}, "task=True is not one of"),
    ],
)
def test_act_wrong_shapes_are_named(tiny_cfg: Config, obs: Tensor, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TDMPC2(tiny_cfg).act(obs, **{"t0": True, "task": 0, **changes})


def test_act_t0_as_a_column_is_one_value_for_each(tiny_cfg: Config) -> None:
    agent, column = TDMPC2(tiny_cfg), TDMPC2(tiny_cfg)
    obs = torch.stack([observation(0), observation(1)])
    expected = agent.act(obs, t0=[True, True], task=0)
    assert torch.equal(column.act(obs, t0=torch.tensor([[True], [True]]), task=0), expected)


@pytest.mark.parametrize("key", ["precision", "device", "episodic", "simnorm_dim"])
def test_player_refuses_a_key_that_is_none_of_its_planner(tiny_cfg: Config, key: str) -> None:
    """It played with the agent's own weights and said otherwise."""
    with pytest.raises(ValueError, match=f"{key} is no key of a player's planner: "):
        TDMPC2(tiny_cfg).player(**{key: getattr(tiny_cfg, key)})
