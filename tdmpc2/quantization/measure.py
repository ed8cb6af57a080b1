"""Measure files of one model side by side: size, errors, regret, time and score."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tdmpc2 import planner
from tdmpc2.acceleration.low_precision import set_precision
from tdmpc2.agent import TDMPC2
from tdmpc2.envs.registry import WHY_MIXED
from tdmpc2.loading import load_agent
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.play.evaluation import Evaluation, compare, evaluate, num_steps
from tdmpc2.quantization.calibration import Inputs
from tdmpc2.quantization.recipes import output_errors, plain_errors
from tdmpc2.quantization.regret import plan_regrets
from tdmpc2.support.intervals import format_interval
from tdmpc2.tracking.progress import Progress, progress

_BATCH = 12  # environments that are planned for at once
_FEW_PLANS = 100  # worth the CPU kernels, where they can be had, but not compiling


class Candidate(NamedTuple):
    """A file to measure."""

    name: str
    source: Path | Mapping[str, Any]  # the file, or what it holds
    file_bytes: int


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    Attributes:
        device: where the models act.
        repeats: turns of the timing.
        plans: inputs that are planned for, for the regret; 0 leaves it out.
        episodes: of each task that are played for the score; 0 leaves it out.
        overrides: keys of the configuration that win over the files', such as ``num_samples``.
    """

    device: str = "auto"
    repeats: int = 20
    plans: int = 48
    episodes: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)


def measure(candidates: Sequence[Candidate], inputs: Inputs, settings: Settings) -> list[dict[str, Any]]:
    """Measure files of one model side by side.

    Args:
        candidates: the first is the float32 model that the others are compared with.
        inputs: what errors and regret are measured on.
        settings: see there.

    Returns:
        For each file ``name``, ``computes_in``, ``file_bytes``, ``size_ratio`` (to the first file), ``weight_bytes``
        (in memory), ``errors`` (dB by output; None: exact), ``regret`` and its standard error ``regret_error``,
        ``iteration_ms`` and ``plan_ms``; with episodes the ``returns`` by task and, where these are on one scale,
        ``score``, ``interval``, ``minus_fp32`` and ``minus_fp32_interval``.

    Raises:
        ValueError: a file that cannot be loaded, or tasks that cannot be played.
    """
    agents = load_agents(candidates, settings)
    reference = next(iter(agents.values()))
    inputs = inputs.to(reference.device)
    rows = [
        {
            "name": c.name,
            "computes_in": agent.precision,
            "file_bytes": c.file_bytes,
            "size_ratio": c.file_bytes / candidates[0].file_bytes,
            "weight_bytes": weight_bytes(agent.model),
            "errors": plain_errors(output_errors(reference.model, agent.model, *inputs[:3])),
        }
        for c, agent in zip(candidates, agents.values(), strict=True)
    ]
    for row, (regret, error) in zip(rows, _regrets(list(agents.values()), inputs, settings.plans), strict=True):
        row |= {"regret": regret, "regret_error": error}
    for row, (iteration_ms, plan_ms) in zip(rows, _times(list(agents.values()), inputs, settings.repeats), strict=True):
        row |= {"iteration_ms": iteration_ms, "plan_ms": plan_ms}
    if settings.episodes:
        scores = [_score(name, agent, settings.episodes) for name, agent in agents.items()]
        for row, score in zip(rows, scores, strict=True):
            difference, interval = compare(score, scores[0])
            if not score.mixed:
                row |= {"score": score.normalized_score, "interval": score.interval, "score_label": score.score_label}
                row |= {"minus_fp32": difference, "minus_fp32_interval": interval}
            row["returns"] = {result.task: list(result.returns) for result in score.tasks}
    return rows


def load_agents(candidates: Sequence[Candidate], settings: Settings) -> dict[str, TDMPC2]:
    """Load an agent of each file, by name, as the fastest this machine has."""
    given = {"device": settings.device, "quiet": True, **settings.overrides}  # the table has what each computes in
    agents = {c.name: load_agent(c.source, **given) for c in candidates}
    for agent in agents.values():
        if agent.precision == "fp32":
            set_precision(agent.model, "fp32")  # drops the target heads, which serve training only
        agent.compile_planner(_FEW_PLANS)
    return agents


def weight_bytes(model: WorldModel) -> int:
    """Bytes of all weights as they lie in memory, scales of int8 weights included."""
    scales = [buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2].startswith("scale")]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *scales)}.values())


def _regrets(agents: Sequence[TDMPC2], inputs: Inputs, plans: int) -> list[tuple[float | None, float | None]]:
    """Mean regret and its standard error of every agent; the first is the reference."""
    reference, *others = [agent.model for agent in agents]
    count = min(plans, len(inputs.obs))
    if not count or not others:
        return [(None, None)] * len(agents)
    some = inputs.rows(torch.arange(count) * len(inputs.obs) // count)
    planners = {id(agent.model): agent.planner for agent in agents}

    def plan(model: WorldModel, *args: Any, **kwargs: Any) -> planner.Plan:
        return planners[id(model)](*args, **kwargs)

    found = []
    with Progress(count, "Planning for the regret", unit="observations") as bar:
        for rows in torch.arange(count).split(_BATCH):
            batch = some.rows(rows)
            regrets = plan_regrets(reference, others, batch.obs, batch.task, seed=int(rows[0]), plan_fn=plan)
            found.append(regrets.cpu())
            bar.update(len(rows))
    regrets = torch.cat(found, 1)  # [len(others), count]
    means, errors = regrets.mean(1).tolist(), (regrets.std(1) / count**0.5).tolist()
    return [(0.0, 0.0), *((mean, error if count > 1 else None) for mean, error in zip(means, errors, strict=True))]


@torch.no_grad()
def _times(agents: Sequence[TDMPC2], inputs: Inputs, repeats: int) -> list[list[float]]:
    """Medians in ms of one iteration and of one plan of every agent, taken in turns."""
    runs = [run for agent in agents for run in _runs(agent, inputs.rows(torch.zeros(1, dtype=torch.long)))]
    seconds = np.zeros((repeats, len(runs)))
    for run in runs:
        run()
    for turn in progress(range(repeats), "Timing", unit="turns"):
        for index, run in enumerate(runs):
            start = time.perf_counter()
            run()
            seconds[turn, index] = time.perf_counter() - start
    return (1e3 * np.median(seconds, 0)).reshape(-1, 2).tolist()


def _runs(agent: TDMPC2, one: Inputs) -> tuple[Callable[[], None], Callable[[], None]]:
    """One iteration and one plan for one environment."""
    cfg, model, device = agent.cfg, agent.model, agent.device
    context = model.context(one.task)
    z, wide = model.encode(one.obs, context), context.unsqueeze(1)
    noise = planner.draw_noise(cfg, 1, device, None)
    policy = planner.policy_rollout(model, z, wide, noise.policy)
    mean = z.new_zeros(1, cfg.horizon, cfg.action_dim)
    std = torch.full_like(mean, cfg.max_std)
    task = None if one.task is None else int(one.task)
    iteration_fn = agent.planner.functions.get("iteration_fn", planner.iteration)

    def iteration() -> None:
        iteration_fn(model, z, wide, mean, std, policy, noise.of_iteration(0))
        _wait(device)

    def plan() -> None:
        agent.act(one.obs, t0=True, eval_mode=True, task=task)
        _wait(device)

    return iteration, plan


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def _score(name: str, agent: TDMPC2, episodes: int) -> Evaluation:
    cfg = agent.cfg.replace(eval_episodes=episodes)
    print(f"Playing {name}: {episodes} episodes of {len(cfg.task_ids)} tasks in {agent.precision}", flush=True)
    agent.compile_planner(num_steps(cfg))
    result = evaluate(agent, cfg)
    score = f"- ({WHY_MIXED})" if result.mixed else f"{result.normalized_score:.2f} {format_interval(result.interval)}"
    print(f"{name}: {score}", flush=True)
    return result
