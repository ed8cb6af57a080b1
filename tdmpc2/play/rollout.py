"""Episodes in many environments side by side; what evaluation scores and the collector stores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tdmpc2.config import Config
from tdmpc2.player import NotFinite
from tdmpc2.tasks import TASKS

if TYPE_CHECKING:
    from tdmpc2.envs.vector import EnvPool

_log = logging.getLogger("tdmpc2")
Floats = NDArray[np.float32]
Frames = list[NDArray[np.uint8]]  # each [height, width, 3]

#: (observations [E, O], episode starts [E], task ids [E]) -> actions [E, A]
Actor = Callable[[Floats, NDArray[np.bool_], NDArray[np.int64]], Floats]


class Film(Protocol):
    """Takes the frames of an episode one by one, [height, width, 3] each; its rate is set before the first."""

    fps: float

    def append(self, frame: NDArray[np.uint8], /) -> None:
        """Take one more frame."""


class Job(NamedTuple):
    """One episode to play: a task of the set, in an environment built with ``seed``."""

    task_id: int
    seed: int


@dataclass(frozen=True)
class Episode:
    """One played episode of T steps; row t >= 1 holds what led to observation t, row 0 of action and reward is NaN."""

    job: Job
    obs: Floats  # [T+1, O]; with images uint8, [T+1, C, height, width] or the bytes of both [T+1, P]
    action: Floats  # [T+1, A]
    reward: Floats  # [T+1]
    episode_return: float  # summed in float64
    success: float  # of the last step
    terminated: bool
    frames: Frames  # if asked for
    fps: float = 25.0  # frames that are a second of the environment's time

    @property
    def steps(self) -> int:
        """T, of the agent."""
        return len(self.reward) - 1


def check_playable(cfg: Config) -> None:
    """Raise ``ValueError`` unless every task that is to be played has an environment here.

    Where a user's own environment has another time limit by now than where its task was learned, that is said.
    """
    from tdmpc2.envs import check_task
    from tdmpc2.envs.gymnasium_env import registered_limit

    for spec in (cfg.task_specs[task_id] for task_id in cfg.task_ids):
        check_task(spec.name)
        limit = None if spec.name in TASKS else registered_limit(spec.name)
        if limit not in (None, spec.episode_length):
            _log.warning(
                "%s has %d steps an episode here, and %d where it was learned: episodes end at the smaller number",
                spec.name, limit, spec.episode_length,
            )  # fmt: skip


def rendered_tasks(cfg: Config) -> list[str]:
    """One task of each family of environments that is filmed, since they draw alike, and each of Gymnasium's own."""
    from tdmpc2.envs.registry import family_of

    kinds: dict[str, str] = {}
    for task_id in cfg.task_ids:
        name = cfg.task_specs[task_id].name
        family = family_of(name).name
        kinds.setdefault(name if family == "Gymnasium" else family, name)
    return list(kinds.values())


def first_frames(name: str, obs: str = "state") -> Frames:
    """Draw the first two frames of a task, [height, width, 3] each.

    Args:
        name: of the task.
        obs: what is observed of it, as the key ``obs`` says.

    Raises:
        ValueError: it cannot be built here, or draws none.
    """
    from tdmpc2.envs.registry import build_env

    env = build_env(name, 0, "rgb_array", obs)
    try:
        env.reset(seed=0)
        frames = [np.asarray(env.render()) for _ in range(2)]
    finally:
        env.close()
    for frame in frames:
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(
                f"save_video: render() of '{name}' returns {frame.dtype} of shape {list(frame.shape)}, not a picture: "
                "uint8 of height, width and 3 colours"
            )
    return frames


def most_on_cuda(num_samples: int, mlp_dim: int) -> int:
    """Choose how many environments are planned for at once on a GPU, whatever else it holds: at most 2 GiB, and 64.

    Results depend on it, and more simulators in one process would only wait for one another.
    """
    return min(max(2**31 // (num_samples * mlp_dim * 4 * 16), 1), 64)


def play(
    cfg: Config,
    actor: Actor,
    jobs: Sequence[Job],
    *,
    render: Sequence[int] = (),
    films: Mapping[int, Film] | None = None,
    keep_steps: bool = True,
    max_steps: int | None = None,
    on_step: Callable[[int], None] | None = None,
    pool: EnvPool | None = None,
) -> list[Episode]:
    """Play one episode per job, all at once; the actor sees every environment at every step.

    Args:
        cfg: names the tasks and their padding.
        actor: chooses actions for all E = len(jobs) environments.
        jobs: task and seed of each environment.
        render: environments whose frames are kept, in memory.
        films: environments whose frames are given away as they are drawn.
        keep_steps: keep observations and actions, which may be pictures; otherwise episodes come without rows of them.
        max_steps: longer episodes are cut.
        on_step: called after each step with the number of environments that were still playing.
        pool: keeps environments from one call to the next; not for rendering. By default they are built and closed.

    Raises:
        EnvironmentFault: an environment raised an error, or returned what is not finite; with task, seed and step.
        ValueError: the agent's action or plan is not finite; with task, seed and step.
    """
    from tdmpc2.envs.wrappers import frame_rate

    task_ids = np.array([job.task_id for job in jobs])
    lengths = np.array([cfg.task_specs[job.task_id].episode_length for job in jobs])
    longest = int(lengths.max())
    recording = _Recording(cfg, jobs, min(longest, max_steps or longest), keep_steps)
    drawn: dict[int, Film | Frames] = {**{i: recording.frames[i] for i in render}, **(films or {})}
    with _environments(cfg, jobs, "rgb_array" if drawn else None, pool) as envs:
        current: Floats = envs.reset(seed=[job.seed for job in jobs])[0]
        recording.begin(current)
        for t in range(1, recording.longest + 1):
            for i in (i for i in drawn if recording.playing[i]):
                frame = np.asarray(envs.envs[i].render())
                if t == 1:
                    recording.fps[i] = frame_rate(envs.envs[i])
                    if films and i in films:
                        films[i].fps = recording.fps[i]
                drawn[i].append(frame)
            action = _act(actor, current, t, task_ids, cfg, jobs)
            outcome: tuple[Any, ...] = envs.step(action)
            current, reward, terminated, truncated, info = outcome
            if on_step:
                on_step(int(recording.playing.sum()))
            recording.add(t, current, action, reward, terminated, info["success"])
            beyond = t >= lengths  # an environment may go on for longer than was learned
            done = recording.playing & (terminated | truncated | beyond)
            recording.playing &= ~done
            if not recording.playing.any():
                break
            if done.any():  # step() goes on with all of them
                current, _ = envs.reset(options={"reset_mask": done, "rest": True})
    return recording.episodes()


@contextmanager
def _environments(cfg: Config, jobs: Sequence[Job], render_mode: str | None, pool: EnvPool | None) -> Iterator[Any]:
    """Yield the environments of all jobs: those of a pool, or new ones, which are closed afterwards."""
    from tdmpc2.envs.vector import make_vec_env
    from tdmpc2.envs.workers import Workers, WorkerVecEnv

    specs, seeds = [cfg.task_specs[job.task_id] for job in jobs], [job.seed for job in jobs]
    if pool is not None:
        yield pool.make(specs)
        return
    if cfg.env_workers:
        with Workers(min(cfg.env_workers, len(jobs))) as workers:
            yield WorkerVecEnv(workers, len(jobs)).build(
                specs, seeds, cfg.obs_dim, cfg.action_dim, obs=cfg.obs, render_mode=render_mode
            )
        return
    envs = make_vec_env(specs, seeds, cfg.obs_dim, cfg.action_dim, obs=cfg.obs, render_mode=render_mode)
    try:
        yield envs
    finally:
        envs.close()


class _Recording:
    """The steps of episodes that are played side by side, as many as the longest has; each is cut at its own end."""

    def __init__(self, cfg: Config, jobs: Sequence[Job], longest: int, keep_steps: bool) -> None:
        self.longest, self._jobs, self._keeps, num_envs = longest, jobs, keep_steps, len(jobs)
        self.playing = np.ones(num_envs, bool)
        self.frames: list[Frames] = [[] for _ in jobs]
        self.fps = [25.0] * num_envs
        rows = longest + 1 if keep_steps else 0
        shape = (rows, num_envs, *cfg.obs_shape)
        self._obs: Floats = np.zeros(shape, np.uint8) if cfg.observes_images else np.full(shape, np.nan, np.float32)
        self._action = np.full((rows, num_envs, cfg.action_dim), np.nan, np.float32)
        self._reward = np.full((longest + 1, num_envs), np.nan)
        self._success, self._terminated = np.zeros(num_envs), np.zeros(num_envs, bool)
        self._length = np.zeros(num_envs, int)

    def begin(self, obs: Floats) -> None:
        """Record the first observations, [E, O]."""
        if self._keeps:
            self._obs[0] = obs

    def add(self, t: int, obs: Floats, action: Floats, reward: Floats, terminated: Any, success: Any) -> None:
        """Record step ``t``, from 1; of episodes that have ended before, nothing that counts."""
        if self._keeps:
            self._obs[t], self._action[t] = obs, action
        self._reward[t], playing = reward, self.playing
        self._success[playing], self._terminated[playing] = success[playing], terminated[playing]
        self._length[playing] = t

    def episodes(self) -> list[Episode]:
        """Return all episodes, each up to its own last step."""
        return [
            Episode(
                job,
                self._obs[: n + 1, i],
                self._action[: n + 1, i],
                self._reward[: n + 1, i].astype(np.float32),
                float(self._reward[1 : n + 1, i].sum()),
                float(self._success[i]),
                bool(self._terminated[i]),
                self.frames[i],
                self.fps[i],
            )
            for i, (job, n) in enumerate(zip(self._jobs, self._length, strict=True))
        ]


def _act(actor: Actor, obs: Floats, step: int, task_ids: NDArray[np.int64], cfg: Config, jobs: Sequence[Job]) -> Floats:
    """Let the actor choose actions; of what is not finite say in which episode."""
    try:
        return actor(obs, np.full(len(jobs), step == 1), task_ids)
    except NotFinite as error:
        job = jobs[min(error.env, len(jobs) - 1)]  # an actor for a fixed number repeats the last environment
        name = cfg.task_specs[job.task_id].name
        raise ValueError(f"{name} (seed {job.seed}, step {step}): {error.message}") from error
