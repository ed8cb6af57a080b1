"""Many environments stepped as one.

They are stepped one after another in this process, or in some others (:mod:`tdmpc2.envs.workers`). Measured on two
cores (benchmarks/collect.py), threads and one process for each environment are slower; one worker process for each core
is 1.1 to 1.6 times as fast in random play, but 0.9 where a policy computes on the same cores. Building fewer
environments is what pays: see :class:`EnvPool`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tdmpc2.envs.registry import build_env, family_of
from tdmpc2.envs.workers import Workers, WorkerVecEnv
from tdmpc2.envs.wrappers import Action, Env, Info, Observation, PadEnv, check_sizes
from tdmpc2.tasks import TaskSpec


def make_vec_env(
    specs: Sequence[TaskSpec],
    seeds: Sequence[int],
    obs_dim: int,
    action_dim: int,
    *,
    obs: str = "state",
    render_mode: str | None = None,
) -> SyncVectorEnv:
    """Build E environments side by side, of any tasks, padded to common sizes.

    Environment i is ``make_env(specs[i].name, seeds[i])``: the first ``reset()`` gives the first states of those.
    Nothing is reset automatically; after an episode ends, reset it with
    ``reset(options={"reset_mask": mask})``, ``mask`` being bool [E]. With ``"rest": True`` among these options nothing
    begins anew: the environments stay as they are, whatever the steps, until they are reset without it.

    Returns:
        A vector environment with observations float32 [E, obs_dim] (``obs="rgb"``: uint8 [E, 9, 64, 64]), actions
        [E, action_dim], rewards float64 [E] and ``info["success"]`` [E].

    Raises:
        ValueError: no environment, not one seed for each, or a task larger than the padded sizes.
    """
    if not specs or len(specs) != len(seeds):
        raise ValueError(f"{len(specs)} tasks and {len(seeds)} seeds: give one seed for each task, and at least one.")

    def build(spec: TaskSpec, seed: int) -> Env:
        return _build(spec, seed, obs_dim, action_dim, obs, render_mode)

    built: list[Env] = []
    try:
        for spec, seed in zip(specs, seeds, strict=True):
            built.append(build(spec, int(seed)))
    except BaseException:
        for env in built:
            env.close()
        raise
    envs = SyncVectorEnv([partial(_same, env) for env in built], autoreset_mode=AutoresetMode.DISABLED)
    envs.action_space.seed(int(seeds[0]))
    return envs


class _OneOfSeveral(gymnasium.Wrapper[Observation, Action, Observation, Action]):
    """An environment that tells of its info only the success, and that can rest until the others' episodes have ended.

    Gymnasium stacks the infos of environments side by side and fails where an entry changes its type or shape.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self._last = np.zeros(0, np.float32)  # observation
        self._rests = False

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        self._rests = bool((options or {}).get("rest"))
        if self._rests:
            return self._last, {"success": 0.0}
        self._last, info = self.env.reset(seed=seed, options=options)
        return self._last, {"success": info["success"]}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, Info]:
        if self._rests:
            return self._last, 0.0, False, False, {"success": 0.0}
        self._last, *outcome, info = self.env.step(action)
        return self._last, *outcome, {"success": info["success"]}  # type: ignore[return-value]


class _Borrowed(SyncVectorEnv):
    """Environments of a pool side by side: Gymnasium would close them when this is no longer used."""

    def close_extras(self, **kwargs: Any) -> None:
        """Leave them open."""


class EnvPool:
    """Environments for one batch of episodes after another; a context manager that closes them.

    Building a dm_control environment takes about as long as an episode of random play in it, so those of the last batch
    are used again where the next one has the same tasks: ``reset(seed=s)`` makes them new ones of seed s. Gymnasium
    environments are built anew for every batch, because a user's may keep something between episodes.

    Args:
        obs_dim: size that observations are padded to.
        action_dim: size that actions are padded to.
        obs: ``state``, or ``rgb`` for images.
        workers: processes that hold and step them; 0: this one.
    """

    def __init__(self, obs_dim: int, action_dim: int, obs: str = "state", workers: int = 0) -> None:
        self._form = obs_dim, action_dim, obs
        self._workers = Workers(workers) if workers else None
        self._kept: dict[str, list[Env]] = {}

    def make(self, specs: Sequence[TaskSpec]) -> SyncVectorEnv | WorkerVecEnv:
        """Provide environments as of :func:`make_vec_env`; the first reset has to be ``reset(seed=seeds)``.

        They are the pool's: only one batch can be in use at a time, and it is not to be closed.

        Raises:
            ValueError: a task larger than the padded sizes.
        """
        if self._workers:
            return WorkerVecEnv(self._workers, len(specs)).pool(specs, *self._form)
        tasks = {spec.name for spec in specs}
        self._close(name for name in list(self._kept) if name not in tasks or not family_of(name).renewable)
        envs: list[Env] = []
        used: Counter[str] = Counter()
        for spec in specs:
            kept = self._kept.setdefault(spec.name, [])
            if used[spec.name] == len(kept):
                kept.append(_build(spec, 0, *self._form))
            envs.append(kept[used[spec.name]])
            used[spec.name] += 1
        return _Borrowed([partial(_same, env) for env in envs], autoreset_mode=AutoresetMode.DISABLED)

    def close(self) -> None:
        """Close all environments, and end the processes that hold them."""
        self._close(list(self._kept))
        if self._workers:
            self._workers.close()

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _close(self, names: Iterable[str]) -> None:
        for name in names:
            for env in self._kept.pop(name):
                env.close()


def _build(
    spec: TaskSpec, seed: int, obs_dim: int, action_dim: int, obs: str = "state", render_mode: str | None = None
) -> Env:
    env = build_env(spec.name, seed, render_mode, obs)
    if obs != "state":
        return _OneOfSeveral(env)
    check_sizes(env, spec)
    return _OneOfSeveral(PadEnv(env, obs_dim, action_dim))


def _same(env: Env) -> Env:
    return env
