"""An explorer's running episodes, and its saved state: those, the ones that have ended, and that of its player."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdmpc2.checkpoints.run_state import NEW_RUN, part_of
from tdmpc2.config import Config
from tdmpc2.envs.stepping import Step
from tdmpc2.play.rollout import Episode, Floats, Job
from tdmpc2.support.entries import Entry, check_entries, flag, list_of, nothing_or, number, record, whole

_FLOAT = Entry(lambda v: isinstance(v, float), "a number")  # NaN in states of version 0.1, for environments that say so
_TENSOR = Entry(lambda v: isinstance(v, Tensor), "a tensor")
_STATE = {
    "begun": list_of(whole()),
    "running": list_of(nothing_or(record())),
    "ended": list_of(record()),
    "player": record(),
    "planned_for": whole(),
}
_RUNNING = {"seed": whole(), "obs": _TENSOR, "action": _TENSOR, "reward": _TENSOR}
_ENDED = {**_RUNNING, "task_id": whole(), "episode_return": number(), "success": _FLOAT, "terminated": flag()}
_PLAYER_STATE = {"generator": _TENSOR, "plan_mean": _TENSOR.optional, "ids": _TENSOR.optional}


@dataclass
class Running:
    """The running episode of one environment."""

    seed: int
    obs: list[Floats]  # one more than actions
    action: list[Floats] = field(default_factory=list)
    rewards: list[tuple[float, ...]] = field(default_factory=list)  # for its task, then for others of the body

    def note(self, action: Floats, outcome: Step) -> None:
        """Add a step."""
        self.obs.append(outcome.obs)
        self.action.append(action)
        self.rewards.append(outcome.rewards)

    def episodes(self, task_ids: Sequence[int], last: Step) -> list[Episode]:
        """Make the episode that ends with a step, for each task that it is stored for."""
        obs, actions = np.stack(self.obs), np.stack(self.action)
        actions = np.concatenate([np.full_like(actions[:1], np.nan), actions])
        return [
            Episode(
                Job(task_id, self.seed),
                obs,
                actions,
                np.array([np.nan, *rewards], np.float32),
                float(np.sum(rewards)),
                last.success,
                last.terminated,
                [],
            )
            for task_id, rewards in zip(task_ids, zip(*self.rewards, strict=True), strict=True)
        ]


def check_explorer(state: Mapping[str, Any], cfg: Config, num_envs: int) -> dict[str, Any]:
    """Check everything that is saved of an explorer of so many environments.

    Raises:
        ValueError: an entry is missing or does not fit; the message names it.
    """
    origin = part_of(cfg.run_dir, "explorer")
    state = check_entries(origin, state, _STATE, NEW_RUN)
    if {len(state["begun"]), len(state["running"])} != {num_envs}:
        raise ValueError(f"{origin} is of another number of environments than {num_envs}. {NEW_RUN}")
    rows = {"obs": cfg.obs_shape, "action": (cfg.action_dim,)}
    for saved in [*filter(None, state["running"]), *state["ended"]]:
        entries = _RUNNING if "task_id" not in saved else _ENDED
        check_entries(f"{origin}: an episode", saved, entries, NEW_RUN)
        short = int("task_id" not in saved)  # the first row of an ended episode holds filler, as it is stored
        lengths = len(saved["obs"]), len(saved["action"]) + short, len(saved["reward"]) + short
        if len(set(lengths)) > 1 or any(saved[name].shape[1:] != size for name, size in rows.items()):
            raise ValueError(f"{origin}: an episode has rows of another form than this run's. {NEW_RUN}")
    if strangers := {saved["task_id"] for saved in state["ended"]} - set(cfg.task_ids):
        raise ValueError(f"{origin}: an episode is of task id {min(strangers)}, none of this run's. {NEW_RUN}")
    player = check_entries(f"{origin}: player", state["player"], _PLAYER_STATE, NEW_RUN)
    if any(len(player[name]) != num_envs for name in player if name != "generator"):
        raise ValueError(f"{origin}: player is of another number of environments. {NEW_RUN}")
    return state


def saved_running(running: Running, action_dim: int) -> dict[str, Any]:
    """Save a running episode: it is played again from its seed and actions, and must be as it was."""
    return {
        "seed": running.seed,
        "obs": torch.from_numpy(np.stack(running.obs)),
        "action": torch.from_numpy(np.array(running.action, np.float32).reshape(len(running.action), action_dim)),
        "reward": torch.tensor([rewards[0] for rewards in running.rewards], dtype=torch.float64),
    }


def saved_episode(episode: Episode) -> dict[str, Any]:
    """Save an episode that has ended and is not yet in the buffer."""
    arrays = {name: torch.from_numpy(getattr(episode, name)) for name in ("obs", "action", "reward")}
    rest = {name: getattr(episode, name) for name in ("episode_return", "success", "terminated")}
    return {"task_id": episode.job.task_id, "seed": episode.job.seed, **arrays, **rest}


def loaded_episode(saved: Mapping[str, Any]) -> Episode:
    """Load what :func:`saved_episode` saved."""
    arrays = {name: saved[name].numpy() for name in ("obs", "action", "reward")}
    rest = {name: saved[name] for name in ("episode_return", "success", "terminated")}
    return Episode(Job(saved["task_id"], saved["seed"]), **arrays, **rest, frames=[])
