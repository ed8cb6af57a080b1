"""Evaluations during a run: played, logged, and compared with the earlier ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.envs.checked import EnvironmentFault
from tdmpc2.envs.registry import score_label
from tdmpc2.envs.workers import WorkerLost
from tdmpc2.play.evaluation import Evaluation, num_steps
from tdmpc2.play.results import table_rows, video_file
from tdmpc2.play.rollout import Film
from tdmpc2.support.names import safe_name
from tdmpc2.tracking.logger import Logger
from tdmpc2.training import run_dir

#: Plays an agent as its configuration says; :func:`tdmpc2.play.evaluation.evaluate` is one.
Evaluator = Callable[..., Evaluation]


def score(
    evaluate: Evaluator,
    agent: TDMPC2,
    cfg: Config,
    logger: Logger,
    step: int,
    each_step: Callable[[], None] | None = None,
) -> Evaluation | None:
    """Evaluate the agent, log the result, and keep its weights as ``best.pt`` if no earlier score is as high.

    The score is recorded last, so that a run that ends before makes the evaluation again. Where an environment has a
    fault, the line says which, and there is no score.

    Args:
        evaluate: plays the agent.
        agent: who is evaluated.
        cfg: of the run.
        logger: takes the results.
        step: of the run.
        each_step: called after every step that is played; what it raises ends the evaluation.

    Returns:
        The result; None if an environment has a fault.
    """
    videos = cfg.run_dir / "videos"

    def film(task: str) -> AbstractContextManager[Film]:
        return video_file(videos / video_name(task, step))

    if line := agent.compile_planner(num_steps(cfg)):
        logger.message(line)
    try:
        result = evaluate(agent, cfg, film=film, each_step=each_step)
    except WorkerLost as fault:  # perhaps for want of memory: a restart makes the evaluation again
        logger.message(f"Evaluation at step {step:,} has no score: {fault}")
        return None
    except EnvironmentFault as fault:  # which says nothing about the training, so that goes on
        logger.message(f"Evaluation at step {step:,} has no score: {fault}")
        if cfg.save_agent and agent.group.main:
            label = score_label(cfg.task_specs[task_id] for task_id in cfg.task_ids)
            run_dir.record_score(agent, cfg.run_dir, step, math.nan, label, cfg.save_best)
        return None
    if cfg.save_video:  # each was written by the process that played it
        logger.message(f"Videos: {videos}/*-{step}.mp4")
        for name in (task.task for task in result.tasks):
            logger.log_video(step, f"video/{name}", videos / video_name(name, step))
    logger.log(step, result.metrics(), "eval")
    columns = ("task", "episodes", "return", "success")
    logger.log_table(step, "eval/tasks", columns, [row[:4] for row in table_rows(result)], curve="return")
    if cfg.save_agent and agent.group.main:
        found = result.mean_score, result.score_label
        best = run_dir.record_score(agent, cfg.run_dir, step, *found, cfg.save_best)
        if best and cfg.save_best:
            upload(cfg, logger, "best.pt", f"step-{step}", "best")
    return result


def upload(cfg: Config, logger: Logger, name: str, *aliases: str) -> None:
    """Upload a checkpoint of the run directory as the next version of the run's artifact."""
    logger.save_artifact(cfg.run_dir / name, f"{cfg.run_task}-{cfg.exp_name or 'default'}-{cfg.seed}", "model", aliases)


def video_name(task: str, step: int) -> str:
    """Name of the file of a task's video."""
    return f"{safe_name(task)}-{step}.mp4"
