"""The environment layer: names, spaces, seeding, time limits, wrappers, other environments, rendering."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env

from tdmpc2.config import Config
from tdmpc2.envs import make_env, register, rendering, task_spec
from tdmpc2.envs.headless import control, suite
from tdmpc2.envs.multitask import MultiTaskEnv
from tdmpc2.envs.vector import make_vec_env
from tdmpc2.envs.wrappers import OldGymEnv, PadEnv
from tdmpc2.tasks import MT30, TASKS, TaskSpec, lookup

DM_CONTROL = [name for name in TASKS if not name.startswith("mw-")]
HEAVY = [name for name in DM_CONTROL if name.split("-")[0] in ("dog", "humanoid", "quadruped")]
LIGHT = [name for name in DM_CONTROL if name not in HEAVY]


@pytest.fixture(scope="module")
def env() -> Iterator[Callable[[str], gymnasium.Env]]:
    """Environments by name, built once for this file."""
    built: dict[str, gymnasium.Env] = {}

    def get(name: str) -> gymnasium.Env:
        if name not in built:
            built[name] = make_env(name, seed=1)
        return built[name]

    yield get
    for instance in built.values():
        instance.close()


def _rollout(env: gymnasium.Env, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    steps = [env.step(action) for action in actions]
    return np.stack([step[0] for step in steps]), np.array([step[1] for step in steps])


# Names


def test_table_sizes(env: Callable) -> None:
    for name in LIGHT:
        _check_sizes(env(name), lookup(name))


@pytest.mark.parametrize("name", ["quadruped-walk", "quadruped-escape", "humanoid-run", "dog-run"])
def test_large_robots(name: str) -> None:
    """Also: dm_control's quadruped does not run as it is with numpy >= 2.4, and escape not without OpenGL."""
    env = make_env(name, seed=3)
    first = _check_sizes(env, task_spec(name))
    env.step(env.action_space.sample())
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)
    assert env.unwrapped._camera == (2 if "quadruped" in name else 0)


@pytest.mark.slow
def test_every_task_of_the_suite_loads() -> None:
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
def test_other_spellings(name: str, same: str) -> None:
    assert task_spec(name) == lookup(same)
    np.testing.assert_array_equal(make_env(name, seed=2).reset()[0], make_env(same, seed=2).reset()[0])


def test_tasks_outside_the_table() -> None:
    assert task_spec("pointmass-easy") == TaskSpec("pointmass-easy", 4, 2, 500)
    assert task_spec("point_mass-easy").obs_dim == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("walker-wlak", "Unknown task 'walker-wlak'. Did you mean 'walker-walk'"),
        ("swimmer-swimer6", "Did you mean 'swimmer-swimmer6'"),
        ("mt3", "Did you mean 'mt30'"),
        ("nonsense", "Gymnasium id"),
        ("mw-reach", "Meta-World environments are not supported"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_env(name)


# One environment


@pytest.mark.parametrize("name", MT30)
def test_gymnasium_checker(name: str) -> None:
    register()
    env = gymnasium.make(f"tdmpc2/{name}-v0")
    assert env.spec is not None
    assert env.spec.max_episode_steps == lookup(name).episode_length
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    unexpected = [str(w.message) for w in caught if "observation space m" not in str(w.message)]  # it is unbounded
    assert unexpected == []


def test_fresh_process_needs_no_opengl() -> None:
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
def test_reset_with_seed_is_a_fresh_environment(name: str) -> None:
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


def test_reset_without_seed_goes_on() -> None:
    """Episode k depends on the seed and k only, not on the actions."""
    one, two = make_env("reacher-easy", seed=5), make_env("reacher-easy", seed=6)
    episodes = [one.reset()[0] for _ in range(3)]
    again = [two.reset(seed=5)[0]]
    for _ in range(2):
        two.step(two.action_space.sample())
        again.append(two.reset()[0])
    np.testing.assert_array_equal(episodes, again)
    assert not np.array_equal(episodes[0], episodes[1])


@pytest.mark.parametrize("name", ["walker-walk", "hopper-stand", "finger-spin", "fish-swim", "acrobot-swingup"])
def test_two_control_steps_per_action(name: str, env: Callable) -> None:
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


def test_actions_are_scaled_but_not_clipped(env: Callable) -> None:
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


def test_time_limit(env: Callable) -> None:
    pendulum = env("pendulum-swingup")
    pendulum.reset()
    ends = [pendulum.step(pendulum.action_space.sample())[2:4] for _ in range(500)]
    assert ends == [(False, False)] * 499 + [(False, True)]


def test_termination_ends_the_episode_between_control_steps() -> None:
    """The one task of the suite that terminates; dm_control would start a new episode in the next control step."""
    env = make_env("lqr-lqr-2-1", seed=1)
    env.reset()
    with env.unwrapped.physics.reset_context():
        env.unwrapped.physics.data.qpos[:] = 0
    _, reward, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
    assert (reward, terminated, truncated) == (1, True, False)  # of one control step: two would give 2
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(1, np.float32))


def test_step_errors(env: Callable) -> None:
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        make_env("pendulum-spin").step(np.zeros(1, np.float32))
    env("hopper-hop").reset()
    with pytest.raises(ValueError, match=r"shape \(6,\); this task takes \(4,\)"):
        env("hopper-hop").step(np.zeros(6, np.float32))
    env("walker-run").reset()
    with pytest.raises(control.PhysicsError):
        env("walker-run").step(np.full(6, np.nan, np.float32))


# Several environments


def test_padding(env: Callable) -> None:
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


def test_vector_of_different_tasks(env: Callable) -> None:
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


def test_vector_resets_what_it_is_told_to(env: Callable) -> None:
    gymnasium.register("ShortTask-v0", _Counter, max_episode_steps=2)
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


def test_vector_errors() -> None:
    for specs, seeds in [([], []), ([lookup("hopper-hop")], [1, 2])]:
        with pytest.raises(ValueError, match="one seed for each task"):
            make_vec_env(specs, seeds, 24, 6)


def test_multi_task_environment(env: Callable) -> None:
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


def test_multi_task_seeds_and_streams(env: Callable) -> None:
    """Each task is a fresh environment of the common seed when first used and goes on with its own episodes."""
    multi = make_env("mt30", seed=9)
    env("cup-catch").reset(seed=9)
    second = env("cup-catch").reset()[0]
    multi.reset(options={"task": "cup-catch"})
    multi.reset(options={"task": "pendulum-spin"})
    np.testing.assert_array_equal(multi.reset(options={"task": "cup-catch"})[0][:8], second)


def test_configuration_of_one_task(env: Callable) -> None:
    single = make_env(Config(task="hopper-hop", seed=9, device="cpu"))
    np.testing.assert_array_equal(single.reset()[0], env("hopper-hop").reset(seed=9)[0])


# Environments of the user


class _Counter(gymnasium.Env):
    """Observes how many steps it has made, as a matrix, and the last action."""

    observation_space = Box(0, 10, (2, 3), np.float64)
    action_space = Box(-2, 6, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros((2, 3)), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return np.full((2, 3), self.steps, float), float(action[0]), False, False, {"success": self.steps > 1}


class _Choice(_Counter):
    action_space = Discrete(2)


class _Unbounded(_Counter):
    action_space = Box(-np.inf, np.inf, (1,), np.float32)


class _Broken(_Counter):
    def __init__(self) -> None:
        raise KeyError("missing asset")


class _OldCounter:
    """The old gym API."""

    observation_space = Box(0, 10, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)
    steps = seeded = closed = 0

    def seed(self, seed: int) -> None:
        self.seeded = seed

    def reset(self) -> np.ndarray:
        self.steps = 0
        return np.zeros(2, np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict]:
        self.steps += 1
        return np.full(2, self.steps, np.float32), 1.0, self.steps == 3, {"TimeLimit.truncated": self.seeded == 2}

    def render(self, mode: str) -> str:
        return mode

    def close(self) -> None:
        self.closed = 1


def test_gymnasium_environment() -> None:
    assert task_spec("Pendulum-v1") == TaskSpec("Pendulum-v1", 3, 1, episode_length=200)
    assert task_spec("gymnasium:Pendulum-v1").episode_length == 200
    ours, plain = make_env("Pendulum-v1", seed=5), gymnasium.make("Pendulum-v1")
    np.testing.assert_array_equal(ours.reset()[0], plain.reset(seed=5)[0])
    obs, reward, *_, info = ours.step(np.array([0.25], np.float32))
    expected_obs, expected_reward, *_ = plain.step(np.array([0.5], np.float32))
    np.testing.assert_allclose(obs, expected_obs, atol=1e-6)
    assert reward == pytest.approx(float(expected_reward))
    assert info["success"] == 0.0
    np.testing.assert_array_equal(ours.reset()[0], plain.reset()[0])
    assert ours.action_space == Box(-1, 1, (1,), np.float32)
    np.testing.assert_array_equal(ours.action_space.sample(), Box(-1, 1, (1,), np.float32, seed=5).sample())


def test_own_environment() -> None:
    gymnasium.register("Counter-v0", _Counter, max_episode_steps=20)
    assert task_spec("Counter-v0") == TaskSpec("Counter-v0", 6, 1, episode_length=20)
    env = make_env("Counter-v0", seed=1)
    obs, _ = env.reset()
    assert obs.dtype == np.float32
    assert obs.shape == (6,)
    for action, native in [(-1, -2), (0, 2), (1, 6)]:
        _, reward, *_, info = env.step(np.array([action], np.float32))
        assert reward == pytest.approx(native)
    assert info["success"] == 1.0


@pytest.mark.parametrize(
    ("kind", "limit", "error", "message"),
    [
        (_Choice, 10, ValueError, "action space of 'Wrong-v0' is Discrete"),
        (_Unbounded, 10, ValueError, "finite bounds"),
        (_Counter, None, ValueError, "no time limit.*max_episode_steps"),
        (_Broken, 10, KeyError, "missing asset"),
    ],
)
def test_unsuitable_environments(kind: type, limit: int | None, error: type[Exception], message: str) -> None:
    gymnasium.register("Wrong-v0", kind, max_episode_steps=limit)
    try:
        with pytest.raises(error, match=message):
            task_spec("Wrong-v0")
    finally:
        del gymnasium.registry["Wrong-v0"]


def test_missing_module_is_reported_as_such() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        make_env("no_such_package:Thing-v0")


def test_old_gym_environment() -> None:
    old = _OldCounter()
    gymnasium.register("Old-v0", lambda **kwargs: OldGymEnv(old, **kwargs), max_episode_steps=50)
    env = make_env("Old-v0", seed=1, render_mode="rgb_array")
    obs, _ = env.reset()
    assert old.seeded == 1
    np.testing.assert_array_equal(obs, [0, 0])
    assert [env.step(np.zeros(1, np.float32))[2:4] for _ in range(3)] == [(False, False)] * 2 + [(True, False)]
    env.reset(seed=2)
    assert [env.step(np.zeros(1, np.float32))[2:4] for _ in range(3)][-1] == (False, True)
    assert env.unwrapped.render() == "rgb_array"
    env.close()
    assert old.closed
    with pytest.raises(ValueError, match="only Box"):
        OldGymEnv(type("Old", (_OldCounter,), {"action_space": Discrete(2)})())


# Rendering


@pytest.fixture(scope="module")
def opengl() -> None:
    try:
        rendering.context_module()
    except ValueError as error:
        pytest.skip(str(error))


def _frame(name: str, steps: int = 0, **state: Any) -> np.ndarray:
    env = make_env(name, seed=1, render_mode="rgb_array")
    env.reset()
    for _ in range(steps):
        env.step(env.action_space.sample())
    with env.unwrapped.physics.reset_context():
        for joint, position in state.items():
            env.unwrapped.physics.named.data.qpos[joint] = position
    image = env.render()
    env.close()
    env.close()
    return image


@pytest.mark.usefixtures("opengl")
def test_frames(env: Callable) -> None:
    env("cheetah-run")  # one without rendering was built before
    image = _frame("cheetah-run")
    assert image.shape == (384, 384, 3)
    assert image.dtype == np.uint8
    assert image.std() > 5
    np.testing.assert_array_equal(image, _frame("cheetah-run"))
    assert (image != _frame("cheetah-run", rooty=1.5)).mean() > 0.01


@pytest.mark.usefixtures("opengl")
def test_floor_reaches_far_behind_custom_tasks() -> None:
    """Below the horizon, 50 m behind the start, one sees the floor and not the stars of the sky."""
    stars = {name: (_frame(name, rootx=-50)[295:330] > 180).any() for name in ("cheetah-run", "cheetah-run-backwards")}
    assert stars == {"cheetah-run": True, "cheetah-run-backwards": False}


@pytest.mark.usefixtures("opengl")
def test_checker_with_rendering() -> None:
    register()
    env = gymnasium.make("tdmpc2/pendulum-spin-v0", render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*observation space m.*")
        check_env(env.unwrapped)
    env.close()


def test_rendering_errors(monkeypatch: pytest.MonkeyPatch, env: Callable) -> None:
    with pytest.raises(ValueError, match="render_mode='human'"):
        make_env("pendulum-spin", render_mode="human")
    assert env("pendulum-spin").unwrapped.render() is None
    rendering.context_module.cache_clear()
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(ValueError, match=r"MUJOCO_GL=disable.*libosmesa6"):
        make_env("pendulum-spin", render_mode="rgb_array")
