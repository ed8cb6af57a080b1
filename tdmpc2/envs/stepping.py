"""Environments that are reset and stepped one by one, each with the outcome of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tdmpc2.envs.checked import EnvironmentFault
from tdmpc2.envs.registry import build_env
from tdmpc2.envs.wrappers import TASK_REWARDS, Env, PadEnv


class Played(NamedTuple):
    """An environment to be played: its number, task and seed, and the tasks of its body that are scored as well."""

    number: int
    task: str
    seed: int
    others: tuple[str, ...] = ()


class Step(NamedTuple):
    """The outcome of one step of one environment."""

    obs: NDArray[Any]
    rewards: tuple[float, ...]  # for its task, then for the others of its body
    terminated: bool
    truncated: bool
    success: float

    @property
    def ends(self) -> bool:
        """Tell whether the episode is over."""
        return self.terminated or self.truncated


class EachAlone:
    """Environments by their numbers, in this process.

    Args:
        played: what to build.
        obs_dim: size that observations are padded to.
        action_dim: size that actions are padded to.
        obs: what is observed, as the configuration's key.
    """

    def __init__(self, played: Sequence[Played], obs_dim: int, action_dim: int, obs: str) -> None:
        self._others = {one.number: one.others for one in played}
        self._envs: dict[int, Env] = {}
        try:
            for one in played:
                self._envs[one.number] = _build(one, obs_dim, action_dim, obs)
        except BaseException:
            self.close()
            raise

    def reset(self, number: int, seed: int) -> NDArray[Any]:
        """Begin an episode; returns its first observation.

        Raises:
            EnvironmentFault: naming task, seed and step.
        """
        return self._envs[number].reset(seed=seed)[0]

    def begin(self, actions: Mapping[int, NDArray[np.floating[Any]]]) -> None:
        """Begin a step that :meth:`step` is then asked for with the same actions; here nothing can begin before."""

    def step(self, actions: Mapping[int, NDArray[np.floating[Any]]]) -> dict[int, Step | str]:
        """Take a step in some environments; a text is the fault of one, and those after it are not stepped."""
        outcomes: dict[int, Step | str] = {}
        for number, action in actions.items():
            try:
                obs, reward, terminated, truncated, info = self._envs[number].step(action)
            except EnvironmentFault as error:
                outcomes[number] = str(error)
                break
            rewards = (float(reward), *(info[TASK_REWARDS][name] for name in self._others[number]))
            outcomes[number] = Step(obs, rewards, bool(terminated), bool(truncated), float(info["success"]))
        return outcomes

    def close(self) -> None:
        """Close all environments."""
        for env in self._envs.values():
            env.close()


def _build(one: Played, obs_dim: int, action_dim: int, obs: str) -> Env:
    env = build_env(one.task, one.seed, obs=obs)
    if one.others:
        body: Any = env.unwrapped
        body.score_also(one.others)
    return PadEnv(env, obs_dim, action_dim) if obs == "state" else env
