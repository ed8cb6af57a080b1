"""Meta-World, MyoSuite and Gymnasium are compared with episodes recorded from TD-MPC2's wrappers.

The files alone decide which tasks and seeds are tried; another folder of the same form is named by ``TDMPC2_GOLDEN``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

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


def begun(task: str, seed: int, drawn: Any) -> tuple[Any, Any]:
    """Begin the episode of a Meta-World task whose goal numpy's global generator draws, as in TD-MPC2."""
    env: Any = make_env(f"mw-{task}", seed).unwrapped
    env._simulator.seeded_rand_vec = False
    state = np.random.get_state()
    np.random.seed(seed)
    obs, _ = env.reset()
    np.random.set_state(state)
    np.testing.assert_allclose(env._simulator._last_rand_vec, drawn, rtol=0, atol=1e-6)
    return env, obs


@needs("metaworld")
@pytest.mark.parametrize(("path", "task", "seed"), episodes("metaworld.npz"))
def test_meta_world_task_repeats_the_recorded_steps(path: Path, task: str, seed: int) -> None:
    golden = fields(path, f"{task}/{seed}/")
    env, obs = begun(task, seed, golden["rand_vec"])
    np.testing.assert_allclose(obs, golden["obs0"], rtol=0, atol=1e-6)
    steps = [env.step(action) for action in golden["action"]]
    np.testing.assert_allclose([step[0] for step in steps], golden["obs"], rtol=0, atol=1e-4)
    np.testing.assert_allclose([step[1] for step in steps], golden["reward"], rtol=0, atol=1e-4)
    assert [step[4]["success"] for step in steps] == golden["success"].tolist()


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
    env, _ = begun(task, seed, golden["rand_vec"])
    steps = [env.step(action) for action in golden["action"]]
    assert [step[4]["success"] for step in steps] == golden["raw_success"][:, 1].tolist()
    assert steps[-1][4]["success_ever"] == float(golden["raw_success"].any())
    np.testing.assert_allclose([step[1] for step in steps], golden["reward"], rtol=0, atol=1e-3)


@needs("myosuite")
@pytest.mark.parametrize(("path", "task", "seed"), episodes("myosuite.npz"))
def test_myo_suite_task_repeats_the_recorded_steps(path: Path, task: str, seed: int) -> None:
    golden = fields(path, f"{task}/{seed}/")
    env = make_env(task, seed)
    obs, _ = env.reset()
    np.testing.assert_allclose(obs, golden["obs0"], rtol=0, atol=1e-5)
    steps = [env.step(action) for action in golden["action"]]
    np.testing.assert_allclose([step[0] for step in steps], golden["obs"], rtol=0, atol=1e-5)
    np.testing.assert_allclose([step[1] for step in steps], golden["reward"][: len(steps)], rtol=1e-4)
    assert [step[4]["success"] for step in steps] == golden["solved"][: len(steps)].tolist()
    np.testing.assert_allclose(env.reset()[0], golden["second_obs0"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(env.reset(seed=seed)[0], obs)


@needs("Box2D")
@pytest.mark.parametrize(("path", "task", "seed"), episodes("gymnasium.npz"))
def test_gymnasium_task_repeats_the_recorded_steps(path: Path, task: str, seed: int) -> None:
    golden = fields(path, f"{task}/{seed}/")
    env = make_env(task, seed)
    obs, _ = env.reset()
    np.testing.assert_allclose(obs, golden["obs0"], rtol=0, atol=1e-5)
    for index, action in enumerate(golden["action"]):
        obs, reward, terminated, *_ = env.step(action)
        tolerance = 1e-5 if index < 10 else 1e-3
        np.testing.assert_allclose(obs, golden["obs"][index], rtol=0, atol=tolerance)
        np.testing.assert_allclose(reward, golden["reward"][index], rtol=0, atol=tolerance)
        assert terminated == golden["terminated"][index]
    np.testing.assert_allclose(env.reset()[0], golden["second_obs0"], rtol=0, atol=1e-5)
