"""Meta-World, MyoSuite and Gymnasium are compared with episodes recorded from TD-MPC2's wrappers.

The files alone decide which tasks and seeds are tried; another folder of the same form is named by ``TDMPC2_GOLDEN``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from tdmpc2.envs import make_env
from tests.helpers.online_golden import golden_folder

Fields = dict[str, Any]


def episodes(file: str, prefix: str = "") -> list[Any]:
    """List (file, task, seed) of the episodes of a file whose keys are ``prefix task/seed/field``."""
    path = golden_folder() / file
    if not path.is_file():
        return [pytest.param(path, "", 0, marks=pytest.mark.skip(reason=f"{path} is not there"))]
    with np.load(path) as arrays:
        names = [key.removeprefix(prefix) for key in arrays.files if key.startswith(prefix)]
    keys = sorted({(task, int(seed)) for task, seed, _ in (name.split("/") for name in names if name.count("/") == 2)})
    return [pytest.param(path, task, seed, id=f"{task}-{seed}") for task, seed in keys]


def fields(path: Path, start: str) -> Fields:
    with np.load(path) as arrays:
        return {key.removeprefix(start): arrays[key] for key in arrays.files if key.startswith(start)}


def needs(module: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"{module} is not installed: make setup EXTRAS=envs")


@contextmanager
def global_numbers(state: Any) -> Iterator[Any]:
    """Let numpy's global generator go on from a state; yields a list that ends with the one it leaves."""
    own, after = np.random.get_state(), [state]
    np.random.set_state(state)
    try:
        yield after
    finally:
        after.append(np.random.get_state())
        np.random.set_state(own)


class Begun:
    """The episode of a Meta-World task whose goal numpy's global generator draws, as in TD-MPC2.

    Attributes:
        env: the environment.
        raw: what each step of its simulator returned.
        obs: the first observation.
        state: of the global generator after it.
    """

    def __init__(self, task: str, seed: int) -> None:
        self.env: Any = make_env(f"mw-{task}", seed).unwrapped
        self.raw: list[Any] = []
        simulator = self.simulator = self.env._simulator
        simulator.seeded_rand_vec = False
        step = simulator.step

        def noted(action: Any) -> Any:
            self.raw.append(step(action))
            return self.raw[-1]

        simulator.step = noted
        self.state: Any = np.random.RandomState(seed).get_state()
        self.obs = self.again()

    def again(self) -> Any:
        """Begin the next episode; the global generator goes on."""
        with global_numbers(self.state) as after:
            self.obs, _ = self.env.reset()
        self.state = after[-1]
        return self.obs


def close(found: Any, recorded: Any, tolerance: float) -> None:
    np.testing.assert_allclose(found, recorded, rtol=0, atol=tolerance)


def registered_limit(task: str) -> int:
    """Look up MyoSuite's own time limit of a task, which only reports."""
    from tdmpc2.envs.myo_suite import _IDS

    limit = gymnasium.spec(_IDS[task]).max_episode_steps
    assert limit is not None
    return limit


#: Tasks whose first observation depends on the episode before, also with the same goal.
REMEMBER = ("window-open", "drawer-open", "lever-pull")


@needs("metaworld")
@pytest.mark.parametrize(("path", "task", "seed"), episodes("metaworld.npz"))
def test_meta_world_task_repeats_the_recorded_steps(path: Path, task: str, seed: int) -> None:
    golden = fields(path, f"{task}/{seed}/")
    begun = Begun(task, seed)
    env, simulator = begun.env, begun.simulator
    close(simulator._last_rand_vec, golden["rand_vec"], 1e-6)
    close(begun.obs, golden["obs0"], 1e-6)
    close(begun.raw[0][0], golden["obs0_after_zero_step"], 1e-6)
    steps = [env.step(action) for action in golden["action"]]
    close([step[0] for step in steps], golden["obs"], 1e-4)
    close([step[1] for step in steps], golden["reward"], 1e-4)
    close(np.reshape([raw[1] for raw in begun.raw[1:]], (-1, 2)), golden["raw_reward"], 1e-4)
    assert np.reshape([raw[4]["success"] for raw in begun.raw[1:]], (-1, 2)).tolist() == golden["raw_success"].tolist()
    assert [step[4]["success"] for step in steps] == golden["success"].tolist()
    close(simulator.data.qpos, golden["qpos"], 1e-4)
    close(simulator._target_pos, golden["goal"], 1e-6)


@needs("metaworld")
@pytest.mark.parametrize(("path", "task", "seed"), episodes("metaworld.npz"))
def test_meta_world_task_repeats_the_recorded_episodes_after_the_first(path: Path, task: str, seed: int) -> None:
    """Of the global generator, of the environment's own, and with the goal of before."""
    golden = fields(path, f"{task}/{seed}/")
    begun = Begun(task, seed)
    env, simulator = begun.env, begun.simulator
    for action in golden["action"]:
        env.step(action)
    close(begun.again(), golden["second_obs0"], 1e-6)
    close(simulator._last_rand_vec, golden["second_rand_vec"], 1e-6)
    obs, reward, *_ = env.step(golden["action"][0])
    close(obs, golden["second_obs"], 1e-4)
    close(reward, golden["second_reward"], 1e-4)
    simulator.seeded_rand_vec = True
    simulator.seed(seed)
    close(env.reset()[0], golden["own_rng_obs0"], 1e-6)
    close(simulator._last_rand_vec, golden["own_rng_rand_vec"], 1e-6)
    simulator._freeze_rand_vec, simulator._last_rand_vec = True, golden["rand_vec"].copy()
    again = env.reset()[0]
    close(again, golden["frozen_obs0"], 1e-6)
    if task not in REMEMBER:
        close(again, golden["obs0"], 1e-6)


@needs("metaworld")
@pytest.mark.parametrize(("path", "task", "seed"), episodes("metaworld.npz"))
def test_meta_world_reset_with_a_seed_equals_a_new_environment(path: Path, task: str, seed: int) -> None:
    """Goals are drawn from the environment's own generator, also after an episode that moved parts of the model."""
    golden = fields(path, f"{task}/{seed}/")
    env = make_env(f"mw-{task}", seed + 1)
    env.reset()
    for _ in range(5):
        env.step(env.action_space.sample())
    again, new = env.reset(seed=seed)[0], make_env(f"mw-{task}", seed).reset()[0]
    np.testing.assert_allclose(new, golden["own_rng_obs0"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(again, new)


@needs("metaworld")
@pytest.mark.parametrize(("path", "task", "seed"), episodes("metaworld.npz", "policy/"))
def test_meta_world_success_is_that_of_the_last_step(path: Path, task: str, seed: int) -> None:
    """Some episodes of the library's scripted policies succeed on the way and end without success."""
    golden = fields(path, f"policy/{task}/{seed}/")
    begun = Begun(task, seed)
    close(begun.simulator._last_rand_vec, golden["rand_vec"], 1e-6)
    steps = [begun.env.step(action) for action in golden["action"]]
    assert [step[4]["success"] for step in steps] == golden["raw_success"][:, 1].tolist()
    assert steps[-1][4]["success_ever"] == float(golden["raw_success"].any())
    close([step[1] for step in steps], golden["reward"], 1e-3)
    close([begun.obs, *(step[0] for step in steps)], golden["obs"], 1e-3)


@needs("myosuite")
@pytest.mark.parametrize(("path", "task", "seed"), episodes("myosuite.npz"))
def test_myo_suite_task_repeats_the_recorded_steps(
    path: Path, task: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the steps at which the simulator terminates, and its own time limit, which are recorded."""
    golden = fields(path, f"{task}/{seed}/")
    length, few = len(golden["reward"]), len(golden["action"])
    actions = np.random.RandomState(1000 + seed).uniform(-1, 1, (length, 39)).astype(np.float32)
    np.testing.assert_array_equal(actions[:few], golden["action"])
    env = make_env(task, seed)
    raw, simulator = [], env.unwrapped._simulator
    step = simulator.step
    monkeypatch.setattr(simulator, "step", lambda action: raw.append(step(action)) or raw[-1])
    obs, _ = env.reset()
    close(obs, golden["obs0"], 1e-5)
    steps = [env.step(action) for action in actions]
    close([step[0] for step in steps[:few]], golden["obs"], 1e-5)
    rewards = [step[1] for step in steps]
    np.testing.assert_allclose(rewards[:few], golden["reward"][:few], rtol=1e-4)
    np.testing.assert_allclose(rewards, golden["reward"], rtol=1e-3)
    close(steps[-1][0], golden["last_obs"], 1e-3)
    assert [step[4]["success"] for step in steps] == golden["solved"].tolist()
    assert [bool(step[2]) for step in raw] == golden["terminated"].tolist()
    limit = registered_limit(task)
    assert [index + 1 >= limit for index in range(length)] == golden["truncated"].tolist()
    assert [step[2:4] for step in steps] == [(False, index == 99) for index in range(length)]
    close(env.reset()[0], golden["second_obs0"], 1e-5)
    np.testing.assert_array_equal(env.reset(seed=seed)[0], obs)


@needs("Box2D")
@pytest.mark.parametrize(("path", "task", "seed"), episodes("gymnasium.npz"))
def test_gymnasium_task_repeats_the_recorded_steps(path: Path, task: str, seed: int) -> None:
    golden = fields(path, f"{task}/{seed}/")
    env = make_env(task, seed)
    obs, _ = env.reset()
    np.testing.assert_allclose(obs, golden["obs0"], rtol=0, atol=1e-5)
    for index, action in enumerate(golden["action"]):
        obs, reward, terminated, truncated, _ = env.step(action)
        tolerance = 1e-5 if index < 10 else 1e-3
        np.testing.assert_allclose(obs, golden["obs"][index], rtol=0, atol=tolerance)
        np.testing.assert_allclose(reward, golden["reward"][index], rtol=0, atol=tolerance)
        assert (terminated, truncated) == (golden["terminated"][index], golden["truncated"][index])
    np.testing.assert_allclose(env.reset()[0], golden["second_obs0"], rtol=0, atol=1e-5)
