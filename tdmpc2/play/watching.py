"""Watching an agent play: episodes in a window or as a video, with the numbers behind each picture."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.envs.vector import make_vec_env
from tdmpc2.envs.wrappers import frame_rate
from tdmpc2.loading import load_agent
from tdmpc2.play.protocols import checkpoint_name
from tdmpc2.play.results import VideoFile, video_file
from tdmpc2.play.rollout import Floats, Job, check_playable
from tdmpc2.play.window import Window, captioned, why_no_window
from tdmpc2.player import NotFinite
from tdmpc2.support.names import safe_name
from tdmpc2.support.runtime import set_num_threads
from tdmpc2.tasks import listed


class Moment(NamedTuple):
    """One step of an episode, before its action is executed."""

    frame: NDArray[np.uint8]  # [height, width, 3]
    task: str
    step: int  # from 0
    episode_return: float  # until now
    value: float  # discounted return that is expected from here
    planned: bool  # by the plan; else by the value function, for the policy's action
    fps: float  # such frames are a second of the environment's time

    def lines(self) -> list[str]:
        """Write the numbers for the picture."""
        return [
            self.task,
            f"step {self.step}",
            f"return {self.episode_return:.1f}",
            f"{'planned' if self.planned else 'policy'} value {self.value:.1f}",
        ]


Show = Callable[[Moment], bool]  # returns False where nobody looks any more


class Watched(NamedTuple):
    """An episode that was shown."""

    episode_return: float
    steps: int
    whole: bool  # False: it was left before its end


def watch(agent: TDMPC2, job: Job, show: Show, player_seed: int | None = None) -> Watched:
    """Play one episode noise-free and show every step of it.

    Args:
        agent: a player of its own acts, so that the agent stays as it is.
        job: task and seed of the environment.
        show: takes each step, before its action is executed.
        player_seed: of the planner's random numbers; by default the configuration's ``seed``, as in an evaluation of
            one environment at a time (several share the stream of random numbers).

    Raises:
        EnvironmentFault: the environment raised an error, or returned what is not finite.
        ValueError: the agent's action or plan is not finite; with task, seed and step.
    """
    cfg = agent.cfg
    spec, ids = cfg.task_specs[job.task_id], np.array([job.task_id])
    player = agent.player(num_envs=1, seed=cfg.seed if player_seed is None else player_seed)
    envs = make_vec_env([spec], [job.seed], cfg.obs_dim, cfg.action_dim, obs=cfg.obs, render_mode="rgb_array")
    total, step, done = 0.0, 0, False
    try:
        obs: Floats = envs.reset(seed=[job.seed])[0]
        while not done:
            try:
                action = player.act(obs, np.array([step == 0]), task=ids)
                value = player.expected_return(obs, ids)[0]
            except NotFinite as error:
                raise ValueError(f"{spec.name} (seed {job.seed}, step {step + 1}): {error.message}") from error
            frame = np.asarray(envs.envs[0].render())
            if not show(Moment(frame, spec.name, step, total, float(value), cfg.mpc, frame_rate(envs.envs[0]))):
                return Watched(total, step, whole=False)
            outcome: tuple[Any, ...] = envs.step(action)
            obs, reward, terminated, truncated, _ = outcome
            total, step, done = total + float(reward[0]), step + 1, bool(terminated[0] or truncated[0])
    finally:
        envs.close()
    return Watched(total, step, whole=True)


def play_file(path: str, keys: Mapping[str, Any], *, window: str, episodes: int, out: Path | None) -> None:
    """Play episodes of a checkpoint in a window, or write them as a video; print their returns.

    Args:
        path: the checkpoint.
        keys: what it is loaded with, see :func:`tdmpc2.loading.load_agent`.
        window: ``true``, ``false``, or ``auto``: a window where there is a display.
        episodes: of each task, in environments of the seeds ``eval_seed``, ``eval_seed + 1``, ...
        out: the video; with a window it is written as well. By default there is one only without a window, named by
            checkpoint and task.

    Raises:
        ValueError: a file that cannot be used, several tasks of which none was chosen, a window that cannot be opened,
            or a video that exists.
    """
    file = load_file(path)
    agent = load_agent(file, **keys)
    cfg = agent.cfg
    if len(cfg.task_ids) > 1 and not keys.get("tasks"):
        known, first = listed(cfg.task_names), cfg.task_specs[cfg.task_ids[0]].name
        raise ValueError(f"{path} plays {len(cfg.task_ids)} tasks ({known}): choose one, as in task={first}")
    check_playable(cfg)
    set_num_threads(cfg.num_threads)
    names = [cfg.task_specs[task_id].name for task_id in cfg.task_ids]
    reason = "window=false" if window == "false" else why_no_window()
    if reason and window == "true":
        raise ValueError(f"window=true: {reason}. window=false writes a video")
    if out is not None and out.exists():
        raise ValueError(f"{out} exists: out=FILE.mp4 names another video")
    if reason and out is None:
        out = _free_name(Path(f"{safe_name(checkpoint_name(path))}-{safe_name('-'.join(names), 60)}.mp4"))
    with contextlib.ExitStack() as stack:
        screen = None if reason else stack.enter_context(Window(f"{checkpoint_name(path)}: {', '.join(names)}"))
        video = None if out is None else stack.enter_context(video_file(out, overwrite=False))
        if screen is None and window == "auto":
            print(f"No window ({reason}): a video is written")
        agent.compile_planner(episodes * sum(cfg.task_specs[i].episode_length for i in cfg.task_ids))
        returns = _play_all(agent, episodes, _shower(screen, video))
    if len(returns) > 1:
        print(f"Mean return of {len(returns)} episodes: {np.mean(returns):.1f}")
    if out is not None:
        print(f"Video: {out}")


def _play_all(agent: TDMPC2, episodes: int, show: Show) -> list[float]:
    """Play all episodes and print a line for each; returns the returns of those that were played to their end."""
    cfg, returns = agent.cfg, []
    for task_id, k in itertools.product(cfg.task_ids, range(episodes)):
        job = Job(task_id, cfg.eval_seed + k)
        watched = watch(agent, job, show)
        left = "" if watched.whole else ", left before its end"
        name = cfg.task_specs[task_id].name
        print(f"{name}, seed {job.seed}: return {watched.episode_return:.1f} in {watched.steps} steps{left}")
        if not watched.whole:
            break
        returns.append(watched.episode_return)
    return returns


def _shower(screen: Window | None, video: VideoFile | None) -> Show:
    def show(moment: Moment) -> bool:
        frame = captioned(moment.frame, moment.lines())
        if video is not None:
            video.fps = moment.fps
            video.append(frame)
        return screen is None or screen.show(frame, moment.fps)

    return show


def _free_name(path: Path) -> Path:
    return next(name for name in _numbered(path) if not name.exists())


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
