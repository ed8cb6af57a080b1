"""Scoring checkpoint files: evaluate, print a table, keep results and videos in a directory, compare two files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from rich import get_console

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import Checkpoint, load_file
from tdmpc2.config import Config
from tdmpc2.envs.registry import WHY_MIXED
from tdmpc2.loading import load_agent
from tdmpc2.nn.layers import num_parameters
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.play import results
from tdmpc2.play.evaluation import Evaluation, compare, evaluate, num_steps
from tdmpc2.play.protocols import checkpoint_name
from tdmpc2.play.rollout import Film
from tdmpc2.support.intervals import format_interval
from tdmpc2.support.names import safe_name
from tdmpc2.support.runtime import set_num_threads

#: Value of ``mpc`` that asks for both scores; only an evaluation knows it.
BOTH = "both"
#: In place of a second file: random actions.
RANDOM = "random"


def score_files(paths: Sequence[str], keys: Mapping[str, Any]) -> None:
    """Evaluate one file, or two and their difference; print the scores.

    Args:
        paths: one or two checkpoints; in place of the second :data:`RANDOM`, to compare with random actions.
        keys: what they are loaded with, see :func:`tdmpc2.loading.load_agent`; ``mpc`` may also be :data:`BOTH`: then
            every file plays the same episodes with planning and by its policy alone.

    Raises:
        ValueError: a file that cannot be used, or two with different tasks. What is wrong with the second file is said
            before the first one plays.
    """
    with_chance = list(paths[1:]) == [RANDOM]
    names = paths[:1] if with_chance else paths
    files = [load_file(name, identify=True) for name in names]
    both = keys.get("mpc") == BOTH
    ways = [{**keys, "mpc": mpc} for mpc in (True, False)] if both else [keys]
    agents = [[load_agent(file, **way) for file in files] for way in ways]  # [way][file]
    if len({tuple(agent.cfg.task_specs[i].name for i in agent.cfg.task_ids) for agent in agents[0]}) > 1:
        raise ValueError(f"{' and '.join(paths)} have different tasks: choose common ones, as in tasks=[walker-walk]")
    if agents[0][0].cfg.save_video:
        results.video_writer()
    scores = [[score(*pair) for pair in zip(files, way, strict=True)] for way in agents]
    chance = score_of_chance(files[0], agents[0][0]) if with_chance else None
    for way, result in zip(agents, scores, strict=True):
        if len(result) == 2:
            action = f", {_action(way[0].cfg)} each" if both else ""
            _print_difference(f"{paths[0]} minus {paths[1]}{action}", *result)
        elif chance is not None:
            action = f", {_action(way[0].cfg)}" if both else ""
            _print_difference(f"{paths[0]}{action} minus random actions", result[0], chance)
    for i, path in enumerate(names if both else ()):
        _print_difference(f"{path}: planner minus policy", scores[0][i], scores[1][i])
    if scores[0][0].mixed:
        return
    label = scores[0][0].score_label.capitalize()
    if not both:
        beside = "" if chance is None else f" (random actions: {chance.normalized_score:.2f})"
        print(f"{label}: {scores[0][0].normalized_score:.2f}{beside}")
        return
    planned, alone = (way[0].normalized_score for way in scores)
    share = f" ({alone / planned:.0%})" if planned > 0 else ""
    print(f"{label}: {planned:.2f} with planning, {alone:.2f} by the policy alone{share}")


def score_of_chance(file: Checkpoint, agent: TDMPC2) -> Evaluation:
    """Play the episodes of a file's evaluation with random actions; print their table, and keep the results beside."""
    cfg = _named(agent.cfg, file)
    name = "random actions"
    protocol = {"checkpoint": name, "action": RANDOM, "config": cfg.to_dict()}
    beside = cfg.run_dir.absolute()
    with results.fresh_directory(beside.with_name(f"{beside.name}-{RANDOM}")) as directory:
        result = evaluate(agent, cfg, at_random=True, keep=partial(results.write_episodes, directory))
        get_console().print(results.table(result, name))
        results.write_results(directory, result, protocol)
    print(f"Results: {directory}")
    return result


def _named(cfg: Config, file: Checkpoint) -> Config:
    """The configuration of a file's evaluation, whose results have the name of the file if they were given none."""
    return cfg.replace(checkpoint=file.origin, exp_name=cfg.exp_name or f"eval-{checkpoint_name(file.origin)}")


def _print_difference(title: str, first: Evaluation, second: Evaluation) -> None:
    if first.mixed:
        print(f"{title}, by task, each on its own scale:")
        for a, b in zip(first.tasks, second.tasks, strict=True):
            _print_difference(f"  {a.task} ({a.rule.label})", Evaluation((a,)), Evaluation((b,)))
        return
    difference, interval = compare(first, second)
    said = f"95 % interval {format_interval(interval)}" if interval else "no interval: one episode a task"
    print(f"{title}: {difference:+.2f} ({said})")


def _action(cfg: Config) -> str:
    return "planner" if cfg.mpc else "policy"


def _parameters(cfg: Config) -> int:
    """Count the trainable numbers of a model, whatever precision it is in; no memory is taken for them."""
    with torch.device("meta"):
        return num_parameters(WorldModel(cfg))


def score(file: Checkpoint, agent: TDMPC2) -> Evaluation:
    """Evaluate the agent of a file; print its table and leave results and videos in a run directory."""
    path = file.origin
    name = checkpoint_name(path)
    cfg = _named(agent.cfg, file)
    compilation = agent.compile_planner(num_steps(cfg))
    protocol = {
        "checkpoint": path,
        "sha256": file.sha256,
        "action": _action(cfg),
        "plan_iterations": cfg.plan_iterations,
        "precision": agent.precision,
        "device": str(agent.device),
        "num_threads": set_num_threads(cfg.num_threads),
        "planner": agent.planner.kind,
        "config": cfg.to_dict(),
    }
    budget = f"{cfg.plan_iterations} x {cfg.num_samples} samples, horizon {cfg.horizon}" if cfg.mpc else "no planning"
    noise = "with exploration noise" if cfg.eval_noise else "noise-free"
    computed = f"{agent.precision} on {agent.device}" + (f" ({agent.planner.kind})" if cfg.mpc else "")
    print(f"{name}: {protocol['action']} ({budget}), {computed}, {noise}")
    if compilation:
        print(compilation)
    videos: list[str] = []
    with results.fresh_directory(cfg.run_dir) as directory:

        @contextmanager
        def film(task: str) -> Iterator[Film]:
            video = f"{safe_name(task)}.mp4"
            with results.video_file(directory / video) as opened:
                yield opened
            videos.append(video)

        keep = partial(results.write_episodes, directory)
        began = time.monotonic()
        result = evaluate(agent, cfg, film=film, keep=keep)
        seconds = (time.monotonic() - began) / sum(task.steps for task in result.tasks)
        get_console().print(results.table(result, name))
        for a in result.aggregates:
            print(f"{a.name.capitalize()}: {a.value:.2f} {format_interval(a.interval)}")
        if result.mixed:
            print(f"-: {WHY_MIXED}")
        elif result.interval is None:
            print("-: no interval, which takes more than one episode a task (eval_episodes)")
        facts = {"parameters": _parameters(cfg), "seconds_per_action": seconds}
        results.write_results(directory, result, protocol, facts)
    for video in videos:
        print(f"Video: {directory / video}")
    print(f"Results: {directory}{results.why_another(directory, cfg.run_dir, protocol)}")
    return result
