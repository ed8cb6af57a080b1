"""The report of a quantisation: tables, JSON and a figure of what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tdmpc2.play.results import versions
from tdmpc2.quantization.calibration import Inputs, Sensitivity
from tdmpc2.quantization.figure import quantization_figure
from tdmpc2.quantization.measure import Settings
from tdmpc2.quantization.recipes import ModuleError, plain_errors
from tdmpc2.support.files import json_text, write_text
from tdmpc2.support.intervals import format_interval
from tdmpc2.support.tables import Cells, markdown_table

_CAPTION = """\
Errors: RMS over the inputs, in dB relative to the RMS of the float32 model's own output (-20 dB: 10 %, -40 dB: 1 %);
`exact`: no difference. Regret: how much less the float32 model values the mean of a plan than that of its own plan, in
standard deviations of the values of its first iteration; mean and its standard error over {plans} of the inputs. Times:
medians of {repeats} turns of all rows in one process, one environment, {threads} threads, by the CPU kernels where
there are any, else uncompiled; a machine's speed changes, so that only their ratios say something."""
_MIXED = """\
Mixed: as many bytes as possible in int8 while the predicted error of every output, the sum of the powers of the errors
of its matrices alone, is at most {limit:g} dB. What is not int8 has an error of its own, which is not counted."""


class Report(NamedTuple):
    """All that is written."""

    checkpoint: str
    inputs: Inputs
    settings: Settings
    rows: list[dict[str, Any]]  # see tdmpc2.quantization.measure
    sensitivities: Sequence[Sensitivity]  # empty without the recipe mixed
    mixed: frozenset[str]  # the matrices that are int8 in it
    limit_db: float  # of its predicted errors
    modules: dict[str, dict[str, ModuleError]]  # of the recipes that were written


def tables(report: Report) -> list[Cells]:
    """Arrange costs and errors of the recipes, and errors of every matrix alone."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "recipe": lambda row: row["name"],
        "computed in": lambda row: row["computes_in"],
        "file bytes": lambda row: f"{row['file_bytes']:,}",
        "of fp32": lambda row: f"{row['size_ratio']:.1%}",
        "bytes in memory": lambda row: f"{row['weight_bytes']:,}",
        "regret": lambda row: _with_error(row["regret"], row["regret_error"]),
        "iteration ms": lambda row: f"{row['iteration_ms']:.2f}",
        "plan ms": lambda row: f"{row['plan_ms']:.1f}",
    }
    names = [name.replace("_", " ") for name in report.rows[0]["errors"]]
    costs = [[cell(row) for cell in columns.values()] for row in report.rows]
    errors = [[row["name"], *map(_decibels, row["errors"].values())] for row in report.rows[1:]]
    result = [Cells("Size, regret and time", list(columns), costs), Cells("Errors in dB", ["recipe", *names], errors)]
    if "score" in report.rows[0]:
        scores = [
            [
                row["name"],
                f"{row['score']:.2f} {format_interval(row['interval'])}",
                f"{row['minus_fp32']:+.2f} {format_interval(row['minus_fp32_interval'])}",
            ]
            for row in report.rows
        ]
        result.append(Cells("Scores", ["recipe", "score", "minus fp32"], scores))
    if report.sensitivities:
        alone = [
            [name, f"{saved:,}", *map(_decibels, found.values()), "yes" if name in report.mixed else ""]
            for name, saved, found in report.sensitivities
        ]
        result.append(Cells("One matrix alone in int8, dB", ["matrix", "bytes saved", *names, "in mixed"], alone))
    return result


def equal_files(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which recipes came to the same file, in a line for each.

    ``mixed`` is ``int8`` where every matrix is within the limit of errors; without a word two equal rows puzzle.

    Args:
        rows: as from :func:`~tdmpc2.quantization.measure.measure`.
    """
    alike: dict[str, list[str]] = {}
    for row in rows[1:]:
        alike.setdefault(json.dumps([row["weight_bytes"], row["errors"]]), []).append(row["name"])
    return [
        f"{' and '.join(names)} are the same model: their outputs agree exactly"
        + (", because every matrix is within the limit of mixed in int8." if set(names) == {"int8", "mixed"} else ".")
        for names in alike.values()
        if len(names) > 1
    ]


def module_table(report: Report) -> Cells:
    """Arrange sizes and weight errors of the recipes by module."""
    headings = ["module", *(f"{name} {what}" for name in report.modules for what in ("bytes", "dB"))]
    recipes = list(report.modules.values())
    lines = [
        [name, *(text for of in recipes for text in (f"{of[name].bytes:,}", _decibels(of[name].error_db)))]
        for name in recipes[0]
    ]
    return Cells("Bytes and weight errors in dB", headings, lines)


def markdown(report: Report, figure: str | None) -> str:
    """Write the report as text."""
    parts = [f"# Quantisation of {report.checkpoint}", f"Inputs: {report.inputs.source}."]
    for cells in [*tables(report), *([module_table(report)] if report.modules else [])]:
        parts += [f"## {cells.title}", markdown_table(cells.headings, cells.rows)]
    if alike := equal_files(report.rows):
        parts.append("\n".join(alike))
    plans, repeats = min(report.settings.plans, len(report.inputs.obs)), report.settings.repeats
    parts.append(_CAPTION.format(plans=plans, repeats=repeats, threads=torch.get_num_threads()))
    if report.sensitivities:
        parts.append(_MIXED.format(limit=report.limit_db))
    if figure:
        parts.append(f"![Errors, sizes and regret]({figure})")
    return "\n\n".join(parts) + "\n"


def to_json(report: Report) -> str:
    """Write the same as JSON; an error of null is none at all."""
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
    return json_text(facts, indent=1, instead=str) + "\n"  # null says that nothing differs


def report_files(out: Path, stem: str) -> dict[str, Path]:
    """Name the report's files, by suffix."""
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
    return [*equal_files(report.rows), *([remark] if remark else []), f"Report: {written}"]


def _with_error(mean: float | None, error: float | None) -> str:
    return "-" if mean is None else f"{mean:.3f}" if error is None else f"{mean:.3f} ±{error:.3f}"


def _decibels(value: float | None) -> str:
    return "exact" if value is None or value == -math.inf else f"{value:.1f}"
