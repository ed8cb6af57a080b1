"""Figures of studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tdmpc2.data.figures import figure_class
from tdmpc2.evaluation import Interval
from tdmpc2.files import replacing


def score_figure(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Scores of the groups of a study as a PNG; the groups without a teacher are bands.

    If the groups with a teacher differ in one number, their scores are drawn over it, else as bars.

    Args:
        path: file to write.
        rows: as from :func:`~tdmpc2.report.rows_of`.

    Returns:
        Why there is no figure, or nothing.

    Raises:
        ValueError: the disk refused.
    """
    scored = [row for row in rows if row.get("score") is not None]
    if not scored:
        return "No figure: no run was evaluated (student_config.eval_freq)"
    taught = [row for row in scored if row["taught"]]
    drawn, bands = taught or scored, [row for row in scored if not row["taught"]] if taught else []
    key = swept(taught)
    try:
        figure = figure_class()(figsize=(6.5, 4 if key else 1.5 + 0.3 * len(drawn)), layout="constrained")
    except ModuleNotFoundError as error:
        return f"No figure: {error}"
    axes = figure.subplots()
    line, span = (axes.axhline, axes.axhspan) if key else (axes.axvline, axes.axvspan)
    for index, row in enumerate(bands):
        colour = f"C{index + 1}"
        line(row["score"], color=colour, linewidth=1, label=row["name"])
        if row["interval"]:
            span(*row["interval"], color=colour, alpha=0.15, linewidth=0)
    means, errors = [row["score"] for row in drawn], [_half(row["interval"]) for row in drawn]
    if key:
        values = [row["values"][key] for row in drawn]
        axes.errorbar(values, means, yerr=errors, marker="o", capsize=3, color="C0", label="with a teacher")
        axes.set(xlabel=key, ylabel="normalized score")
    else:
        axes.barh(range(len(drawn)), means, xerr=errors, capsize=3, color="C0", alpha=0.8)
        axes.set_yticks(range(len(drawn)), [row["name"] for row in drawn], fontsize=7)
        axes.set(xlabel="normalized score", ylim=(len(drawn) - 0.5, -0.5))
    axes.set_title("error bars and bands: 95 % intervals over seeds", fontsize=8)
    if bands or key:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return ""


def swept(rows: Sequence[dict[str, Any]]) -> str | None:
    """The key in which groups differ, if it is one and its values are numbers."""
    keys = {key for row in rows for key in row["values"]}
    differing = [key for key in keys if len({str(row["values"].get(key)) for row in rows}) > 1]
    if len(differing) != 1:
        return None
    numeric = all(isinstance(row["values"].get(differing[0]), (int, float)) for row in rows)
    return differing[0] if numeric else None


def _half(interval: Interval | None) -> float:
    return (interval[1] - interval[0]) / 2 if interval else float("nan")  # no bar
