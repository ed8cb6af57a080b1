"""What quantising a model costs and gains: measured side by side, and written as tables, JSON and a figure."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Table

from tdmpc2 import planner
from tdmpc2.agent import TDMPC2
from tdmpc2.calibration import Inputs, Sensitivity
from tdmpc2.evaluation import Evaluation, compare, evaluate, num_steps
from tdmpc2.files import write_text
from tdmpc2.loading import load_agent
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.progress import Progress, progress
from tdmpc2.quantization import OUTPUTS, ModuleError, output_errors
from tdmpc2.quantization_figure import quantization_figure
from tdmpc2.regret import plan_regrets
from tdmpc2.results import format_interval, versions

_BATCH = 12  # environments that are planned for at once
_FEW_PLANS = 100  # worth the CPU kernels, where they can be had, but not compiling
_CAPTION = """\
Errors: RMS over the inputs, in dB relative to the RMS of the float32 model's own output (-20 dB: 10 %, -40 dB: 1 %);
`exact`: no difference. Regret: how much less the float32 model values the mean of a plan than that of its own plan, in
standard deviations of the values of its first sweep; mean and its standard error over {plans} of the inputs. Times:
medians of {repeats} turns of all rows in one process, one environment, {threads} threads, by the CPU kernels where
there are any, else uncompiled; a machine's speed changes, so that only their ratios say something."""
_MIXED = """\
Mixed: as many bytes as possible in int8 while the predicted error of every output, the sum of the powers of the errors
of its matrices alone, is at most {limit:g} dB. What is not int8 has an error of its own, which is not counted."""


class Candidate(NamedTuple):
    """A file to measure."""

    name: str
    source: Path | Mapping[str, Any]  # the file, or what it holds
    file_bytes: int


@dataclass(frozen=True)
class Settings:
    """How to measure.

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


# -- measuring --------------------------------------------------------------------------------------------------------


def measure(candidates: Sequence[Candidate], inputs: Inputs, settings: Settings) -> list[dict[str, Any]]:
    """Measure files of one model side by side.

    Args:
        candidates: the first is the float32 model that the others are compared with.
        inputs: what errors and regret are measured on.
        settings: see there.

    Returns:
        For each file ``name``, ``computes_in``, ``file_bytes``, ``size_ratio`` (to the first file), ``weight_bytes``
        (in memory), ``errors`` (dB by output; None: exact), ``regret`` and its standard error ``regret_error``,
        ``sweep_ms`` and ``plan_ms``; with episodes ``score``, ``interval``, ``minus_fp32``, ``minus_fp32_interval``.

    Raises:
        ValueError: a file that cannot be loaded, or tasks that cannot be played.
    """
    agents = load_agents(candidates, settings)
    reference = next(iter(agents.values()))
    reference.model.set_precision("fp32")  # which drops the target heads, as in the others
    inputs = inputs.to(reference.device)
    rows = [
        {
            "name": c.name,
            "computes_in": agent.precision,
            "file_bytes": c.file_bytes,
            "size_ratio": c.file_bytes / candidates[0].file_bytes,
            "weight_bytes": agent.model.weight_bytes(),
            "errors": plain_errors(output_errors(reference.model, agent.model, *inputs[:3])),
        }
        for c, agent in zip(candidates, agents.values(), strict=True)
    ]
    for row, (regret, error) in zip(rows, _regrets(list(agents.values()), inputs, settings.plans), strict=True):
        row |= {"regret": regret, "regret_error": error}
    for row, (sweep_ms, plan_ms) in zip(rows, _times(list(agents.values()), inputs, settings.repeats), strict=True):
        row |= {"sweep_ms": sweep_ms, "plan_ms": plan_ms}
    if settings.episodes:
        scores = [_score(name, agent, settings.episodes) for name, agent in agents.items()]
        for row, score in zip(rows, scores, strict=True):
            difference, interval = compare(score, scores[0])
            row |= {"score": score.normalized_score, "interval": score.interval}
            row |= {"minus_fp32": difference, "minus_fp32_interval": interval}
    return rows


def load_agents(candidates: Sequence[Candidate], settings: Settings) -> dict[str, TDMPC2]:
    """An agent of each file, by name."""
    log = logging.getLogger("tdmpc2")
    disabled, log.disabled = log.disabled, True  # what each computes in is a column of the table
    try:
        agents = {c.name: load_agent(c.source, device=settings.device, **settings.overrides) for c in candidates}
    finally:
        log.disabled = disabled
    for agent in agents.values():
        agent.compile_planner(_FEW_PLANS)
    return agents


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
    """Medians in ms of one sweep and of one plan of every agent, taken in turns."""
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
    """One sweep and one plan for one environment."""
    cfg, model, device = agent.cfg, agent.model, agent.device
    context = model.context(one.task)
    z, wide = model.encode(one.obs, context), context.unsqueeze(1)
    discount = model.discounts[:1] if one.task is None else model.discounts[one.task]
    noise = planner.draw_noise(cfg, 1, device, None)
    policy = planner.policy_rollout(model, z, wide, noise.policy)
    mean = z.new_zeros(1, cfg.horizon, cfg.action_dim)
    std = torch.full_like(mean, cfg.max_std)
    task = None if one.task is None else int(one.task)
    sweep_fn = agent.planner.functions.get("sweep_fn", planner.sweep)

    def sweep() -> None:
        first = noise.samples[0], noise.value[0], noise.heads[0]
        sweep_fn(model, z, wide, discount[:, None], mean, std, policy, *first)
        _wait(device)

    def plan() -> None:
        agent.act(one.obs, t0=True, eval_mode=True, task=task)
        _wait(device)

    return sweep, plan


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _score(name: str, agent: TDMPC2, episodes: int) -> Evaluation:
    cfg = agent.cfg.replace(eval_episodes=episodes)
    print(f"Playing {name}: {episodes} episodes of {len(cfg.task_ids)} tasks in {agent.precision}", flush=True)
    agent.compile_planner(num_steps(cfg))
    result = evaluate(agent, cfg)
    print(f"{name}: {result.normalized_score:.2f} {format_interval(result.interval)}", flush=True)
    return result


# -- writing ----------------------------------------------------------------------------------------------------------


class Report(NamedTuple):
    """All that is written."""

    checkpoint: str
    inputs: Inputs
    settings: Settings
    rows: list[dict[str, Any]]  # see measure
    sensitivities: Sequence[Sensitivity]  # empty without the recipe mixed
    mixed: frozenset[str]  # the matrices that are int8 in it
    limit_db: float  # of its predicted errors
    modules: dict[str, dict[str, ModuleError]]  # of the recipes that were written


class Cells(NamedTuple):
    """One table."""

    title: str
    headings: list[str]
    rows: list[list[str]]


def tables(report: Report) -> list[Cells]:
    """Costs and errors of the recipes, and errors of every matrix alone."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "recipe": lambda row: row["name"],
        "computed in": lambda row: row["computes_in"],
        "file bytes": lambda row: f"{row['file_bytes']:,}",
        "of fp32": lambda row: f"{row['size_ratio']:.1%}",
        "bytes in memory": lambda row: f"{row['weight_bytes']:,}",
        "regret": lambda row: _with_error(row["regret"], row["regret_error"]),
        "sweep ms": lambda row: f"{row['sweep_ms']:.2f}",
        "plan ms": lambda row: f"{row['plan_ms']:.1f}",
    }
    if "score" in report.rows[0]:
        columns["score"] = lambda row: f"{row['score']:.2f} {format_interval(row['interval'])}"
        columns["minus fp32"] = lambda row: f"{row['minus_fp32']:+.2f} {format_interval(row['minus_fp32_interval'])}"
    names = [name.replace("_", " ") for name in OUTPUTS]
    costs = [[cell(row) for cell in columns.values()] for row in report.rows]
    errors = [[row["name"], *map(_decibels, row["errors"].values())] for row in report.rows[1:]]
    result = [Cells("Size, regret and time", list(columns), costs), Cells("Errors in dB", ["recipe", *names], errors)]
    if report.sensitivities:
        alone = [
            [name, f"{saved:,}", *map(_decibels, found.values()), "yes" if name in report.mixed else ""]
            for name, saved, found in report.sensitivities
        ]
        result.append(Cells("One matrix alone in int8, dB", ["matrix", "bytes saved", *names, "in mixed"], alone))
    return result


def module_table(report: Report) -> Cells:
    """Sizes and weight errors of the recipes by module."""
    headings = ["module", *(f"{name} {what}" for name in report.modules for what in ("bytes", "dB"))]
    recipes = list(report.modules.values())
    lines = [
        [name, *(text for of in recipes for text in (f"{of[name].bytes:,}", _decibels(of[name].error_db)))]
        for name in recipes[0]
    ]
    return Cells("Bytes and weight errors in dB", headings, lines)


def rich_table(cells: Cells) -> Table:
    """For the terminal; headings take a line for each word."""
    table = Table(title=cells.title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for index, heading in enumerate(cells.headings):
        table.add_column(heading.replace(" ", "\n"), justify="right" if index else "left", overflow="fold")
    for row in cells.rows:
        table.add_row(*row)
    return table


def markdown(report: Report, figure: str | None) -> str:
    """The report as text."""
    parts = [f"# Quantisation of {report.checkpoint}", f"Inputs: {report.inputs.source}."]
    for cells in [*tables(report), *([module_table(report)] if report.modules else [])]:
        ruler = ["---", *["---:"] * (len(cells.headings) - 1)]
        lines = (f"| {' | '.join(line)} |" for line in (cells.headings, ruler, *cells.rows))
        parts += [f"## {cells.title}", "\n".join(lines)]
    plans, repeats = min(report.settings.plans, len(report.inputs.obs)), report.settings.repeats
    parts.append(_CAPTION.format(plans=plans, repeats=repeats, threads=torch.get_num_threads()))
    if report.sensitivities:
        parts.append(_MIXED.format(limit=report.limit_db))
    if figure:
        parts.append(f"![Errors, sizes and regret]({figure})")
    return "\n\n".join(parts) + "\n"


def to_json(report: Report) -> str:
    """The same as JSON; an error of null is none at all."""
    facts = {
        "checkpoint": report.checkpoint,
        "inputs": report.inputs.source,
        "settings": {**asdict(report.settings), "threads": torch.get_num_threads(), "limit_db": report.limit_db},
        "versions": versions(),
        "recipes": report.rows,
        "modules": {
            name: {module: {**e._asdict(), **plain_errors({"error_db": e.error_db})} for module, e in of.items()}
            for name, of in report.modules.items()
        },
        "sensitivity": [
            {**s._asdict(), "errors": plain_errors(s.errors), "in_mixed": s.matrix in report.mixed}
            for s in report.sensitivities
        ],
    }
    return json.dumps(facts, indent=1) + "\n"


def report_files(out: Path, stem: str) -> dict[str, Path]:
    """Names of the report's files, by suffix."""
    return {suffix: out / f"{stem}_quantization.{suffix}" for suffix in ("json", "md", "png")}


def write_report(report: Report, files: Mapping[str, Path]) -> list[str]:
    """Write the report as JSON, as text and, where matplotlib is installed, as a figure.

    Args:
        report: what was measured.
        files: see :func:`report_files`; existing ones are replaced.

    Returns:
        Lines to print: what was written, and what was not.

    Raises:
        ValueError: the disk refused.
    """
    write_text(files["json"], to_json(report))
    remark = quantization_figure(files["png"], report.rows, report.limit_db if report.sensitivities else None)
    write_text(files["md"], markdown(report, None if remark else files["png"].name))
    written = ", ".join(str(path) for suffix, path in files.items() if suffix != "png" or not remark)
    return [*([remark] if remark else []), f"Report: {written}"]


def plain_errors(errors: Mapping[str, float]) -> dict[str, float | None]:
    """Errors as JSON knows them: None where nothing differs."""
    return {name: None if value == -math.inf else value for name, value in errors.items()}


def _with_error(mean: float | None, error: float | None) -> str:
    return "-" if mean is None else f"{mean:.3f}" if error is None else f"{mean:.3f} ±{error:.3f}"


def _decibels(value: float | None) -> str:
    return "exact" if value is None or value == -math.inf else f"{value:.1f}"
