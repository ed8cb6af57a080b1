"""Many environments stepped as one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tdmpc2.envs import make_env
from tdmpc2.envs.wrappers import PadEnv
from tdmpc2.tasks import TaskSpec


def make_vec_env(
    specs: Sequence[TaskSpec], seeds: Sequence[int], obs_dim: int, action_dim: int, *, render_mode: str | None = None
) -> SyncVectorEnv:
    """E environments side by side, of any tasks, padded to common sizes.

    Environment i is ``make_env(specs[i].name, seeds[i])``: the first ``reset()`` gives the first states of those.
    Nothing is reset automatically; after an episode ends, reset it with
    ``reset(options={"reset_mask": mask})``, ``mask`` being bool [E].

    Returns:
        A vector environment with observations float32 [E, obs_dim], actions [E, action_dim], rewards float64 [E] and
        ``info["success"]`` [E].

    Raises:
        ValueError: no environment, not one seed for each, or a task larger than the padded sizes.
    """
    if not specs or len(specs) != len(seeds):
        raise ValueError(f"{len(specs)} tasks and {len(seeds)} seeds: give one seed for each task, and at least one.")

    def build(spec: TaskSpec, seed: int) -> PadEnv:
        return PadEnv(make_env(spec.name, seed, render_mode=render_mode), obs_dim, action_dim)

    builders = [partial(build, spec, int(seed)) for spec, seed in zip(specs, seeds, strict=True)]
    envs = SyncVectorEnv(builders, autoreset_mode=AutoresetMode.DISABLED)
    envs.action_space.seed(int(seeds[0]))
    return envs
