"""Names of tasks: the table, other spellings, unknown ones."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from tdmpc2.envs import make_env, task_spec
from tdmpc2.envs.headless import suite
from tdmpc2.envs.registry import family_of
from tdmpc2.tasks import TASKS, TaskSpec, lookup

DM_CONTROL = [name for name in TASKS if family_of(name).name == "DMControl"]
HEAVY = [name for name in DM_CONTROL if name.split("-")[0] in ("dog", "humanoid", "quadruped")]
LIGHT = [name for name in DM_CONTROL if name not in HEAVY]


def test_task_table_sizes_are_those_of_the_environments(env: Callable) -> None:
    for name in LIGHT:
        _check_sizes(env(name), lookup(name))


@pytest.mark.parametrize("name", ["quadruped-walk", "quadruped-escape", "humanoid-run", "dog-run"])
def test_task_table_sizes_of_large_robots_are_right(name: str) -> None:
    """Quadrupeds run with numpy >= 2.4 and escape without OpenGL, where dm_control's own tasks do not."""
    env = make_env(name, seed=3)
    first = _check_sizes(env, task_spec(name))
    env.step(env.action_space.sample())
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)
    assert env.unwrapped._camera == (2 if "quadruped" in name else 0)


@pytest.mark.slow
def test_make_env_of_every_suite_task_loads() -> None:
    for domain, task in suite.ALL_TASKS:
        env = make_env(f"{domain}-{task}".replace("_", "-"), seed=3)
        first = _check_sizes(env, task_spec(f"{domain}-{task}"))
        _, reward, *_ = env.step(env.action_space.sample())
        assert np.isfinite(reward)
        np.testing.assert_array_equal(env.reset(seed=3)[0], first)


def _check_sizes(env: gymnasium.Env, spec: TaskSpec) -> np.ndarray:
    assert env.observation_space == Box(-np.inf, np.inf, (spec.obs_dim,), np.float32)
    assert env.action_space == Box(-1, 1, (spec.action_dim,), np.float32)
    obs, info = env.reset()
    assert env.observation_space.contains(obs)
    assert isinstance(info["success"], float)
    return obs


@pytest.mark.parametrize(
    ("name", "same"),
    [("walker_walk_backwards", "walker-walk-backwards"), ("ball_in_cup-catch", "cup-catch"), ("cup_spin", "cup-spin")],
)
def test_lookup_of_other_spelling_finds_the_task(name: str, same: str) -> None:
    assert task_spec(name) == lookup(same)
    np.testing.assert_array_equal(make_env(name, seed=2).reset()[0], make_env(same, seed=2).reset()[0])


def test_task_spec_of_unlisted_task_is_measured() -> None:
    assert task_spec("pointmass-easy") == TaskSpec("pointmass-easy", 4, 2, 500)
    assert task_spec("point_mass-easy").obs_dim == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("walker-wlak", "Unknown task 'walker-wlak'. Did you mean 'walker-walk'"),
        ("swimmer-swimer6", "Did you mean 'swimmer-swimmer6'"),
        ("mt3", "Did you mean 'mt30'"),
        ("nonsense", "Gymnasium id"),
        ("lift-cube", "no task 'lift-cube' any more: pick-cube"),
        ("ms-pick-cub", "Did you mean 'ms-pick-cube'"),
    ],
)
def test_make_env_of_unknown_name_suggests_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_env(name)
