"""Tasks that share a body are scored bit for bit as in their own environments."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tdmpc2.envs.checked import EnvironmentFault
from tdmpc2.envs.dm_control import DMControlEnv
from tdmpc2.envs.registry import build_env
from tdmpc2.envs.wrappers import TASK_REWARDS
from tdmpc2.tasks import BODIES, MT30, TASKS, body_of

_SLOW = {"dog", "humanoid", "quadruped"}
_SEEDS, _STEPS = (5, 6), 20
#: Seeds whose episodes begin where sparse rewards are paid.
_REWARDED = {
    "hopper-stand": (0, 3), "pendulum-swingup": (14, 23), "reacher-easy": (41,), "reacher-three-easy": (445,),
    "reacher-four-easy": (219,),
}  # fmt: skip


@pytest.fixture
def play(env: Callable[[str], Any]) -> Callable[..., tuple[list[Any], dict[str, list[float]]]]:
    """Play the same random actions after each seed; return observations, and rewards by task."""

    def played(
        task: str, also: tuple[str, ...] = (), seeds: tuple[int, ...] = _SEEDS
    ) -> tuple[list[Any], dict[str, list[float]]]:
        one = env(task)
        one.unwrapped.score_also(also)
        observations, rewards = [], {name: [] for name in (task, *also)}
        for seed in seeds:
            actions = np.random.default_rng(seed).uniform(-1, 1, (_STEPS, *one.action_space.shape)).astype(np.float32)
            observations.append(one.reset(seed=seed)[0])
            for action in actions:
                obs, reward, *_, info = one.step(action)
                observations.append(obs)
                for name, paid in {task: reward, **info.get(TASK_REWARDS, {})}.items():
                    rewards[name].append(paid)
        return observations, rewards

    return played


def named(bodies: tuple[tuple[str, ...], ...]) -> list[Any]:
    return [
        pytest.param(body, id=body[0], marks=[pytest.mark.slow] if body[0].split("-")[0] in _SLOW else [])
        for body in bodies
    ]


@pytest.mark.parametrize("body", named(BODIES))
def test_body_scores_its_tasks_as_their_own_environments_do(body: tuple[str, ...], play: Callable[..., Any]) -> None:
    """First states, observations and rewards agree to the last bit, including repeated actions."""
    seeds = _REWARDED.get(body[0], _SEEDS)
    observations, rewards = play(body[0], body[1:], seeds)
    for task in body:
        own_observations, own_rewards = play(task, (), seeds)
        assert np.array_equal(own_observations, observations), task
        assert own_rewards[task] == rewards[task], task
        assert any(rewards[task]) or task == "cartpole-swingup-sparse", "a reward that is always zero shows nothing"


def test_body_of_mt30s_walkers_is_scored_alike_whichever_task_is_played(play: Callable[..., Any]) -> None:
    """All rewards are the same whichever of the walker tasks is played, and they differ between tasks."""
    walkers = tuple(task for task in MT30 if task.startswith("walker-"))
    assert len(walkers) == 5
    assert set(walkers) <= set(body_of("walker-run"))
    found = [play(task, tuple(other for other in walkers if other != task), (7,))[1] for task in walkers]
    assert all(rewards == found[0] for rewards in found)
    assert all(found[0][one] != found[0][two] for one, two in itertools.combinations(walkers, 2))


def test_body_reacher_is_scored_with_the_target_of_each_task() -> None:
    """The finger is within the big target and outside the small one; scoring restores the model's target size."""
    rewards = {}
    for task, other in (("reacher-easy", "reacher-hard"), ("reacher-hard", "reacher-easy")):
        env = DMControlEnv(task, 1)
        env.score_also([other])
        env.reset(seed=3)
        target = env.physics.named.model.geom_pos["target"]
        target[:2] = env.physics.named.data.geom_xpos["finger", :2] + [0.04, 0]
        size = env.physics.named.model.geom_size["target", 0]
        _, reward, *_, info = env.step(np.zeros(2, np.float32))
        rewards[task] = {task: reward, **info[TASK_REWARDS]}
        assert env.physics.named.model.geom_size["target", 0] == size
    assert rewards["reacher-easy"] == rewards["reacher-hard"] == {"reacher-easy": 2.0, "reacher-hard": 0.0}


@pytest.mark.parametrize(("one", "other"), [
    ("cartpole-balance", "cartpole-swingup"), ("cup-catch", "cup-spin"), ("finger-turn-easy", "finger-turn-hard"),
    ("fish-swim", "fish-obstacles"), ("reacher-easy", "reacher-three-easy"),
])  # fmt: skip
def test_body_leaves_out_tasks_that_begin_or_observe_differently(
    one: str, other: str, play: Callable[..., Any], env: Callable[[str], Any]
) -> None:
    assert other not in body_of(one)
    seeds = tuple(range(5, 15))
    assert not np.array_equal(play(one, seeds=seeds)[0], play(other, seeds=seeds)[0])
    with pytest.raises(ValueError, match=f"'{one}' cannot be scored as '{other}': they are not one body"):
        env(one).unwrapped.score_also([other])


def test_body_table_names_each_task_once() -> None:
    names = [task for body in BODIES for task in body]
    assert len(set(names)) == len(names)
    assert set(names) <= TASKS.keys()
    assert body_of("acrobot-swingup") == ("acrobot-swingup",)


def test_body_reward_that_is_not_finite_names_the_task_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward of NaN must not get into the data, whichever task it is for."""
    env = build_env("pendulum-swingup", 1)
    monkeypatch.setattr(env.unwrapped, "_others", {"pendulum-spin": lambda _: float("nan")})
    env.reset()
    message = r"pendulum-swingup \(seed 1, step 1\): the reward for pendulum-spin is nan; simulations"
    with pytest.raises(EnvironmentFault, match=message):
        env.step(np.zeros(1, np.float32))
