"""Scoring an agent by playing real episodes: docs/algorithm.md, "Evaluation protocol".

How the episodes of a task become scores is on the row of its family in :mod:`tdmpc2.envs.registry`; the score of an
evaluation is the mean over its tasks. Intervals are 95 % bootstrap intervals over episodes, resampled within each task.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.envs.registry import MIXED, ScoreRule, common_label, family_of, rule_of
from tdmpc2.play.actors import agent_actor, random_actor
from tdmpc2.play.rollout import Episode, Film, Job, check_playable, most_on_cuda, play
from tdmpc2.support.intervals import Interval, bootstrap, interquartile_mean, resampled_interval
from tdmpc2.tracking.progress import Progress

#: Opens what takes the frames of a task's episode; they are all there when its block ends.
Films = Callable[[str], contextlib.AbstractContextManager[Film]]


@dataclass(frozen=True)
class TaskResult:
    """Episodes of one task: returns and successes [n] in the order of their seeds."""

    task: str
    seeds: tuple[int, ...]
    returns: tuple[float, ...]
    successes: tuple[float, ...]
    success_score: bool
    steps: int = 0  # of the agent, in all of them

    @property
    def rule(self) -> ScoreRule:
        """Rule by which its episodes are scored."""
        return rule_of(self.task, self.success_score)

    @property
    def scores(self) -> NDArray[np.float64]:
        """Score of each episode, [n]."""
        return self.rule.score(np.array(self.returns), np.array(self.successes))

    @property
    def knows_success(self) -> bool:
        """True if success means something here: the task is scored by it, or an episode reported one."""
        return self.success_score or family_of(self.task).tells_success or any(self.successes)


class Aggregate(NamedTuple):
    """A summary of the scores of many tasks, with its 95 % bootstrap interval (None with one episode per task)."""

    name: str
    value: float
    interval: Interval | None


def _interquartile_mean(scores: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return interquartile_mean(np.concatenate(scores, -1))


def _worst_mean(scores: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    means = np.stack([task.mean(-1) for task in scores], -1)  # [resamples, tasks]
    return np.sort(means, -1)[:, :_WORST].mean(-1)


_WORST = 5
_MOST_WITHOUT_PLANS = 16  # a policy gains from more, as in a collection
#: From the scores of each task, [resamples, episodes], to [resamples].
_AGGREGATES = {
    "interquartile mean": _interquartile_mean,
    "mean of the five worst tasks": _worst_mean,
}


def aggregates(scores: Sequence[NDArray[np.float64]]) -> tuple[Aggregate, ...]:
    """Summarise the scores [n] of each of many tasks; empty where there are too few tasks for that to mean anything."""
    if len(scores) <= _WORST:
        return ()
    return tuple(
        Aggregate(name, float(of([s[None] for s in scores])[0]), resampled_interval(scores, of))
        for name, of in _AGGREGATES.items()
    )


@dataclass(frozen=True)
class Evaluation:
    """Results of all tasks."""

    tasks: tuple[TaskResult, ...]

    @property
    def normalized_score(self) -> float:
        """Mean over tasks of the mean episode score; see :attr:`score_label` for its scale. NaN if there is none."""
        return float("nan") if self.mixed else self.mean_score

    @property
    def mean_score(self) -> float:
        """Mean over tasks of the mean episode score, whatever their scales: it tells steps of one run apart."""
        return float(np.mean([result.scores.mean() for result in self.tasks]))

    @property
    def score_label(self) -> str:
        """Name of the score, as from :func:`~tdmpc2.envs.registry.score_label`."""
        return common_label(result.rule for result in self.tasks)

    @property
    def mixed(self) -> bool:
        """True if the tasks are scored on different scales, so that no number is the score of all of them."""
        return self.score_label == MIXED

    @property
    def interval(self) -> Interval | None:
        """95 % bootstrap interval of the score; None with one episode per task, or without a score."""
        return None if self.mixed else bootstrap([result.scores for result in self.tasks])

    @property
    def aggregates(self) -> tuple[Aggregate, ...]:
        """Further summaries of the score over many tasks; none where there are too few for them to mean anything."""
        return () if self.mixed else aggregates([result.scores for result in self.tasks])

    def metrics(self) -> dict[str, float]:
        """The score and, where there is one, its interval (``low``, ``high``), by the names they are logged under."""
        ends = {} if self.interval is None else {"low": self.interval[0], "high": self.interval[1]}
        return {self.score_label.replace(" ", "_"): self.mean_score, **ends}


def evaluate(
    agent: TDMPC2,
    cfg: Config | None = None,
    *,
    quiet: bool = False,
    at_random: bool = False,
    film: Films | None = None,
    keep: Callable[[Evaluation], None] | None = None,
    each_step: Callable[[], None] | None = None,
) -> Evaluation:
    """Play ``eval_episodes`` episodes of each of the agent's tasks, noise-free unless ``eval_noise``.

    Episode k of every task is played in an environment built with seed ``eval_seed + k``, and the planner's draws are
    those of ``seed``: the same call gives the same result on the same machine.

    The processes of ``agent.group`` share the episodes and all return the whole result. The planner's draws depend on
    which episodes are played together, so with planning another number of processes gives other returns.

    Args:
        agent: the agent; a player of its own acts, so that the agent stays as it is.
        cfg: what to play (by default the agent's): tasks, ``eval_*``, ``save_video``.
        quiet: without progress.
        at_random: uniformly random actions take the place of the agent's, to know what chance alone scores.
        film: called with the task's name for what takes the frames of its first episode, if ``save_video``, in the
            process that plays it.
        keep: called after every batch of episodes with what this process has played so far.
        each_step: called after every step of a batch; what it raises ends the evaluation.

    Raises:
        EnvironmentFault: see :func:`~tdmpc2.play.rollout.play`; in all processes if in one.
        ValueError: a task has no environment here, or the agent's plans are not finite.
    """
    cfg = cfg or agent.cfg
    check_playable(cfg)
    group = agent.group
    episodes, fault = [], None
    try:
        episodes = _own_episodes(agent, cfg, quiet, at_random, film, keep, each_step)
    except ValueError as error:
        if group.world_size == 1:
            raise
        fault = error
    if group.world_size > 1:
        shares = group.collect((episodes, fault))
        if fault := next((error for _, error in shares if error), None):
            raise fault
        whole = [share for share, _ in shares]
        episodes = [whole[i % group.world_size][i // group.world_size] for i in range(sum(map(len, whole)))]
    return _results(cfg, episodes)


def _own_episodes(
    agent: TDMPC2,
    cfg: Config,
    quiet: bool,
    at_random: bool,
    film: Films | None,
    keep: Callable[[Evaluation], None] | None,
    each_step: Callable[[], None] | None,
) -> list[Episode]:
    """Play this process's share of the episodes."""
    group, seed = agent.group, _rank_seed(cfg.seed, agent.group.rank)
    actor = random_actor(cfg, seed) if at_random else agent_actor(agent, noise=cfg.eval_noise, seed=seed)
    jobs = [Job(task_id, cfg.eval_seed + k) for task_id in cfg.task_ids for k in range(cfg.eval_episodes)]
    jobs = jobs[group.rank :: group.world_size]  # neighbours are of one task and take as long
    size = side_by_side(cfg, len(jobs), agent) if jobs else 1
    steps = sum(cfg.task_specs[job.task_id].episode_length for job in jobs)
    episodes: list[Episode] = []
    with contextlib.nullcontext() if quiet else Progress(steps, "Evaluating") as bar:
        for first in range(0, len(jobs), size):
            text = _last_result(cfg, episodes)
            on_step = partial(_advance, bar, text, each_step)
            batch = jobs[first : first + size]
            with contextlib.ExitStack() as opened:
                films = {
                    i: opened.enter_context(film(cfg.task_specs[job.task_id].name))
                    for i, job in enumerate(batch)
                    if film and cfg.save_video and job.seed == cfg.eval_seed
                }
                episodes += play(cfg, actor, batch, films=films, keep_steps=False, on_step=on_step)
            if keep:
                keep(_results(cfg, episodes))
    return episodes


def _results(cfg: Config, episodes: Sequence[Episode]) -> Evaluation:
    """Gather the results of those tasks that have been played."""
    played = {episode.job.task_id for episode in episodes}
    return Evaluation(tuple(_task_result(cfg, episodes, task_id) for task_id in cfg.task_ids if task_id in played))


def num_steps(cfg: Config) -> int:
    """Count the agent's steps in a whole evaluation."""
    return cfg.eval_episodes * sum(cfg.task_specs[task_id].episode_length for task_id in cfg.task_ids)


def side_by_side(cfg: Config, num_jobs: int, agent: TDMPC2) -> int:
    """Choose how many environments play at a time.

    On a CPU at most 4, or 8 with the kernels, so that the activations of planning stay in its caches, and 16 where the
    policy acts alone; on CUDA up to 64. All batches are of one size where the planner is compiled for
    one.
    """
    device = agent.device
    most = 8 if agent.planner.kind == "kernels" else 4
    if not agent.cfg.mpc:
        most = _MOST_WITHOUT_PLANS
    if device.type == "cuda" and not cfg.save_video:  # a program encodes each video
        most = most_on_cuda(cfg.num_samples, cfg.mlp_dim)
    batches = -(-num_jobs // most)
    if not agent.planner.fixed_size:
        return -(-num_jobs // batches)
    return next(num_jobs // n for n in range(batches, num_jobs + 1) if num_jobs % n == 0)


def _rank_seed(seed: int, rank: int) -> int:
    """Give each process a seed of its own, the first one the given seed; a CPU generator reads 32 bits of it."""
    return (seed + rank * 0x9E3779B9) % 2**32


def _advance(bar: Progress | None, text: str, each_step: Callable[[], None] | None, num_envs: int) -> None:
    if bar:
        bar.update(num_envs, text)
    if each_step:
        each_step()


def _last_result(cfg: Config, episodes: Sequence[Episode]) -> str:
    if not episodes:
        return ""
    result = _task_result(cfg, episodes, episodes[-1].job.task_id)
    return f"{result.task} {np.mean(result.returns):.0f}"


def _task_result(cfg: Config, episodes: Sequence[Episode], task_id: int) -> TaskResult:
    own = [episode for episode in episodes if episode.job.task_id == task_id]
    return TaskResult(
        cfg.task_specs[task_id].name,
        tuple(episode.job.seed for episode in own),
        tuple(episode.episode_return for episode in own),
        tuple(episode.success for episode in own),
        cfg.task_specs[task_id].success_score,
        sum(episode.steps for episode in own),
    )


def compare(first: Evaluation, second: Evaluation) -> tuple[float, Interval | None]:
    """Compare two evaluations of the same episodes.

    Returns:
        The difference of their scores, first minus second, and its interval over pairs of equally seeded episodes; NaN
        and None where the tasks are scored on different scales.

    Raises:
        ValueError: different tasks or seeds.
    """
    key = [(result.task, result.seeds) for result in first.tasks]
    if key != [(result.task, result.seeds) for result in second.tasks]:
        raise ValueError("Only evaluations of the same tasks and seeds can be compared")
    if first.mixed:
        return float("nan"), None
    pairs = [a.scores - b.scores for a, b in zip(first.tasks, second.tasks, strict=True)]
    return first.normalized_score - second.normalized_score, bootstrap(pairs)
