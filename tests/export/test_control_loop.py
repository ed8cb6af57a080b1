"""The example that drives a simulated robot with an exported file, without PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tdmpc2 import make_env
from tdmpc2.checkpoints.files import Checkpoint
from tdmpc2.config import Config
from tdmpc2.export.card import card_of, environment_facts
from tdmpc2.tasks import lookup
from tests.helpers.forks import environment
from tests.helpers.reference import REPO
from tests.helpers.scripts import load_script

FILE = REPO / "examples" / "onnx_control_loop.py"
_RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print("imported:", *sorted({"torch", "tdmpc2", "gymnasium", "tensordict"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def loop() -> ModuleType:
    return load_script(FILE)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["policy", "plan"])
def test_loop_drives_a_task_without_torch_and_without_this_package(step: str, files: dict[str, Path]) -> None:
    words = [str(files[step]), "--task", "walker-walk", "--steps", "5"]
    child = subprocess.run(
        [sys.executable, "-c", _RUN, str(FILE), *words],
        env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    first, last = child.stdout.splitlines()
    assert first.startswith("walker-walk seed 1: return ")
    assert last == "imported:"


@pytest.mark.parametrize("task", ["pendulum-spin", "walker-walk"])
def test_simulator_of_the_loop_is_the_task(task: str, loop: ModuleType, files: dict[str, Path]) -> None:
    """The simulator has the first states, observations and rewards of the environment that models are scored in."""
    controller = loop.Controller(str(files["policy"]), task)
    robot, env = loop.simulator(controller.task["environment"], 3), make_env(task, 3)
    np.testing.assert_allclose(robot.reset(), env.reset()[0], rtol=0, atol=0)
    for index in range(10):
        action = np.full(controller.task["action_dim"], np.sin(index), np.float32)
        observation, reward, _ = robot.step(action)
        expected = env.step(action)
        np.testing.assert_allclose(observation, expected[0], rtol=0, atol=1e-6)
        assert reward == pytest.approx(expected[1], abs=1e-6)


@pytest.mark.parametrize("name", ["Pendulum-v1", "MountainCarContinuous-v0"])
def test_registered_environment_of_the_loop_is_the_task(name: str, loop: ModuleType) -> None:
    """The environments agree until the end of the episode, where the loop stops."""
    facts = environment_facts(name)
    robot, env = loop.simulator(facts, 3), make_env(name, 3)
    np.testing.assert_allclose(robot.reset(), env.reset(seed=3)[0], rtol=0, atol=0)
    ended = False
    while not ended:
        action = np.full(1, 0.9, np.float32)
        observation, reward, ended = robot.step(action)
        expected = env.step(action)
        np.testing.assert_allclose(observation, expected[0], rtol=0, atol=1e-6)
        assert reward == pytest.approx(expected[1], abs=1e-6)
        assert ended == (expected[2] or expected[3])


def test_environment_of_the_loop_has_the_keywords_of_the_task(loop: ModuleType) -> None:
    """LunarLander-v3 has discrete actions unless it is built with continuous=True."""
    pytest.importorskip("Box2D", reason="Box2D is not installed: make setup EXTRAS=envs")
    facts = environment_facts("lunarlander-continuous")
    assert facts is not None
    assert facts["keywords"] == {"continuous": True}
    robot, env = loop.simulator(facts, 3), make_env("lunarlander-continuous", 3)
    np.testing.assert_allclose(robot.reset(), env.reset(seed=3)[0], rtol=0, atol=0)
    action = np.array([0.9, -0.4], np.float32)
    np.testing.assert_allclose(robot.step(action)[0], env.step(action)[0], rtol=0, atol=1e-6)


def test_environment_that_gymnasium_does_not_make_is_said_to_be_of_its_family(loop: ModuleType) -> None:
    pytest.importorskip("metaworld", reason="metaworld is not installed: make setup EXTRAS=envs")
    facts = environment_facts("mw-reach")
    assert facts is not None
    assert (facts["library"], facts["id"], len(facts["actuators"])) == ("Meta-World", "mw-reach", 4)
    with pytest.raises(SystemExit, match="put a class of your own in its place"):
        loop.simulator(facts, 1)


def test_environment_that_the_file_does_not_describe_is_one_line(loop: ModuleType) -> None:
    for facts in (None, {"library": "gymnasium", "id": "CartPole-v1", "actuators": None}):
        with pytest.raises(SystemExit, match="put a class of your own in its place"):
            loop.simulator(facts, 1)
    with pytest.raises(SystemExit, match=r"--module names the module that registers Mine-v0"):
        loop.simulator({"library": "gymnasium", "id": "Mine-v0", "actuators": [{"low": -1, "high": 1}]}, 1)


def test_loop_with_a_task_that_the_file_does_not_know_is_one_line(loop: ModuleType, files: dict[str, Path]) -> None:
    with pytest.raises(SystemExit, match="does not know cup-spin: its tasks are pendulum-spin"):
        loop.main([str(files["plan"]), "--task", "cup-spin"])


def test_facts_of_a_model_of_images_say_how_they_are_drawn() -> None:
    """A robot has to know camera, frames and their order, and not what the model never sees."""
    cfg = Config(task="walker-walk", task_specs=(lookup("walker-walk"),), obs="rgb", mode="online", model_size=1)
    card = card_of(cfg, Checkpoint({}), [0], "fp32")
    images = card["observation"]["images"]
    assert images == {"frames": 3, "frame": [3, 64, 64], "order": "oldest first", "low": 0, "high": 255}
    environment = card["tasks"][0]["environment"]
    assert environment["camera"] == 0
    assert "observations" not in environment
    assert "camera" not in (environment_facts("walker-walk") or {"camera": 0})
