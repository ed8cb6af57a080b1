"""Write episodes of one's own, such as logs of a robot, as data to train on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.collect_record import Record
from tdmpc2.data.data_target import DataTarget
from tdmpc2.data.unequal import Recorded, write_recorded
from tdmpc2.support.files import locked
from tdmpc2.support.text import shown
from tdmpc2.tasks import TaskSpec

Floats = NDArray[np.float32]
_ABOVE_ONE = 1e-5  # what rounding can add to an action at its limit


def write_episodes(
    data_dir: str | os.PathLike[str],
    task: str,
    episodes: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    task_set: str | None = None,
    terminated: Sequence[bool] | None = None,
) -> Path:
    """Add episodes of a task to a data directory, as one more chunk file that training reads.

    Every value is checked before anything is written, and the file is complete or not there. Episodes that come a few
    at a time are better gathered: each call makes a file. ``collect.json`` beside the files names the task, so that
    ``tdmpc2 data inspect DIR`` shows what there is::

        write_episodes("data/robot", "my_tasks:Robot-v0", [(obs, action, reward), ...])

    and ``python train.py teacher_config=null task=my_tasks:Robot-v0 data_dir=data/robot
    eval_freq=0`` trains on it. Where there is no simulator, a Gymnasium environment that only declares
    its spaces and its ``max_episode_steps`` is enough for that.

    Args:
        data_dir: directory of the data, made if need be.
        task: task of the episodes: of the table (``walker-walk``), or a Gymnasium id (``my_tasks:Robot-v0``), which
            says how large observations and actions are and how many steps T an episode has at most.
        episodes: for each episode obs [T+1, O], action [T, A] in [-1, 1] and reward [T], of any number type. ``obs[t]``
            is what ``action[t]`` was chosen from, ``reward[t]`` and ``obs[t + 1]`` what it led to.
        task_set: ``mt30``, ``mt80`` or one of your own (``my_set.yaml``), to add to data of many tasks; by default the
            data is of this task alone. Where tasks of the set differ in length (``mt80``), episodes of the longer ones
            are written whole; beside data of unequal lengths no teachers' outputs can be stored
            (``distillation_cache=off``).
        terminated: for each episode whether its last step ended it for good, as a fall does, and not merely a time
            limit or the end of a recording; by default none. ``episodic=true`` learns from it.

    Returns:
        The new file.

    Raises:
        ValueError: an unknown task, an episode of other sizes or length, a value that is not finite or does not fit
            float32, an action outside [-1, 1], a directory with data of other tasks, or the disk refused. The message
            names the episode, and nothing is written.
    """
    name, specs, task_id = DataTarget.of(task, task_set)
    spec, layout = specs[task_id], Layout.of(specs)
    episodes = _entries("episodes", episodes)
    if not episodes:
        raise ValueError(f"no episodes of '{task}' to write: give at least one (obs, action, reward)")
    ends = [False] * len(episodes) if terminated is None else _ends(terminated)
    if len(ends) != len(episodes):
        raise ValueError(f"terminated has {len(ends)} entries for {len(episodes)} episodes: give one for each")
    recorded = []
    for number, (episode, end) in enumerate(zip(episodes, ends, strict=True)):
        obs, action, reward = map(torch.from_numpy, _check_episode(f"episodes[{number}]", episode, spec))
        count = len(reward) + 1
        rows = torch.zeros(count, layout.obs_dim), torch.zeros(count, layout.action_dim), torch.zeros(count)
        rows[0][:, : spec.obs_dim] = obs
        rows[1][1:, : spec.action_dim] = action
        rows[2][1:] = reward
        rows[1][0] = rows[2][0] = torch.nan  # no step led to the first observation
        recorded.append(Recorded(*rows, terminated=end))
    root = Path(data_dir).expanduser()
    with locked(
        root / "collect.lock", f"Another process has held {root}/collect.lock for a minute: try again", wait=60
    ):
        record = Record.read(root, name, specs)
        path = root / f"chunk_{record.next_number()}.pt"
        write_recorded(path, recorded, task_id, layout.rows - 1)
        record.write()
    return path


def _entries(argument: str, values: Any) -> list[Any]:
    try:
        return list(values)
    except TypeError:
        raise ValueError(f"{argument} is {shown(values)}, expected a list with an entry for each episode") from None


def _ends(terminated: Any) -> list[bool]:
    """Read which episodes ended for good, from Python's truth values, numpy's or torch's."""
    ends = _entries("terminated", terminated)
    for number, end in enumerate(ends):
        is_number = isinstance(end, (bool, int, np.bool_, np.integer, Tensor)) and np.ndim(end) == 0
        if not is_number or end not in (0, 1):
            raise ValueError(f"terminated[{number}] is {shown(end)}, expected True or False")
    return [bool(end) for end in ends]


def _check_episode(origin: str, episode: Any, spec: TaskSpec) -> tuple[Floats, Floats, Floats]:
    """Convert an episode to float32 after checking all that can be wrong with it."""
    if not isinstance(episode, (tuple, list)) or len(episode) != 3:
        raise ValueError(f"{origin} must be (obs, action, reward), not {type(episode).__name__}")
    obs, action, reward = (
        _floats(f"{origin}: {name}", part) for name, part in zip(("obs", "action", "reward"), episode, strict=True)
    )
    steps = len(action) if action.ndim else spec.episode_length
    if not 1 <= steps <= spec.episode_length:
        raise ValueError(
            f"{origin} has {steps} actions, but episodes of '{spec.name}' have 1 to {spec.episode_length} steps: cut "
            "longer ones, or register the environment with another max_episode_steps"
        )
    expected = {
        "obs": (obs, (steps + 1, spec.obs_dim)),
        "action": (action, (steps, spec.action_dim)),
        "reward": (reward, (steps,)),
    }
    for name, (values, shape) in expected.items():
        if values.shape != shape:
            hint = ": one more than actions, the last one is what the last action led to" if name == "obs" else ""
            raise ValueError(
                f"{origin}: {name} has shape {values.shape}, expected {shape} for an episode of '{spec.name}'{hint}"
            )
        if not np.isfinite(values).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise ValueError(f"{origin}: {name}{list(index)} is {values[index]} as float32: use finite values")
    if (largest := float(np.abs(action).max())) > 1 + _ABOVE_ONE:
        raise ValueError(
            f"{origin}: an action is {largest:g}, but actions must lie in [-1, 1]: scale them, as "
            "2 * (action - low) / (high - low) - 1"
        )
    return obs, action.clip(-1, 1), reward


def _floats(origin: str, values: Any) -> Floats:
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            values = values.float() if values.is_floating_point() else values  # numpy has not all of torch's types
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of unequal lengths, or of tensors with gradients
        raise ValueError(f"{origin} is no array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{origin} is of type {array.dtype}, expected real numbers")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
        return array.astype(np.float32)
