"""Several environments: padding, vectors, multi-task environments."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np
import pytest

from tdmpc2.config import Config
from tdmpc2.envs import make_env, task_spec
from tdmpc2.envs.multitask import MultiTaskEnv
from tdmpc2.envs.vector import EnvPool, make_vec_env
from tdmpc2.envs.wrappers import PadEnv
from tdmpc2.tasks import MT30, TaskSpec, lookup
from tests.helpers.toy_envs import FALLS, FALLS_AT, STANDS, Counter


def test_pad_env_pads_observation_and_cuts_action(env: Callable) -> None:
    hopper = env("hopper-hop")
    padded = PadEnv(hopper, 24, 6)
    obs, _ = padded.reset(seed=4)
    action = padded.action_space.sample()
    next_obs, reward, *_ = padded.step(action)
    assert obs.shape == (24,)
    assert obs.dtype == next_obs.dtype == np.float32
    assert not obs[15:].any()
    np.testing.assert_array_equal(hopper.reset(seed=4)[0], obs[:15])
    np.testing.assert_array_equal(hopper.step(action[:4])[0], next_obs[:15])
    padded.reset(seed=4)
    np.testing.assert_array_equal(padded.action_space.sample(), action)
    assert padded.step(np.concatenate([action[:4], -action[4:]]))[1] == reward
    with pytest.raises(ValueError, match=r"observation size 15.*obs_dim=10"):
        PadEnv(hopper, 10, 6)
    with pytest.raises(ValueError, match=r"action of shape \(5,\); padded ones are of \(6,\)"):
        padded.step(action[:5])


def test_vec_env_of_different_tasks_equals_single_ones(env: Callable) -> None:
    names, seeds = ["walker-walk", "cartpole-swingup", "reacher-three-easy", "cartpole-swingup"], [3, 1, 2, 2]
    envs = make_vec_env([lookup(name) for name in names], seeds, 24, 6)
    obs, _ = envs.reset()
    actions = envs.action_space.sample()
    next_obs, rewards, terminated, truncated, info = envs.step(actions)
    assert obs.shape == (4, 24)
    assert actions.shape == (4, 6)
    assert not (terminated | truncated).any()
    np.testing.assert_array_equal(info["success"], np.zeros(4))
    for i, (name, seed) in enumerate(zip(names, seeds, strict=True)):
        spec = lookup(name)
        np.testing.assert_array_equal(obs[i, : spec.obs_dim], env(name).reset(seed=seed)[0])
        expected_obs, expected_reward, *_ = env(name).step(actions[i, : spec.action_dim])
        np.testing.assert_array_equal(next_obs[i, : spec.obs_dim], expected_obs)
        assert not next_obs[i, spec.obs_dim :].any()
        assert rewards[i] == expected_reward
    again = make_vec_env([lookup(name) for name in names], seeds, 24, 6)
    np.testing.assert_array_equal(again.action_space.sample(), actions)


def test_vec_env_reset_mask_resets_only_those(env: Callable) -> None:
    gymnasium.register("ShortTask-v0", Counter, max_episode_steps=2)
    envs = make_vec_env([TaskSpec("ShortTask-v0", 6, 1, 2), lookup("pendulum-spin")], [1, 1], 6, 1)
    envs.reset()
    actions = np.zeros((2, 1), np.float32)
    envs.step(actions)
    ended = envs.step(actions)[3]
    np.testing.assert_array_equal(ended, [True, False])
    with pytest.raises(AssertionError):
        envs.step(actions)
    obs, _ = envs.reset(options={"reset_mask": ended})
    assert obs[0, 0] == 0
    assert not envs.step(actions)[3].any()


@pytest.mark.parametrize("workers", [0, 2])
def test_environment_whose_episode_has_ended_rests_until_it_is_reset(workers: int) -> None:
    """It was restarted and played on, so that a fault of an episode that nobody scores ended the evaluation."""
    specs = [task_spec(FALLS), task_spec(STANDS)]
    with EnvPool(4, 2, workers=workers) as pool:
        envs = pool.make(specs)
        envs.reset(seed=[1, 2])
        actions = np.ones((2, 2), np.float32)
        for _ in range(FALLS_AT):
            last, _, terminated, *_ = envs.step(actions)
        assert terminated.tolist() == [True, False]
        envs.reset(options={"reset_mask": terminated, "rest": True})
        obs, reward, terminated, truncated, _ = envs.step(actions)
        np.testing.assert_array_equal(obs[0], last[0])
        assert (reward[0], terminated.any(), truncated.any(), obs[1, 1]) == (0, False, False, FALLS_AT + 1)
        assert envs.reset(options={"reset_mask": np.array([True, False])})[0][0, 1] == 0


def test_vec_env_with_wrong_seeds_is_refused() -> None:
    for specs, seeds in [([], []), ([lookup("hopper-hop")], [1, 2])]:
        with pytest.raises(ValueError, match="one seed for each task"):
            make_vec_env(specs, seeds, 24, 6)


def test_multi_task_env_reset_option_chooses_the_task(env: Callable) -> None:
    multi = make_env(Config(task="mt30", seed=9, device="cpu"))
    assert isinstance(multi, MultiTaskEnv)
    assert multi.observation_space.shape == (24,)
    assert multi.action_space.shape == (6,)
    with pytest.raises(gymnasium.error.ResetNeeded):
        multi.step(multi.action_space.sample())
    with pytest.raises(ValueError, match="which"):
        multi.reset()
    with pytest.raises(ValueError, match="Did you mean 'walker-walk'"):
        multi.reset(options={"task": "walker-wlk"})
    for name in ("hopper-hop", "cup-catch", "hopper-hop"):
        obs, info = multi.reset(seed=9, options={"task": name})
        size, actions = lookup(name).obs_dim, lookup(name).action_dim
        np.testing.assert_array_equal(obs[:size], env(name).reset(seed=9)[0])
        action = multi.action_space.sample()
        obs, *_, info = multi.step(action)
        np.testing.assert_array_equal(obs[:size], env(name).step(action[:actions])[0])
        assert not obs[size:].any()
        assert (info["task"], info["task_id"], info["success"]) == (name, MT30.index(name), 0.0)
    multi.close()


def test_multi_task_env_tasks_continue_their_own_streams(env: Callable) -> None:
    """Each task has its own environment with the common seed, whose episodes continue whenever it is used."""
    multi = make_env("mt30", seed=9)
    env("cup-catch").reset(seed=9)
    second = env("cup-catch").reset()[0]
    multi.reset(options={"task": "cup-catch"})
    multi.reset(options={"task": "pendulum-spin"})
    np.testing.assert_array_equal(multi.reset(options={"task": "cup-catch"})[0][:8], second)


def test_make_env_of_configuration_uses_its_seed(env: Callable) -> None:
    single = make_env(Config(task="hopper-hop", seed=9, device="cpu"))
    np.testing.assert_array_equal(single.reset()[0], env("hopper-hop").reset(seed=9)[0])
