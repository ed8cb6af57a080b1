"""The report of a study: tables as Markdown, the same as JSON, and two figures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tdmpc2.studies.blocks import Block, Figure, Heading, Lines, Paragraph, Table, as_markdown
from tdmpc2.studies.curves import study_figure
from tdmpc2.studies.figures import score_figure
from tdmpc2.studies.labels import explained
from tdmpc2.studies.runs import Study
from tdmpc2.studies.summary import rows_of
from tdmpc2.support.files import directory_locked, json_text, write_text
from tdmpc2.support.intervals import Interval

_CAPTION = """\
Score: of the last evaluation after the first step that all runs have, mean over runs that differ only in their seed;
it says of which step where that is not the end. The normalised score, or the mean return where returns have no known
scale; none where some tasks have a scale and others have not. In brackets: 95 % interval of the mean over seeds from
Student's t distribution (Welch's for differences); there is none with one seed, because one run says nothing of how
much another would differ. Control: same data, steps, batch size and all other settings without a teacher. Best: the
highest score of a run's evaluations, mean over runs; it is chosen by the same episodes, so it is too high by chance.
Losses: of the last logged batch, mean over runs. Hours: mean, with evaluations."""

_HELDOUT_CAPTION = """\
On episodes that no run was trained on (`tdmpc2 heldout`): mean over seeds and 95 % intervals as above. Value
errors are differences from the teacher's values, because there are no others; they favour a student distilled from
them."""

#: Held-out errors that are columns of their table; the JSON file has all of them.
_HELDOUT = {
    "reward_rmse": "reward RMSE",
    "reward_horizon_rmse": "reward RMSE over the horizon",
    "value_rmse": "value RMSE",
    "value_horizon_rmse": "value RMSE over the horizon",
}

_TITLES = {"report.png": "Scores", "curves.png": "Learning curves"}


def write_report(study: Study, out: Path, force: bool) -> list[str]:
    """Write ``report.md``, ``report.json`` and, where matplotlib is installed, ``report.png`` and ``curves.png``.

    Args:
        study: the runs.
        out: directory of the files.
        force: replace them.

    Returns:
        Lines to print: the table, what was written, and what was not.

    Raises:
        ValueError: one of the files exists and ``force`` is false, or the disk refused.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"Could not write {out}: {error.strerror}. --out DIR writes elsewhere") from error
    with directory_locked(out, f"Another report is being written to {out}: wait for it, or --out DIR"):
        return _write(study, out, force)


def _write(study: Study, out: Path, force: bool) -> list[str]:
    text_file, json_file, *figures = files = [
        out / name for name in "report.md report.json report.png curves.png".split()
    ]
    if not force and (existing := [str(path) for path in files if os.path.lexists(path)]):
        raise ValueError(f"There is already {', '.join(existing)}: --force replaces, --out DIR writes elsewhere")
    rows = rows_of(study)
    remarks = {figures[0]: score_figure(figures[0], rows), figures[1]: study_figure(figures[1], study)}
    drawn = [path for path, remark in remarks.items() if not remark]
    for path in set(figures) - set(drawn):
        path.unlink(missing_ok=True)  # an earlier report's, which the text does not show
    write_text(text_file, text := markdown(study, rows, [path.name for path in drawn]))
    write_text(json_file, to_json(study, rows))
    written = ", ".join(map(str, (text_file, json_file, *drawn)))
    return [text, *dict.fromkeys(filter(None, remarks.values())), f"Report: {written}"]


def markdown(study: Study, rows: Sequence[dict[str, Any]], figures: Sequence[str] = ()) -> str:
    """Write the report as text; the arguments are those of :func:`blocks_of`."""
    return as_markdown(blocks_of(study, rows, figures))


def blocks_of(study: Study, rows: Sequence[dict[str, Any]], figures: Sequence[str] = ()) -> list[Block]:
    """Compose the report.

    Args:
        study: the runs.
        rows: as from :func:`~tdmpc2.studies.summary.rows_of`.
        figures: names of the figures that there are.
    """
    blocks: list[Block] = [Heading("Runs", 1), Table(*_columns(rows)) if rows else Paragraph("No run is finished.")]
    if letters := explained({row["name"]: row["label"] for row in rows}):
        blocks.append(Table(["runs", "settings"], letters, numbers=False))
    blocks += map(Paragraph, [_CAPTION, *_missing_controls(study)])
    blocks += [Figure(_TITLES[name], name) for name in figures]
    if named := [row for row in rows if row["returns"]]:
        tasks = sorted({task for row in named for task in row["returns"]})
        cells = [[task, *(_number(row["returns"].get(task), 1) for row in named)] for task in tasks]
        headings = ["task", *(row["label"] for row in named)]
        blocks += [Heading("Return per task, last evaluation"), Table(headings, cells)]
    measured = [row for row in rows if row["heldout"]]
    remarks = _heldout_remarks(study)
    if measured or remarks:
        blocks.append(Heading("Held-out errors"))
    if measured:
        blocks += [Table(*_heldout_columns(measured)), Paragraph(_HELDOUT_CAPTION)]
    if remarks:
        blocks.append(Lines(remarks))
    if study.unfinished:
        lines = [[str(run.path), f"{run.step:,}", f"{run.config['steps']:,}"] for run in study.unfinished]
        blocks += [Heading("Unfinished, not in the table"), Table(["run", "step", "of"], lines)]
    if study.left_out:
        blocks += [Heading("Left out"), Lines(study.left_out)]
    return blocks


def to_json(study: Study, rows: Sequence[dict[str, Any]]) -> str:
    """Write the same as JSON."""
    unfinished = [{"path": str(run.path), "step": run.step, "steps": run.config["steps"]} for run in study.unfinished]
    content = {"groups": list(rows), "unfinished": unfinished, "left_out": list(study.left_out)}
    return json_text(content, indent=1) + "\n"


def _columns(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; a column that no row fills is left out."""

    def loss(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: _number(row["losses"].get(name), 4)

    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("runs", _label),
        ("seeds", lambda row: str(row["runs"])),
        ("steps", lambda row: f"{row['steps']:,}"),
        ("score", lambda row: _estimate(row["score"], row["interval"])),
        (
            "of step",
            lambda row: _score_step(row["score"], row["score_step"], row["steps"]),
        ),
        ("minus control", lambda row: _estimate(row["minus_control"], row["minus_control_interval"], "+")),
        ("best", lambda row: _number(row["best"], 2)),
    ]
    losses = dict.fromkeys(name for row in rows for name in row["losses"])
    shown = [name for name in losses if name.startswith(("reward", "value", "distillation"))]
    columns += [(name.replace("_", " "), loss(name)) for name in shown]
    columns.append(("hours", lambda row: _number(row["hours"], 2)))
    filled = [(name, cells) for name, of in columns if any((cells := [of(row) for row in rows]) and set(cells) - {"-"})]
    return [name for name, _ in filled], [list(line) for line in zip(*(cells for _, cells in filled), strict=True)]


def _score_step(score: float | None, step: int | None, steps: int) -> str:
    """Say of which step a score is, unless it is that of the end."""
    if score is None or step == steps:
        return "-"
    return "of different steps" if step is None else f"{step:,}"


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
    return f"{row['label']} (control)" if row["is_control"] else str(row["label"])


def _missing_controls(study: Study) -> list[str]:
    """Say which groups have nothing to be compared with."""
    alone = [group.name for group in study.groups if study.control_of(group) is None]
    if not alone:
        return []
    return [
        f"No finished run without a teacher has the same budget as: {'; '.join(alone)}. The same command with "
        "`teacher_config=null` and the same seeds trains such a control."
    ]


def _heldout_remarks(study: Study) -> list[str]:
    """Reasons against comparing the held-out errors of a table."""
    runs = [run for group in study.groups for run in group.runs if run.heldout]
    lines = [
        f"{run.path}: of step {run.heldout.get('step')}, not of the last one; left out"
        for run in runs
        if run.heldout.get("step") != run.step
    ]
    if len({json.dumps(run.heldout.get("protocol")) for run in runs}) > 1:
        lines.append("They were not all measured on the same data in the same way, so that they do not compare.")
    return lines


def _estimate(mean: float | None, interval: Interval | None, sign: str = "", digits: int = 2) -> str:
    if mean is None:
        return "-"
    form = f"{sign}.{digits}f"
    return f"{mean:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else f"{mean:{form}}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
