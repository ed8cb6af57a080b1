"""Every named task of every installed family is a sound Gymnasium environment."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tdmpc2.envs import make_env, task_spec
from tdmpc2.envs.registry import family_of
from tdmpc2.tasks import TASKS

OTHERS = [name for name in TASKS if family_of(name).name != "DMControl"]  # DMControl's own tests play all its tasks
FEW = ["ms-push-cube", "mw-reach", "mw-lever-pull", "myo-key-turn-hard", "mujoco-halfcheetah", "lunarlander-continuous"]


def skip_unless_installed(name: str) -> None:
    family = family_of(name)
    if not family.installed:
        pytest.skip(f"{family.name} is not installed: make setup EXTRAS=envs")
    if name in ("bipedal-walker", "lunarlander-continuous"):
        pytest.importorskip("Box2D", reason="Box2D is not installed: make setup EXTRAS=envs")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in OTHERS])
def test_task_passes_gymnasiums_check_and_plays_an_episode(name: str) -> None:
    skip_unless_installed(name)
    env, spec = make_env(name, seed=3), TASKS[name]
    assert env.observation_space.shape == (spec.obs_dim,)
    assert env.action_space.shape == (spec.action_dim,)
    if family_of(name).entry_point:  # others are registered by Gymnasium itself
        with warnings.catch_warnings(action="ignore"):  # about spaces without bounds
            check_env(env.unwrapped, skip_render_check=True)
    env.action_space.seed(1)
    first, _ = env.reset(seed=5)
    over, steps, rewards = False, 0, []
    while not over:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        over, steps = terminated or truncated, steps + 1
        rewards.append(reward)
    assert terminated or steps == spec.episode_length
    assert np.isfinite(rewards).all()
    assert info["success"] in (0.0, 1.0)
    np.testing.assert_array_equal(env.reset(seed=5)[0], first)
    assert not np.array_equal(env.reset()[0], first) or name.startswith("myo-")  # some of MyoSuite's always begin alike
    env.close()


def begun_twice_alike(name: str) -> tuple[Any, np.ndarray]:
    """Check that a seed repeats the first observation and that no seed does not; return environment and observation."""
    env = make_env(name, seed=3)
    first = env.reset(seed=3)[0]
    assert not np.array_equal(env.reset()[0], first)
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)
    return env, first


def test_myo_suite_task_under_its_registered_id_ends_as_registered_and_repeats_a_seed() -> None:
    """Its reset takes no notice of a seed, its success is called ``solved``, and it terminates."""
    skip_unless_installed("myo-reach")
    name = "myosuite:myoHandReachRandom-v0"
    env, first = begun_twice_alike(name)
    np.testing.assert_array_equal(make_env(name, seed=3).reset()[0], first)
    assert env.step(env.action_space.sample())[4]["success"] in (0.0, 1.0)
    env.action_space.seed(1)
    over, steps = False, 0
    while not over:
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        over, steps = terminated or truncated, steps + 1
    spec = task_spec(name)
    assert spec.success_score
    assert steps <= spec.episode_length
    env.close()


@pytest.mark.slow
def test_motion_of_myo_suite_repeats_a_seed_and_is_scored_by_its_return() -> None:
    """Its targets come from a generator of their own, and the success that it tells is always 0."""
    skip_unless_installed("myo-reach")
    name = "myosuite:MyoHandCylinderlargeRandom-v0"
    env, _ = begun_twice_alike(name)
    assert not task_spec(name).success_score
    env.close()


@pytest.mark.usefixtures("opengl")
def test_myo_suite_task_under_its_registered_id_is_drawn() -> None:
    skip_unless_installed("myo-reach")
    env = make_env("myosuite:myoHandReachRandom-v0", seed=3, render_mode="rgb_array")
    env.reset(seed=3)
    assert np.asarray(env.render()).std() > 10
    env.close()


def test_pip_check_names_the_pins_of_myo_suite_and_nothing_else() -> None:
    """docs/environments.md says so: any other line is an environment whose packages do not fit."""
    skip_unless_installed("myo-reach")
    pytest.importorskip("pip")
    found = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, timeout=120)
    assert found.returncode in (0, 1), found.stderr
    others = [line for line in found.stdout.splitlines() if not line.lower().startswith(("myosuite ", "no broken"))]
    assert not others, f"pip check: {'; '.join(others)}"
