"""A study as a table: scores with intervals over random seeds, and their differences to runs without a teacher."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from tdmpc2.config import as_typed, from_record
from tdmpc2.play.evaluation import Interval
from tdmpc2.studies.runs import Group, Run, Study

_CAPTION = """\
Score: the normalised score of the last evaluation, mean over runs that differ only in their seed. In brackets: 95 %
interval of the mean over seeds from Student's t distribution (Welch's for differences); `-` with one seed, because one
run says nothing of how much another seed would differ. Control: same data, steps, batch size and all other settings
without a teacher. Best: the highest score of a run's evaluations, mean over runs; it is chosen by the same episodes, so
it is too high by chance. Losses: of the last logged batch, mean over runs. Hours: mean, with evaluations."""

_HELDOUT_CAPTION = """\
On episodes that no run was trained on (`python -m tdmpc2.heldout`): mean over seeds and 95 % intervals as above. Value
errors are differences from the teacher's values, because there are no others; they favour a student taught by them."""

#: Held-out errors that are columns of their table; the JSON file has all of them.
_HELDOUT = {
    "reward_rmse": "reward RMSE",
    "reward_horizon_rmse": "reward RMSE over the horizon",
    "value_rmse": "value RMSE",
}


def mean_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean of n values from the t distribution with n - 1 degrees of freedom; None if n < 2."""
    if len(values) < 2:
        return None
    half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / len(values) ** 0.5)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def difference_interval(first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """Welch's 95 % interval of the difference of means, first minus second; None if one has fewer than two values."""
    if min(len(first), len(second)) < 2:
        return None
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    difference, variance = float(np.mean(first) - np.mean(second)), sum(parts)
    if variance == 0:
        return difference, difference
    degrees = variance**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (first, second), strict=True))
    half = float(stdtrit(degrees, 0.975)) * variance**0.5
    return difference - half, difference + half


def rows_of(study: Study) -> list[dict[str, Any]]:
    """One plain dict per group, for every budget its control first.

    A budget without a control has a row with ``runs`` 0 and the ``command`` that makes one.
    """
    rows: list[dict[str, Any]] = []
    missing: list[Run] = []
    for group in study.groups:
        control = study.control_of(group)
        run = group.runs[0]
        if control is None and all(run.budget != other.budget for other in missing):
            missing.append(run)
        rows.append(_row(group, control, any(study.control_of(g) is group for g in study.groups if g.taught)))
    absent = []
    for number, run in enumerate(missing, 1):
        own = [group for group in study.groups if group.runs[0].budget == run.budget]
        seeds = sorted({run.seed for group in own for run in group.runs})
        command = control_command(run, seeds, "control" if number == 1 else f"control-{number}")
        absent.append(
            {"name": "no teacher", "taught": False, "runs": 0, "steps": run.config["steps"], "command": command}
        )
    return [*absent, *rows]


def control_command(run: Run, seeds: Sequence[int], exp_name: str) -> str:
    """What to type to train without a teacher on the budget of ``run``."""
    keys = run.budget.keys() | {"data_dir", "eval_freq"}
    changed = {key: value for key, value in from_record(run.config).typed().items() if key in keys}
    settings = [f"student_config.{key}={as_typed(value)}" for key, value in changed.items()]
    settings += [f"student_config.exp_name={exp_name}", f"student_config.seed={','.join(map(str, seeds))}"]
    sweep = ["--multirun"] if len(seeds) > 1 else []
    return shlex.join(["python", "train.py", *sweep, "teacher_config=null", *settings])


def markdown(study: Study, rows: Sequence[dict[str, Any]], figure: str | None) -> str:
    """The report as text."""
    parts = ["# Runs", _table(*_columns(rows)), _CAPTION]
    if figure:
        parts.append(f"![Scores]({figure})")
    if any(row.get("returns") for row in rows):
        named = [row for row in rows if row.get("returns")]
        tasks = sorted({task for row in named for task in row["returns"]})
        cells = [[task, *(_number(row["returns"].get(task), 1) for row in named)] for task in tasks]
        parts += ["## Return per task, last evaluation", _table(["task", *(row["name"] for row in named)], cells)]
    measured = [row for row in rows if row.get("heldout")]
    if measured or _remarks(study):
        parts.append("## Held-out errors")
    if measured:
        parts += [_table(*_heldout_columns(measured)), _HELDOUT_CAPTION]
    if remarks := _remarks(study):
        parts.append("\n".join(f"- {line}" for line in remarks))
    if study.unfinished:
        lines = [[str(run.path), f"{run.step:,}", f"{run.config['steps']:,}"] for run in study.unfinished]
        parts += ["## Unfinished, not in the table", _table(["run", "step", "of"], lines)]
    if study.left_out:
        parts += ["## Left out", "\n".join(f"- {line}" for line in study.left_out)]
    return "\n\n".join(parts) + "\n"


def to_json(study: Study, rows: Sequence[dict[str, Any]]) -> str:
    """The same as JSON."""
    unfinished = [{"path": str(run.path), "step": run.step, "steps": run.config["steps"]} for run in study.unfinished]
    content = {"groups": list(rows), "unfinished": unfinished, "left_out": list(study.left_out)}
    return json.dumps(content, indent=1) + "\n"


def _row(group: Group, control: Group | None, is_control: bool) -> dict[str, Any]:
    runs, scores = group.runs, group.scores
    row: dict[str, Any] = {
        "name": group.name,
        "taught": group.taught,
        "values": group.values,
        "runs": len(runs),
        "seeds": [run.seed for run in runs],
        "paths": [str(run.path) for run in runs],
        "steps": runs[0].config["steps"],
        "score": _mean(scores),
        "interval": mean_interval(scores),
        "best": _mean([max(run.scores.values()) for run in runs if run.scores]),
        "control": None if control is None else control.name,
        "is_control": is_control,
        "minus_control": None,
        "minus_control_interval": None,
        "losses": _means([{k: v for k, v in run.losses.items() if k.endswith("_loss")} for run in runs]),
        "heldout": _means(_heldout(group)),
        "heldout_interval": {name: mean_interval(values) for name, values in _columns_of(_heldout(group)).items()},
        "heldout_minus_control": {},
        "returns": _means([run.returns for run in runs]),
        "hours": _mean([run.seconds / 3600 for run in runs if run.seconds is not None]),
    }
    if control is None or control is group:
        return row
    if scores and (base := control.scores):
        row["minus_control"] = float(np.mean(scores) - np.mean(base))
        row["minus_control_interval"] = difference_interval(scores, base)
    own, others = _columns_of(_heldout(group)), _columns_of(_heldout(control))
    for name in own.keys() & others.keys():
        difference = float(np.mean(own[name]) - np.mean(others[name]))
        row["heldout_minus_control"][name] = (difference, difference_interval(own[name], others[name]))
    return row


def _heldout(group: Group) -> list[dict[str, float]]:
    """Held-out errors of the runs in which they are those of the last step."""
    return [run.heldout.get("errors", {}) for run in group.runs if run.heldout.get("step") == run.step]


def _columns(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; a column that no row fills is left out."""

    def part(kind: str, name: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: _number(row.get(kind, {}).get(name), 4)

    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("runs", _label),
        ("seeds", lambda row: str(row["runs"])),
        ("steps", lambda row: f"{row['steps']:,}"),
        ("score", lambda row: _estimate(row.get("score"), row.get("interval"))),
        ("minus control", lambda row: _estimate(row.get("minus_control"), row.get("minus_control_interval"), "+")),
        ("best", lambda row: _number(row.get("best"), 2)),
    ]
    losses = dict.fromkeys(name for row in rows for name in row.get("losses", {}))
    shown = [name for name in losses if name.startswith(("reward", "value", "distillation"))]
    columns += [(name.replace("_", " "), part("losses", name)) for name in shown]
    columns.append(("hours", lambda row: _number(row.get("hours"), 2)))
    filled = [(name, cells) for name, of in columns if any((cells := [of(row) for row in rows]) and set(cells) - {"-"})]
    return [name for name, _ in filled], [list(line) for line in zip(*(cells for _, cells in filled), strict=True)]


def _heldout_columns(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the held-out errors."""
    names = [name for name in _HELDOUT if any(name in row["heldout"] for row in rows)]
    headings = ["runs", *(text for name in names for text in (_HELDOUT[name], "minus control"))]
    lines = []
    for row in rows:
        cells = [_label(row)]
        for name in names:
            difference, interval = row["heldout_minus_control"].get(name, (None, None))
            cells.append(_estimate(row["heldout"].get(name), row["heldout_interval"].get(name), digits=4))
            cells.append(_estimate(difference, interval, "+", 4))
        lines.append(cells)
    return headings, lines


def _label(row: dict[str, Any]) -> str:
    if not row["runs"]:
        return f"no run without a teacher with the same budget: run `{row['command']}`"
    return f"{row['name']} (control)" if row["is_control"] else str(row["name"])


def _remarks(study: Study) -> list[str]:
    """What stands against comparing the held-out errors of a table."""
    runs = [run for group in study.groups for run in group.runs if run.heldout]
    lines = [
        f"{run.path}: of step {run.heldout.get('step')}, not of the last one; left out"
        for run in runs
        if run.heldout.get("step") != run.step
    ]
    if len({json.dumps(run.heldout.get("protocol")) for run in runs}) > 1:
        lines.append("They were not all measured on the same data in the same way, so that they do not compare.")
    return lines


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _estimate(mean: float | None, interval: Interval | None, sign: str = "", digits: int = 2) -> str:
    if mean is None:
        return "-"
    form = f"{sign}.{digits}f"
    limits = f"[{interval[0]:{form}}, {interval[1]:{form}}]" if interval else "-"
    return f"{mean:{form}} {limits}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each number over the dicts that have it."""
    return {name: float(np.mean(values)) for name, values in _columns_of(rows).items()}


def _columns_of(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """The values of each number."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row[name] for row in rows if name in row] for name in names}


def write_report(study: Study, out: Path, force: bool) -> list[str]:
    """Write ``report.md``, ``report.json`` and, where matplotlib is installed, ``report.png``.

    Args:
        study: the runs.
        out: directory of the three files.
        force: replace them.

    Returns:
        Lines to print: the table, what was written, and what was not.

    Raises:
        ValueError: one of the files exists and ``force`` is false, or the disk refused.
    """
    from tdmpc2.studies.figures import score_figure
    from tdmpc2.support.files import write_text

    files = [out / f"report.{suffix}" for suffix in ("md", "json", "png")]
    if not force and (existing := [str(path) for path in files if path.exists()]):
        raise ValueError(f"There is already {', '.join(existing)}: --force replaces, --out DIR writes elsewhere")
    rows = rows_of(study)
    remark = score_figure(files[2], rows)
    write_text(files[0], text := markdown(study, rows, None if remark else files[2].name))
    write_text(files[1], to_json(study, rows))
    written = ", ".join(str(path) for path in (files[:2] if remark else files))
    return [text, *([remark] if remark else []), f"Report: {written}"]
