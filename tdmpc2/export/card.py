"""Cards: what an exported file says about itself, as plain values that JSON holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium.error import Error as GymnasiumError
from gymnasium.spaces import Box

from tdmpc2.checkpoints.files import Checkpoint
from tdmpc2.config import PLANNER_KEYS, Config
from tdmpc2.config.observing import STACKED
from tdmpc2.envs.registry import build_env, family_of
from tdmpc2.envs.wrappers import declared_actions
from tdmpc2.support.version import version

FORMAT = 1  # version of the card


def card_of(cfg: Config, file: Checkpoint, task_ids: Sequence[int], precision: str) -> dict[str, Any]:
    """Describe a model for programs that have nothing but the exported file.

    Args:
        cfg: its configuration.
        file: what it was exported from.
        task_ids: of the tasks that it was exported for.
        precision: of the weights.

    Returns:
        ``tasks``: name, sizes, episode length, discount and environment of each; ``observation``, ``action``,
        ``budget``: what the planner was fixed to; ``checkpoint``: name, sha256, step and card of the file.
    """
    return {
        "format": FORMAT,
        "written_by": f"tdmpc2 {version()}",
        "precision": precision,
        "checkpoint": {
            "file": (file.path or "").replace("\\", "/").rpartition("/")[2],
            "sha256": file.sha256,
            "step": file.step,
            "card": file.card,
        },
        "tasks": [_task(cfg, task_id) for task_id in task_ids],
        "observation": {"kind": cfg.obs, "size": cfg.obs_dim if cfg.observes_state else None, "padding": 0.0}
        | ({"images": _images(cfg)} if cfg.observes_images else {}),
        "action": {"size": cfg.action_dim, "low": -1.0, "high": 1.0},
        "budget": {**{key: getattr(cfg, key) for key in PLANNER_KEYS}, "iterations": cfg.plan_iterations},
    }


def _task(cfg: Config, task_id: int) -> dict[str, Any]:
    spec = cfg.task_specs[task_id]
    environment = environment_facts(spec.name, cfg.obs)
    return {**spec.unpadded().plain(), "discount": cfg.discounts[task_id], "environment": environment}


def _images(cfg: Config) -> dict[str, Any]:
    """Describe the images of an observation, bytes of the newest frames side by side."""
    channels, height, width = cfg.image_shape
    frame = [channels // STACKED, height, width]
    return {"frames": STACKED, "frame": frame, "order": "oldest first", "low": 0, "high": 255}


def environment_facts(name: str, obs: str = "state") -> dict[str, Any] | None:
    """Describe the environment of a task: which one it is, its actuators in order, and what an action of -1 and 1 is.

    Args:
        name: of the task.
        obs: what the model observes; of images alone, the names of other observations are left out.

    Returns:
        None where it cannot be built here.
    """
    from tdmpc2.envs.dm_control import DMControlEnv

    try:
        env = build_env(name, 0, obs=obs)
    except (ValueError, ImportError, GymnasiumError):
        return None
    try:
        inner: Any = env.unwrapped
        if isinstance(inner, DMControlEnv):
            facts = {**inner.facts, **({"camera": inner.view().camera} if obs != "state" else {})}
            return {key: value for key, value in facts.items() if obs != "rgb" or key != "observations"}
        space = declared_actions(env)  # what the one who calls gymnasium.make sees
        actuators = _actuators(space) if isinstance(space, Box) and space.shape == env.action_space.shape else None
        if env.spec is None:  # built by its family, and not by gymnasium.make
            return {"library": family_of(name).name, "id": name, "actuators": actuators}
        keywords = {key: value for key, value in env.spec.kwargs.items() if _is_plain(value)}
        return {"library": "gymnasium", "id": env.spec.id, "keywords": keywords, "actuators": actuators}
    finally:
        env.close()


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _actuators(space: Box) -> list[dict[str, Any]]:
    """The limits of a Gymnasium action, whose entries have no names."""
    limits = zip(space.low.ravel().tolist(), space.high.ravel().tolist(), strict=True)
    return [{"name": str(index), "low": low, "high": high} for index, (low, high) in enumerate(limits)]
