"""Drive a simulated robot with files of `tdmpc2 export`, by ONNX Runtime and numpy alone.

tdmpc2 export student.pt num_samples=128 iterations=3
python examples/onnx_control_loop.py student_plan.onnx --task walker-walk
python examples/onnx_control_loop.py model_plan.onnx --module my_tasks   # an environment of your own

Neither PyTorch nor tdmpc2 is imported: all that has to be known of the model stands in the file's metadata. On a robot,
a class of its own with `reset` and `step` reads sensors and commands actuators, and the rest stays as it is.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Controller:
    """Chooses actions with an exported policy or planner, for one environment.

    Args:
        path: the file.
        task: name of one of its tasks; None: the only one.
        seed: of the random numbers that plans are made with.
        threads: that ONNX Runtime computes with.
    """

    def __init__(self, path: str, task: str | None = None, seed: int = 1, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.card = json.loads(self.session.get_modelmeta().custom_metadata_map["tdmpc2"])
        if self.card["envs"] != 1 or self.card["observation"]["kind"] != "state":
            raise SystemExit(f"{path}: this loop is for one environment that observes its state")
        names = [entry["name"] for entry in self.card["tasks"]]
        if task is None and len(names) > 1:
            raise SystemExit(f"{path} knows {len(names)} tasks: --task names one of {', '.join(names)}")
        if task is not None and task not in names:
            raise SystemExit(f"{path} does not know {task}: its tasks are {', '.join(names)}")
        self.number = names.index(task) if task is not None else 0
        self.task: dict[str, Any] = self.card["tasks"][self.number]
        self.plans = self.card["step"] == "plan"
        self._rng = np.random.default_rng(seed)
        self._plan: Floats | None = None

    def reset(self) -> None:
        """Begin an episode: the next plan starts anew."""
        self._plan = None

    def act(self, observation: Floats) -> Floats:
        """Choose an action in [-1, 1] for the task's own actuators."""
        inputs = {entry["name"]: self._input(entry, observation) for entry in self.card["inputs"]}
        outputs = dict(
            zip((entry["name"] for entry in self.card["outputs"]), self.session.run(None, inputs), strict=True)
        )
        self._plan = outputs.get("next_plan")
        return outputs["action"][0, : self.task["action_dim"]]

    def _input(self, entry: dict[str, Any], observation: Floats) -> NDArray[Any]:
        """Make one input of the graph as its entry in the metadata describes it."""
        name, shape = entry["name"], entry["shape"]
        values = np.zeros(shape, entry["dtype"])
        if name == "obs":
            values[0, : len(observation)] = observation
        elif name == "task":
            values[:] = self.number
        elif name == "t0":
            values[:] = self._plan is None
        elif name == "plan" and self._plan is not None:
            values = self._plan
        elif entry["draw"] == "normal" and name not in ("noise", "noise_action"):  # zeros act without exploring
            values = self._rng.standard_normal(shape, np.float32)
        elif entry["draw"] == "gumbel":
            values = self._rng.gumbel(size=shape).astype(np.float32)
        elif entry["draw"] == "distinct":
            order = self._rng.random((shape[0], entry["below"])).argsort(1)
            values = order[:, : shape[1]].astype(np.int64)
        return values


class ControlSuite:
    """A task of dm_control that the metadata describes; it takes the place of a robot.

    Args:
        facts: entry ``environment`` of a task in the metadata.
        seed: of the first states.
    """

    def __init__(self, facts: dict[str, Any], seed: int) -> None:
        suite = _suite_without_opengl()
        self._facts, key = facts, (facts["domain"], facts["task"])
        stock, self._reward = OWN_TASKS.get(key, (facts["task"], None))
        if (facts["domain"], stock) not in suite.ALL_TASKS:
            raise SystemExit(f"{'-'.join(key)} is no task of dm_control's own: add its reward to OWN_TASKS")
        self._env = suite.load(facts["domain"], stock, task_kwargs={"random": seed})

    def reset(self) -> Floats:
        """Begin an episode and observe."""
        return self._observed(self._env.reset())

    def step(self, action: Floats) -> tuple[Floats, float, bool]:
        """Act for one step of the agent; return the next observation, the reward, and whether the episode ended."""
        native, reward = commands(self._facts, action), 0.0
        for _ in range(self._facts["action_repeat"]):
            moment = self._env.step(native)
            reward += float(moment.reward) if self._reward is None else self._reward(self._env.physics)
        return self._observed(moment), reward, False

    def _observed(self, moment: Any) -> Floats:
        parts = [np.ravel(moment.observation[name]) for name in self._facts["observations"]]
        return np.concatenate(parts).astype(np.float32)


def _suite_without_opengl() -> Any:
    """Import dm_control, which would look for OpenGL, although nothing is drawn here."""
    if "MUJOCO_GL" in os.environ:
        return importlib.import_module("dm_control.suite")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        return importlib.import_module("dm_control.suite")
    finally:
        del os.environ["MUJOCO_GL"]


class Gymnasium:
    """An environment that is registered with Gymnasium, with the same methods."""

    def __init__(self, facts: dict[str, Any], seed: int) -> None:
        import gymnasium

        try:
            env = gymnasium.make(facts["id"], **facts.get("keywords", {}))
        except gymnasium.error.Error as error:
            raise SystemExit(f"{error} --module names the module that registers {facts['id']}") from error
        boxes = isinstance(env.observation_space, gymnasium.spaces.Box) and len(env.observation_space.shape) == 1
        self._env = env if boxes else gymnasium.wrappers.FlattenObservation(env)
        self._facts, self._seed = facts, seed

    def reset(self) -> Floats:
        """Begin an episode and observe."""
        return self._env.reset(seed=self._seed)[0].astype(np.float32)

    def step(self, action: Floats) -> tuple[Floats, float, bool]:
        """Take one step; return the next observation, the reward, and whether the episode ended."""
        space, native = self._env.action_space, commands(self._facts, action)
        native = (np.rint(native) if space.dtype.kind in "iu" else native).astype(space.dtype)
        observation, reward, terminated, truncated, _ = self._env.step(native)
        return observation.astype(np.float32), float(reward), terminated or truncated


def commands(facts: dict[str, Any], action: Floats) -> NDArray[np.float64]:
    """Turn an action in [-1, 1] into commands within the limits of each actuator."""
    low, high = (np.array([actuator[end] for actuator in facts["actuators"]]) for end in ("low", "high"))
    return low + (np.clip(np.asarray(action, np.float64), -1, 1) + 1) / 2 * (high - low)


def simulator(facts: dict[str, Any] | None, seed: int) -> ControlSuite | Gymnasium:
    """Build what the metadata describes."""
    kinds = {"dm_control": ControlSuite, "gymnasium": Gymnasium}
    if facts is None or facts["library"] not in kinds or not facts["actuators"]:
        raise SystemExit("the file does not describe the task's environment: put a class of your own in its place")
    return kinds[facts["library"]](facts, seed)


def pendulum_spin(physics: Any) -> float:
    """Reward turning at 9 radians a second or faster; half of it at half of that."""
    speed = abs(physics.named.data.qvel["hinge"].item())
    return float(np.clip(1 - 0.5 * (9 - speed) / 4.5, 0, 1))


#: Tasks that are one of dm_control's with another reward: (domain, task) -> the task, and the reward of the physics.
OWN_TASKS: dict[tuple[str, str], tuple[str, Callable[[Any], float]]] = {
    ("pendulum", "spin"): ("swingup", pendulum_spin)
}


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Play episodes; returns their returns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="of `tdmpc2 export`")
    parser.add_argument("--task", help="one of the file's tasks; needed where it has several")
    parser.add_argument("--module", help="imported first; registers an environment of your own with Gymnasium")
    parser.add_argument("--episodes", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of an episode at most; by default as long as the task's")
    parser.add_argument("--seed", type=int, default=1, help="of the first episode (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if args.module is not None:
        sys.path.insert(0, os.getcwd())
        importlib.import_module(args.module)
    controller = Controller(args.file, args.task, args.seed, args.threads)
    task, returns = controller.task, []
    for seed in range(args.seed, args.seed + args.episodes):
        robot, seconds, total = simulator(task["environment"], seed), [], 0.0
        controller.reset()
        observation = robot.reset()
        for _ in range(min(task["episode_length"], args.steps or task["episode_length"])):
            began = time.perf_counter()
            action = controller.act(observation)
            seconds.append(time.perf_counter() - began)
            observation, reward, ended = robot.step(action)
            total += reward
            if ended:
                break
        returns.append(total)
        middle, late = np.percentile(seconds, [50, 99]) * 1e3
        print(
            f"{task['name']} seed {seed}: return {total:.1f}, {middle:.2f} ms per action (99 %: {late:.2f})", flush=True
        )
    return returns


if __name__ == "__main__":
    main()
