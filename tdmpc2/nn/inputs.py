"""Check what callers give an agent to act on: observations, starts of episodes and tasks.

They are brought to the form that networks take. E environments, O observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdmpc2.config import Config

TaskLike = int | str | Sequence[int | str] | np.ndarray | Tensor | None


def observations(obs: np.ndarray | Tensor, cfg: Config) -> Tensor:
    """Check observations and bring them to the form that networks take, where they are.

    Args:
        obs: [O] or [E, O]; images uint8 [C, height, width] or [E, C, height, width]; images and numbers
            together as bytes (``obs=rgb+state``), uint8 [P] or [E, P].
        cfg: of the model.

    Returns:
        float32 [E, O], or uint8 [E, C, height, width] or [E, P].

    Raises:
        ValueError: no array or tensor of real numbers, another shape, or none at all.
    """
    images, size = cfg.observes_images, ", ".join(map(str, cfg.obs_shape))
    kind = "np.uint8" if images else "np.float32"
    if not isinstance(obs, (np.ndarray, Tensor)):
        raise ValueError(
            f"The observation is a {type(obs).__name__}: pass an array or tensor [{size}] or [E, {size}], as in "
            f"np.asarray(obs, {kind})"
        )
    if images and obs.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"Images of type {obs.dtype}: pass uint8, 0 to 255")
    strange = obs.dtype.kind not in "biuf" if isinstance(obs, np.ndarray) else obs.is_complex() or obs.is_quantized
    if strange:
        raise ValueError(f"Observations of type {obs.dtype}: pass real numbers, as in np.asarray(obs, np.float32)")
    if obs.ndim not in (len(cfg.obs_shape), len(cfg.obs_shape) + 1):
        raise ValueError(f"Observations of shape {list(obs.shape)}: pass [{size}], or [E, {size}]")
    own = tuple(obs.shape[-len(cfg.obs_shape) :])
    if own != cfg.obs_shape:
        raise ValueError(
            f"Observation of size {', '.join(map(str, own))}, but the model takes {size} "
            f"(task={cfg.task}): use make_env(agent.cfg), which pads, or pad with zeros"
        )
    if not len(obs):
        raise ValueError(f"Observations of shape {list(obs.shape)}: pass those of one environment at least")
    if isinstance(obs, np.ndarray):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and that is found
            obs = torch.from_numpy(np.array(obs, np.uint8 if images else np.float32))
    return obs.detach().to(torch.uint8 if images else torch.float32).reshape(-1, *cfg.obs_shape)


def starts(t0: Any, num_envs: int, device: torch.device) -> Tensor:
    """Read where episodes start, bool [E].

    Raises:
        ValueError: no truth values, or another number of them.
    """
    given = t0
    if isinstance(t0, Tensor) and t0.device.type != "cpu":
        right = not t0.is_floating_point()
    else:
        t0 = np.asarray(t0)
        right = t0.dtype.kind in "biu"
    if not right:
        raise ValueError(f"t0={given!r:.60}: pass True where an episode starts, one truth value or [E]")
    values = torch.as_tensor(t0, device=device).bool().reshape(-1)
    if len(values) not in (1, num_envs):
        raise ValueError(f"{len(values)} values of t0 for {num_envs} environments: pass one, or one for each")
    return values.expand(num_envs)


def task_ids(task: TaskLike, num_envs: int, cfg: Config, device: torch.device) -> Tensor | None:
    """Read the tasks of environments: ids [E] on a device, or None where the model has one task.

    Raises:
        ValueError: a task that the model does not know, or another number of them.
    """
    names = cfg.task_names
    if task is None and not cfg.multitask:
        return None
    if task is None:
        raise ValueError(f"This agent plays {len(names)} tasks: pass task=, a name or an id")
    if isinstance(task, Tensor) and task.device.type != "cpu":
        ids = task  # checking these would wait for the device
        if ids.is_floating_point() or ids.ndim > 1:
            raise ValueError(f"task is {list(ids.shape)} of {ids.dtype}: pass ids, one or [E], as integers")
    else:
        items = np.asarray(task, dtype=object).reshape(-1).tolist()  # names and ids may be mixed
        ids = torch.tensor([names.index(item) if item in names else item for item in items if _known(item, names)])
    if len(ids := ids.to(device).long().reshape(-1)) not in (1, num_envs):
        raise ValueError(f"{len(ids)} tasks for {num_envs} environments: pass one, or one for each")
    return ids.expand(num_envs) if cfg.multitask else None


def _known(task: Any, names: Sequence[str]) -> bool:
    is_id = isinstance(task, (int, np.integer)) and not isinstance(task, bool)
    if task in names or (is_id and 0 <= task < len(names)):
        return True
    if len(names) == 1:
        raise ValueError(f"task={task!r} is not this agent's one task, {names[0]}")
    raise ValueError(f"task={task!r} is not one of this agent's {len(names)} tasks ({names[0]}, ..., {names[-1]})")
