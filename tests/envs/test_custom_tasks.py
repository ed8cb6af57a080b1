"""The 28 custom tasks are compared with formulas, models and first states that were written down for this."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from tdmpc2.envs.custom_tasks import CUSTOM_TASKS, load
from tdmpc2.envs.headless import mujoco, suite
from tests.helpers.reference import GOLDEN

FORMULAS = GOLDEN / "custom_rewards.txt"


def _formulas() -> dict[tuple[str, str], tuple[dict[str, float], list[tuple[str, str]]]]:
    """Read the formulas: (domain, task) -> constants, [(name, expression), ...]."""
    text = "\n".join(line for line in FORMULAS.read_text().splitlines() if not line.startswith("#"))
    result = {}
    for block in re.split(r"\n{2,}", text.strip()):
        header, *lines = block.splitlines()
        domain, task, *constants = header.split()
        values = {name: float(value) for name, value in (constant.split("=") for constant in constants)}
        result[domain, task] = (values, [tuple(line.replace("|", ",").split(" = ")) for line in lines])
    return result


def _tolerance(x: float, low: float, high: float, margin: float, v: float, shape: str) -> float:
    if low <= x <= high:
        return 1.0
    if margin == 0:
        return 0.0
    d = (low - x if x < low else x - high) / margin
    return v ** (d * d) if shape == "gauss" else max(0.0, 1 - (1 - v) * d)


class _Symbols(dict):
    """The words of formulas, read from the simulation; other words (bodies, shapes) stand for themselves."""

    def __init__(self, physics: Any) -> None:
        data, model = physics.named.data, physics.named.model
        super().__init__(
            T=_tolerance,
            inf=math.inf,
            abs=abs,
            z=lambda body: data.xpos[body, "z"],
            zcom=lambda body: data.xipos[body, "z"],
            zz=lambda body: data.xmat[body].reshape(3, 3)[2, 2],
        )
        if isinstance(physics, suite.walker.Physics):
            self["thigh"] = (data.xpos["left_thigh", "z"] + data.xpos["right_thigh", "z"]) / 2
            self["N"] = (1 - self["zz"]("torso")) / 2
            self["feet"] = (data.xpos["left_foot", "z"] + data.xpos["right_foot", "z"]) / 2
        if isinstance(physics, suite.walker.Physics | suite.cheetah.Physics | suite.hopper.Physics):
            self["vx"] = data.sensordata["torso_subtreelinvel"][0]
            self["Ly"] = data.subtree_angmom["torso"][1]
        if isinstance(physics, suite.pendulum.Physics):
            self["w"] = data.qvel["hinge"][0]
        if isinstance(physics, suite.reacher.Physics):
            self["D"] = np.hypot(*(data.geom_xpos["target"] - data.geom_xpos["finger"])[:2])
        if isinstance(physics, suite.ball_in_cup.Physics):
            x, _, z = data.site_xpos["target"] - data.xpos["ball"]
            half, radius = model.site_size["target"], model.geom_size["ball"][0]
            self["D"], self["s"] = math.hypot(x, z), math.hypot(data.qvel["ball_x"][0], data.qvel["ball_z"][0])
            self["I"] = int(abs(x) < half[0] - radius and abs(z) < half[2] - radius)
        if isinstance(physics, suite.fish.Physics):
            self["D"] = np.linalg.norm(data.geom_xpos["mouth"] - data.geom_xpos["target"])
            self["R"] = model.geom_size["mouth"][0] + model.geom_size["target"][0]
            self["X"] = int(_wall_distance(physics, "torso") < 0.06)

    def __missing__(self, name: str) -> str:
        return name


def _wall_distance(physics: Any, geom: str) -> float:
    """Compute the smallest distance to a wall along x or along y."""
    position = physics.named.data.geom_xpos[geom]
    walls = [(-0.15, -0.15), (0.15, -0.15), (0.15, 0.15), (-0.15, 0.15)]
    return min(min(abs(position[0] - x), abs(position[1] - y)) for x, y in walls)


@pytest.mark.parametrize(("domain", "task"), CUSTOM_TASKS)
def test_custom_task_reward_follows_its_formula(domain: str, task: str) -> None:
    constants, terms = _formulas()[domain, task]
    env = load(domain, task, seed=1)
    rng = np.random.default_rng(0)
    rewards = []
    physics = env.physics
    for i in range(250):
        if i % 10 == 0:
            env.reset()
            first = physics.data.qpos.copy()
        qpos = first if i % 2 else physics.model.qpos0  # a first state, or the model's upright one
        spread = rng.choice([0.0, 0.3, 1.5])
        with physics.reset_context():
            physics.data.qpos[:] = qpos + spread * rng.normal(size=qpos.shape)
            physics.data.qvel[:] = rng.choice([0.0, 2.0, 8.0]) * rng.normal(size=physics.data.qvel.shape)
        symbols = _Symbols(physics)
        symbols.update(constants)
        for name, expression in terms:
            symbols[name] = eval(expression, {"__builtins__": {}}, symbols)
        reward = env.task.get_reward(physics)
        assert 0 <= reward <= 1
        assert reward == pytest.approx(symbols["r"], abs=1e-12)
        rewards.append(reward)
    assert max(rewards) > min(rewards) or "hard" in task


def test_hopper_hop_backwards_reward_has_hard_height_limit() -> None:
    """A hopper that moves backwards and tilts is rewarded with 1 down to a height of 0.6, and then with 0."""
    env = load("hopper", "hop_backwards", seed=1)
    env.reset()
    physics = env.physics
    heights, rewards = [], []
    for angle in np.linspace(0, np.pi / 2, 200):
        with physics.reset_context():
            physics.named.data.qpos["rooty"] = angle
            physics.named.data.qvel["rootx"] = -2
        heights.append(physics.height())
        rewards.append(env.task.get_reward(physics))
    np.testing.assert_array_equal(rewards, (np.array(heights) >= 0.6).astype(float))
    assert any(0.58 < height < 0.6 for height in heights)
    assert any(0.6 < height < 0.62 for height in heights)


def test_custom_task_formulas_have_tasks() -> None:
    assert set(_formulas()) == set(CUSTOM_TASKS)
    assert len(CUSTOM_TASKS) == 28


@pytest.mark.parametrize(
    ("domain", "task"),
    [("walker", "flip"), ("reacher", "four_easy"), ("ball_in_cup", "spin"), ("fish", "obstacles")],
)
def test_custom_task_seed_decides_first_state(domain: str, task: str) -> None:
    first, same, other = (load(domain, task, seed).reset().observation for seed in (1, 1, 2))
    for key in first:
        np.testing.assert_array_equal(first[key], same[key])
    assert any((first[key] != other[key]).any() for key in first)


@pytest.mark.parametrize(("number", "joints", "length"), [("three", 3, 0.09), ("four", 4, 0.06)])
@pytest.mark.parametrize(("size", "radius"), [("easy", 0.05), ("hard", 0.015)])
def test_reacher_model_has_the_documented_links(
    number: str, joints: int, length: float, size: str, radius: float
) -> None:
    env = load("reacher", f"{number}_{size}", seed=1)
    env.reset()
    physics, named = env.physics, env.physics.named
    names = [f"shoulder{i}" for i in range(joints - 1)] + ["wrist"]
    assert [physics.model.id2name(i, "joint") for i in range(physics.model.njnt)] == names
    assert [physics.model.id2name(i, "actuator") for i in range(physics.model.nu)] == names
    np.testing.assert_array_equal(physics.model.jnt_limited, [0] + [1] * (joints - 1))
    np.testing.assert_allclose(np.rad2deg(physics.model.jnt_range[1:]), [[-80, 80]] * (joints - 1))
    np.testing.assert_allclose(physics.model.dof_damping, 0.01)
    np.testing.assert_allclose(physics.model.actuator_gear[:, 0], 0.05)
    assert named.model.geom_size["target", 0] == radius
    assert physics.model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_CONTACT
    for i in range(joints - 1):
        np.testing.assert_allclose(named.model.geom_size[f"arm{i}"][:2], [0.01, length / 2])
    np.testing.assert_allclose(named.model.geom_size["hand"][:2], [0.01, 0.05])
    with physics.reset_context():
        physics.data.qpos[:] = 0
    np.testing.assert_allclose(named.data.geom_xpos["finger"], [joints * length, 0, 0.01], atol=1e-12)
    observation = env.task.get_observation(physics)
    assert [value.size for value in observation.values()] == [joints, 2, joints]


def test_reacher_joints_stay_within_limits() -> None:
    env = load("reacher", "three_easy", seed=1)
    joints, radii = [], []
    for _ in range(100):
        env.reset()
        joints.append(env.physics.data.qpos.copy())
        radii.append(np.hypot(*env.physics.named.data.geom_xpos["target"][:2]))
    limit = np.deg2rad(80)
    assert np.abs(joints)[:, 0].max() > 2.5
    assert limit * 0.9 < np.abs(joints)[:, 1:].max() <= limit
    assert 0.05 <= min(radii) < 0.07
    assert 0.18 < max(radii) <= 0.2


def test_cup_spin_ball_starts_mostly_inside_the_cup() -> None:
    env = load("ball_in_cup", "spin", seed=1)
    inside = []
    for _ in range(200):
        env.reset()
        assert env.physics.data.ncon == 0
        assert not env.physics.data.qvel.any()
        inside.append(env.physics.in_target())
    assert 0.84 < np.mean(inside) < 0.96


def test_fish_obstacles_reward_is_zero_near_walls() -> None:
    env = load("fish", "obstacles", seed=1)
    for _ in range(50):
        env.reset()
        assert _wall_distance(env.physics, "target") >= 0.08
    for i, (x, y) in enumerate([(-0.15, -0.15), (0.15, -0.15), (0.15, 0.15), (-0.15, 0.15)]):
        np.testing.assert_allclose(env.physics.named.data.geom_xpos[f"wall{i}"], [x, y, 0.1])
        np.testing.assert_allclose(env.physics.named.model.geom_size[f"wall{i}"], [0.05, 0.05, 0.1])
    for x, near in [(0.15 + 0.055, True), (0.15 + 0.065, False)]:
        with env.physics.reset_context():
            env.physics.named.data.qpos["root"][:3] = [x, 0, 0.1]
        assert (env.task.get_reward(env.physics) == 0) == near


@pytest.mark.parametrize("pair", [("walker", "walk_backwards"), ("cheetah", "jump")])
def test_custom_task_has_time_limit_of_the_suite(pair: tuple[str, str]) -> None:
    env = load(*pair, seed=1)
    env.reset()
    zero = np.zeros(env.action_spec().shape)
    assert [env.step(zero).last() for _ in range(1000)] == [False] * 999 + [True]
