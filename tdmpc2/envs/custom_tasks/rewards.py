"""Rewards of the custom tasks that keep the model and the first states of their stock domain.

A reward is a function of the physics alone, with values in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from tdmpc2.envs.headless import tolerance

Physics = Any  # dm_control.mujoco.Physics
Reward = Callable[[Physics], float]


def inside(x: float, low: float, high: float, margin: float = 0.0, linear: float | None = None) -> float:
    """1 in [low, high]; outside it falls to 0.1 at distance ``margin`` as a Gaussian, or to ``linear`` as a line."""
    if linear is None:
        return tolerance(x, (low, high), margin)
    return tolerance(x, (low, high), margin, sigmoid="linear", value_at_margin=linear)


def above(x: float, low: float, margin: float, linear: float | None = None) -> float:
    return inside(x, low, math.inf, margin, linear)


def below(x: float, high: float, margin: float, linear: float | None = None) -> float:
    return inside(x, -math.inf, high, margin, linear)


def z(p: Physics, body: str) -> float:
    """World height of a body's frame."""
    return p.named.data.xpos[body, "z"]


def mean_z(p: Physics, first: str, second: str) -> float:
    return (z(p, first) + z(p, second)) / 2


def zz(p: Physics, body: str) -> float:
    """Cosine between the body's z axis and the world's."""
    return p.named.data.xmat[body, "zz"]


def vx(p: Physics) -> float:
    """Horizontal velocity of the centre of mass."""
    return p.named.data.sensordata["torso_subtreelinvel"][0]


def spin(p: Physics) -> float:
    """Angular momentum about the y axis; positive rolls forwards."""
    return p.named.data.subtree_angmom["torso", "y"]


# Walker


def walk_backwards(p: Physics, speed: float) -> float:
    standing = above(z(p, "torso"), 1.2, margin=0.6)
    upright = (1 + zz(p, "torso")) / 2
    moving = below(vx(p), -speed, margin=speed / 2, linear=0.5)
    return (3 * standing + upright) / 4 * (5 * moving + 1) / 6


def _upside_down(p: Physics) -> float:
    return (1 - zz(p, "torso")) / 2


def arabesque(p: Physics) -> float:
    standing = above(z(p, "torso"), 1.0, margin=0.5)
    left_down = below(z(p, "left_foot"), 0.08, margin=0.5)
    right_up = above(z(p, "right_foot"), 1.0, margin=0.5)
    return (3 * standing + left_down + right_up + _upside_down(p)) / 6


def walker_lie_down(p: Physics) -> float:
    torso = below(z(p, "torso"), 0.08, margin=0.04)
    thighs = below(mean_z(p, "left_thigh", "right_thigh"), 0.08, margin=0.04)
    return (3 * torso + thighs + _upside_down(p)) / 5


def walker_legs_up(p: Physics) -> float:
    torso = below(z(p, "torso"), 0.08, margin=0.04)
    thighs = below(mean_z(p, "left_thigh", "right_thigh"), 0.08, margin=0.04)
    feet = above(mean_z(p, "left_foot", "right_foot"), 1.1, margin=0.55)
    return (3 * torso + 2 * feet + thighs + _upside_down(p)) / 7


def headstand(p: Physics) -> float:
    thighs = above(mean_z(p, "left_thigh", "right_thigh"), 1.0, margin=0.5)
    feet = above(mean_z(p, "left_foot", "right_foot"), 1.1, margin=0.55)
    return (3 * feet + 2 * thighs) / 5


def walker_flip(p: Physics, direction: int) -> float:
    moving = above(direction * vx(p), 6, margin=3, linear=0.5)
    return headstand(p) * (5 * moving + 1) / 6


# Cheetah


def cheetah_run_backwards(p: Physics) -> float:
    return below(vx(p), -8, margin=8, linear=0)


def run_lifting(p: Physics, foot: str) -> float:
    torso = above(z(p, "torso"), 1.2, margin=0.6)
    lifted = above(z(p, foot), 1.2, margin=0.6)
    moving = above(vx(p), 6, margin=6, linear=0)
    return (3 * lifted + 2 * torso) / 5 * (5 * moving + 1) / 6


def stand_lifting(p: Physics, foot: str) -> float:
    lifted = above(mean_z(p, "torso", foot), 1.2, margin=0.6)
    still = inside(vx(p), -0.5, 0.5, margin=0.5, linear=0)
    return (5 * lifted + still) / 6


def jump(p: Physics) -> float:
    return (stand_lifting(p, "bfoot") + stand_lifting(p, "ffoot")) / 2


def cheetah_lie_down(p: Physics) -> float:
    torso = below(z(p, "torso"), 0.25, margin=0.25, linear=0)
    feet = below(mean_z(p, "ffoot", "bfoot"), 0.25, margin=0.25, linear=0)
    return (3 * torso + feet) / 4


def cheetah_legs_up(p: Physics) -> float:
    lying = below(z(p, "torso"), 0.25, margin=0.125)
    torso = above(z(p, "torso"), 1.2, margin=0.6)
    foot = above(z(p, "bfoot"), 1.2, margin=0.6)
    return (5 * lying + (3 * foot + 2 * torso) / 5) / 6


def cheetah_flip(p: Physics, direction: int, speed: float) -> float:
    spinning = above(direction * spin(p), 8, margin=8, linear=0)
    moving = above(direction * vx(p), speed, margin=speed, linear=0)
    return (2 * spinning + moving) / 3


# Hopper and pendulum


def hop_backwards(p: Physics) -> float:
    height = p.named.data.xipos["torso", "z"] - p.named.data.xipos["foot", "z"]
    return inside(height, 0.6, 2) * below(vx(p), -1, margin=0.5, linear=0.5)


def hopper_flip(p: Physics, direction: int) -> float:
    return above(direction * spin(p), 5, margin=2.5, linear=0)


def pendulum_spin(p: Physics) -> float:
    return above(abs(p.named.data.qvel["hinge"].item()), 9, margin=4.5, linear=0.5)


REWARDS: dict[tuple[str, str], Reward] = {
    ("walker", "walk_backwards"): partial(walk_backwards, speed=1),
    ("walker", "run_backwards"): partial(walk_backwards, speed=8),
    ("walker", "arabesque"): arabesque,
    ("walker", "lie_down"): walker_lie_down,
    ("walker", "legs_up"): walker_legs_up,
    ("walker", "headstand"): headstand,
    ("walker", "flip"): partial(walker_flip, direction=1),
    ("walker", "backflip"): partial(walker_flip, direction=-1),
    ("cheetah", "run_backwards"): cheetah_run_backwards,
    ("cheetah", "run_front"): partial(run_lifting, foot="bfoot"),
    ("cheetah", "run_back"): partial(run_lifting, foot="ffoot"),
    ("cheetah", "jump"): jump,
    ("cheetah", "stand_front"): partial(stand_lifting, foot="bfoot"),
    ("cheetah", "stand_back"): partial(stand_lifting, foot="ffoot"),
    ("cheetah", "lie_down"): cheetah_lie_down,
    ("cheetah", "legs_up"): cheetah_legs_up,
    ("cheetah", "flip"): partial(cheetah_flip, direction=1, speed=10),
    ("cheetah", "flip_backwards"): partial(cheetah_flip, direction=-1, speed=8),
    ("hopper", "hop_backwards"): hop_backwards,
    ("hopper", "flip"): partial(hopper_flip, direction=1),
    ("hopper", "flip_backwards"): partial(hopper_flip, direction=-1),
    ("pendulum", "spin"): pendulum_spin,
}
