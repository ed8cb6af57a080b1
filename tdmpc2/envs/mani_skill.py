"""ManiSkill 3's tasks: ``ms-push-cube``, ``ms-ant-walk`` and so on, and those that TD-MPC2 knew from version 2.

States need no graphics: where SAPIEN finds no device that draws, scenes are built without what is only seen.
"""

from __future__ import annotations

import logging
import sys
import warnings
from functools import cache
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from tdmpc2.envs.wrappers import Action, Env, Info, Observation, sizes
from tdmpc2.tasks import TASKS, TaskSpec, nearest

_ACTION_REPEAT = 2


class Row(NamedTuple):
    """A task: its id in ManiSkill, and how its robot is controlled."""

    id: str
    control: str = "pd_ee_delta_pos"


ROWS = {
    "ms-ant-walk": Row("MS-AntWalk-v1", "pd_joint_delta_pos"),
    "ms-ant-run": Row("MS-AntRun-v1", "pd_joint_delta_pos"),
    "ms-cartpole-balance": Row("MS-CartpoleBalance-v1", "pd_joint_delta_pos"),
    "ms-cartpole-swingup": Row("MS-CartpoleSwingUp-v1", "pd_joint_delta_pos"),
    "ms-hopper-stand": Row("MS-HopperStand-v1", "pd_joint_delta_pos"),
    "ms-hopper-hop": Row("MS-HopperHop-v1", "pd_joint_delta_pos"),
    "ms-pick-cube": Row("PickCube-v1"),
    "ms-push-cube": Row("PushCube-v1"),
    "ms-pull-cube": Row("PullCube-v1"),
    "ms-stack-cube": Row("StackCube-v1"),
    "ms-place-sphere": Row("PlaceSphere-v1"),
    "ms-roll-ball": Row("RollBall-v1"),
    "ms-lift-peg": Row("LiftPegUpright-v1", "pd_ee_delta_pose"),
    "ms-poke-cube": Row("PokeCube-v1", "pd_ee_delta_pose"),
    "ms-pull-cube-tool": Row("PullCubeTool-v1", "pd_ee_delta_pose"),
    "pick-cube": Row("PickCube-v1"),
    "stack-cube": Row("StackCube-v1"),
    "pick-ycb": Row("PickSingleYCB-v1", "pd_ee_delta_pose"),
    "turn-faucet": Row("TurnFaucet-v1", "pd_ee_delta_pose"),
}


def make(task: str, seed: int | None = None, render_mode: str | None = None) -> Env:
    """Build a task, such as ``ms-push-cube``, with its time limit."""
    length = TASKS[task].episode_length if task in TASKS else 100
    return TimeLimit(ManiSkillEnv(task, seed, render_mode), length)


def resolve(task: str) -> None:
    """Raise ``ValueError`` unless ManiSkill 3 has a task of this name."""
    if task == "lift-cube":
        raise ValueError(
            "ManiSkill 3 has no task 'lift-cube' any more: pick-cube, which also lifts it, is its successor"
        )
    if task not in ROWS:
        raise ValueError(f"Unknown task '{task}': ManiSkill has no such task.{nearest(task, ROWS)}")


def spec(task: str) -> TaskSpec:
    """Read the sizes of a task that needs downloaded files, and so does not stand in the table."""
    env = ManiSkillEnv(task)
    env.close()
    return TaskSpec(task, *sizes(env), episode_length=100, success_score=True)


class ManiSkillEnv(gymnasium.Env[Observation, Action]):
    """One ManiSkill task on the CPU, without a time limit; it goes on where the simulator would terminate.

    Observation: float32, the simulator's ``state``. Action: [-1, 1]^A, held for two steps of the simulator, whose
    rewards are added. ``info["success"]`` is the simulator's after the second of them, so that an episode succeeds if
    its last step does.

    Args:
        task: a key of :data:`ROWS`.
        seed: of the first states, and of ``action_space``; None takes it from the operating system.
        render_mode: None or ``"rgb_array"``, which needs a device that SAPIEN can draw with.

    Raises:
        ValueError: unknown task or render mode, files that have to be downloaded first, or no device to draw with.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, task: str, seed: int | None = None, render_mode: str | None = None) -> None:
        resolve(task)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode={render_mode!r} is not one of None, 'rgb_array'")
        self.render_mode = render_mode
        self._simulator: Any = _simulator(task, ROWS[task], render_mode)
        self._seed: int | None = seed
        self.observation_space = Box(-np.inf, np.inf, self._simulator.single_observation_space.shape, np.float32)
        self.action_space = Box(-1.0, 1.0, self._simulator.single_action_space.shape, np.float32, seed=seed)
        self._running = False

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        """Begin an episode; the first one of a new environment, and one with a seed, are those of the seed.

        Others draw a seed of their own, since the simulator would go on with PyTorch's own random numbers.
        """
        if seed is not None:
            self.action_space.seed(seed)
        seed, self._seed = self._seed if seed is None else seed, None
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        obs, _ = self._simulator.reset(seed=drawn, options={"reconfigure": seed is not None})
        self._running = True
        return _row(obs), {"success": 0.0}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, Info]:
        """Take one agent step.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        if not self._running:
            raise gymnasium.error.ResetNeeded("Call reset() before step(): no episode has begun.")
        reward = 0.0
        for _ in range(_ACTION_REPEAT):
            obs, gain, _, _, info = self._simulator.step(np.asarray(action, np.float32).copy())
            reward += float(gain)
        return _row(obs), reward, False, False, {"success": float(info.get("success", 0.0))}

    def render(self) -> Any:
        return self._simulator.render().squeeze(0).cpu().numpy()

    def close(self) -> None:
        self._simulator.close()


def _row(obs: Any) -> Observation:
    return np.asarray(obs[0].numpy(), np.float32)


def _simulator(task: str, row: Row, render_mode: str | None) -> Any:
    with warnings.catch_warnings(action="ignore"):
        import mani_skill.envs  # registers its environments

        mani_skill.logger.setLevel(logging.ERROR)  # it warns of its own scenes
        from mani_skill.utils import assets

        needed = (
            assets.expand_data_group_into_individual_data_source_ids(row.id) if row.id in assets.DATA_GROUPS else ()
        )
        if not all(assets.is_data_source_downloaded(name) for name in needed):  # it would ask on the console
            raise ValueError(
                f"Task '{task}' needs files that are not here: python -m mani_skill.utils.download_asset {row.id}"
            )
        if not can_draw():
            if render_mode is not None:
                raise ValueError(f"Task '{task}': ManiSkill draws with Vulkan, and no device for that was found here")
            _leave_out_what_is_only_seen()
        return gymnasium.make(
            row.id, num_envs=1, obs_mode="state", control_mode=row.control, render_mode=render_mode,
            sim_backend="physx_cpu", render_backend="gpu" if can_draw() else "none", max_episode_steps=10**9,
        ).unwrapped  # fmt: skip


@cache
def can_draw() -> bool:
    """Tell if SAPIEN finds a device that it can draw with; most machines without a graphics card have none."""
    import sapien

    try:
        sapien.render.RenderMaterial()
    except RuntimeError:
        return False
    return True


class _Material:
    """Colour and gloss of something that is not drawn: takes all settings."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("set_"):
            return lambda *_, **__: None
        raise AttributeError(name)


@cache
def _leave_out_what_is_only_seen() -> None:
    """Have SAPIEN build bodies without their looks, for which it asks a device; masses and shapes stay as they are."""
    import sapien
    from mani_skill.utils.building.actor_builder import ActorBuilder

    real = sapien.render.RenderMaterial
    for module in list(sys.modules.values()):
        if (getattr(module, "__name__", "")).startswith(("sapien", "mani_skill")):
            for name in [name for name, value in vars(module).items() if value is real]:
                setattr(module, name, _Material)
    for kind in ActorBuilder.__mro__[:-1]:
        for name in [name for name in vars(kind) if name.startswith("add_") and "visual" in name]:
            setattr(kind, name, lambda self, *_, **__: self)
