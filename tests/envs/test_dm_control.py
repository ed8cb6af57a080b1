"""One environment: spaces, seeding, control steps, time limits."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tdmpc2.envs import make_env, register
from tdmpc2.envs.headless import suite
from tdmpc2.tasks import MT30, lookup


def _rollout(env: gymnasium.Env, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    steps = [env.step(action) for action in actions]
    return np.stack([step[0] for step in steps]), np.array([step[1] for step in steps])


@pytest.mark.parametrize("name", MT30)
def test_env_passes_gymnasium_checker(name: str) -> None:
    register()
    env = gymnasium.make(f"tdmpc2/{name}-v0")
    assert env.spec is not None
    assert env.spec.max_episode_steps == lookup(name).episode_length
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    unexpected = [str(w.message) for w in caught if "observation space m" not in str(w.message)]  # it has no bounds
    assert unexpected == []


def test_make_env_in_fresh_process_needs_no_opengl() -> None:
    code = (
        "import os, sys, tdmpc2, gymnasium\n"
        "assert not {'dm_control', 'mujoco'} & set(sys.modules)\n"
        "env = gymnasium.make('tdmpc2:tdmpc2/cheetah-jump-v0')\n"
        "assert env.reset(seed=1)[0].shape == (17,)\n"
        "assert 'MUJOCO_GL' not in os.environ and not {'OpenGL', 'glfw'} & set(sys.modules)\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    result = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["cheetah-run", "reacher-three-easy", "cup-spin", "fish-obstacles", "lqr-lqr-2-1"])
def test_env_reset_with_seed_is_as_fresh(name: str) -> None:
    fresh, used = make_env(name, seed=7), make_env(name, seed=3)
    first_of_3 = used.reset()[0]
    used.step(used.action_space.sample())
    for seed in (None, None, 7):
        np.testing.assert_array_equal(fresh.reset()[0], used.reset(seed=7 if seed is None else seed)[0])
        actions = np.stack([fresh.action_space.sample() for _ in range(5)])
        np.testing.assert_array_equal(actions, [used.action_space.sample() for _ in range(5)])
        for expected, actual in zip(_rollout(fresh, actions), _rollout(used, actions), strict=True):
            np.testing.assert_array_equal(actual, expected)
        fresh = make_env(name, seed=7)
    assert not np.array_equal(first_of_3, used.reset(seed=7)[0])


def test_env_reset_without_seed_continues_the_stream() -> None:
    """Episode k depends only on the seed and on k, not on the actions."""
    one, two = make_env("reacher-easy", seed=5), make_env("reacher-easy", seed=6)
    episodes = [one.reset()[0] for _ in range(3)]
    again = [two.reset(seed=5)[0]]
    for _ in range(2):
        two.step(two.action_space.sample())
        again.append(two.reset()[0])
    np.testing.assert_array_equal(episodes, again)
    assert not np.array_equal(episodes[0], episodes[1])


@pytest.mark.parametrize("name", ["walker-walk", "hopper-stand", "finger-spin", "fish-swim", "acrobot-swingup"])
def test_env_step_makes_two_control_steps(name: str, env: Callable) -> None:
    domain, task = name.split("-")
    reference = suite.load(domain, task, task_kwargs={"random": 11})
    reference.reset()
    env(name).reset(seed=11)
    for _ in range(20):
        action = env(name).action_space.sample()
        obs, reward, *_ = env(name).step(action)
        native = -1 + (action.astype(np.float64) + 1)
        first, second = reference.step(native), reference.step(native)
        flat = np.concatenate([np.ravel(value) for value in second.observation.values()]).astype(np.float32)
        np.testing.assert_array_equal(obs, flat)
        assert reward == first.reward + second.reward


def test_env_actions_are_scaled_but_not_clipped(env: Callable) -> None:
    quadruped = make_env("quadruped-walk", seed=1)
    spec = quadruped.unwrapped._env.action_spec()
    assert not (spec.maximum == 1).all()
    quadruped.reset()
    for action, native in [(-1, spec.minimum), (1, spec.maximum), (0, (spec.minimum + spec.maximum) / 2)]:
        quadruped.step(np.full(12, action, np.float32))
        np.testing.assert_allclose(quadruped.unwrapped.physics.data.ctrl, native)
    pendulum = env("pendulum-swingup")
    pendulum.reset(seed=1)
    pendulum.step(np.array([5.0], np.float32))
    assert pendulum.unwrapped.physics.data.ctrl[0] == 5  # MuJoCo clamps it inside the simulation


def test_env_is_truncated_after_500_steps(env: Callable) -> None:
    pendulum = env("pendulum-swingup")
    pendulum.reset()
    ends = [pendulum.step(pendulum.action_space.sample())[2:4] for _ in range(500)]
    assert ends == [(False, False)] * 499 + [(False, True)]


def test_env_termination_skips_second_control_step() -> None:
    """LQR terminates; dm_control would begin a new episode in the second control step."""
    env = make_env("lqr-lqr-2-1", seed=1)
    env.reset()
    with env.unwrapped.physics.reset_context():
        env.unwrapped.physics.data.qpos[:] = 0
    _, reward, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
    assert (reward, terminated, truncated) == (1, True, False)  # of one control step: two would give 2
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(1, np.float32))


def test_env_step_without_reset_or_with_wrong_action_is_refused(env: Callable) -> None:
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        make_env("pendulum-spin").step(np.zeros(1, np.float32))
    env("hopper-hop").reset()
    with pytest.raises(ValueError, match=r"shape \(6,\); this task takes \(4,\)"):
        env("hopper-hop").step(np.zeros(6, np.float32))
    env("walker-run").reset()
    with pytest.raises(ValueError, match=r"walker-run \(.*step 1\): the action is .*nan.*: actions are finite numbers"):
        env("walker-run").step(np.full(6, np.nan, np.float32))
