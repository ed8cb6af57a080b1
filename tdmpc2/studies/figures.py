"""Figures of studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tdmpc2.play.evaluation import Interval
from tdmpc2.support.figures import figure_class, save_figure


def score_figure(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Scores and held-out errors of the groups of a study as a PNG; the groups without a teacher are bands.

    If the groups with a teacher differ in one number, their scores are drawn over it, else as bars.

    Args:
        path: file to write.
        rows: as from :func:`~tdmpc2.studies.report.rows_of`.

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
    panels = _panels([*drawn, *bands])
    try:
        size = (6.5 if len(panels) == 1 else 3.6 * len(panels), 4 if key else 1.5 + 0.3 * len(drawn))
        figure = figure_class()(figsize=size, layout="constrained")
    except ModuleNotFoundError as error:
        return f"No figure: {error}"
    for axes, (label, estimate) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        line, span = (axes.axhline, axes.axhspan) if key else (axes.axvline, axes.axvspan)
        for index, row in enumerate(bands):
            colour = f"C{index + 1}"
            mean, interval = estimate(row)
            line(mean, color=colour, linewidth=1, label=row["name"])
            if interval:
                span(*interval, color=colour, alpha=0.15, linewidth=0)
        means = [estimate(row)[0] for row in drawn]
        errors = [_half(estimate(row)[1]) for row in drawn]
        if key:
            values = [row["values"][key] for row in drawn]
            axes.errorbar(values, means, yerr=errors, marker="o", capsize=3, color="C0", label="with a teacher")
            axes.set(xlabel=key, ylabel=label)
        else:
            axes.barh(range(len(drawn)), means, xerr=errors, capsize=3, color="C0", alpha=0.8)
            first = not label.startswith("held-out")
            axes.set_yticks(range(len(drawn)), [row["name"] if first else "" for row in drawn], fontsize=7)
            axes.set(xlabel=label, ylim=(len(drawn) - 0.5, -0.5))
    figure.suptitle("error bars and bands: 95 % intervals over seeds", fontsize=8)
    if bands or key:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    save_figure(figure, path)
    return ""


def _panels(rows: Sequence[dict[str, Any]]) -> dict[str, Callable[[dict[str, Any]], tuple[float, Interval | None]]]:
    """What is drawn, by the label of its axis: the score, and the held-out errors that all rows have."""

    def heldout(name: str, row: dict[str, Any]) -> tuple[float, Interval | None]:
        return row["heldout"][name], row["heldout_interval"][name]

    panels: dict[str, Any] = {"normalized score": lambda row: (row["score"], row["interval"])}
    for name, label in (("reward_rmse", "held-out reward RMSE"), ("value_rmse", "held-out value RMSE")):
        if all(name in row.get("heldout", {}) for row in rows):
            panels[label] = partial(heldout, name)
    return panels


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
