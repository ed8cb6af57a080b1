"""The figure of a study: scores and held-out errors of its groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tdmpc2.studies.labels import wrapped
from tdmpc2.support.figures import figure_class, save_figure
from tdmpc2.support.intervals import Interval

_DISTILLED, _ALONE = "C0", "C1"  # colours of groups with and without a teacher


class Estimate(NamedTuple):
    """A mean of one group in one panel."""

    mean: float
    interval: Interval | None
    values: Sequence[float]  # one per run


Panels = dict[str, list[Estimate]]  # label of the axis -> an estimate for every row


def score_figure(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Draw scores and held-out errors of the groups of a study as a PNG.

    If the groups with a teacher differ in one number alone, their scores are drawn over that number and groups without
    a teacher are bands; else every group has a line of its own. Small dots are single runs.

    Args:
        path: file to write.
        rows: as from :func:`~tdmpc2.studies.summary.rows_of`.

    Returns:
        Why there is no figure, or nothing.

    Raises:
        ValueError: the disk refused.
    """
    scored = [row for row in rows if row["score"] is not None]
    if not scored:
        return "No figure: no run was evaluated (eval_freq), or its tasks have no score in common"
    key = swept([row for row in scored if row["distilled"]])
    panels = _panels(scored)
    lines = [_axis_label(row) for row in scored]
    height = 4 + 0.14 * len(scored) if key else 1.3 + sum(0.22 + 0.13 * line.count("\n") for line in lines)
    try:
        size = (6.5 if len(panels) == 1 else 2 + 3 * len(panels), height)
        figure = figure_class()(figsize=size, layout="constrained")
    except ModuleNotFoundError as error:
        return f"No figure: {error}"
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    cut = False
    for number, (panel, (label, estimates)) in enumerate(zip(axes, panels.items(), strict=True)):
        if key:
            _draw_sweep(panel, scored, estimates, key)
            panel.set(xlabel=key, ylabel=label)
        else:
            _draw_lines(panel, scored, estimates)
            panel.set_yticks(range(len(lines)), lines if number == 0 else [""] * len(lines), fontsize=7)
            panel.set(xlabel=label, ylim=(len(lines) - 0.5, -0.5))
        cut |= _limit(panel, estimates, vertical=bool(key))
    note = "lines and bands: 95 % intervals over seeds; small dots: single runs"
    cut_note = "\nintervals that end at the edge are longer, see the table" if cut else ""
    figure.suptitle(note + cut_note, fontsize=8)
    if key:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    save_figure(figure, path, force=True)  # the report has looked
    return ""


def swept(rows: Sequence[dict[str, Any]]) -> str | None:
    """Find the key in which groups differ, if it is one and its values are numbers."""
    keys = {key for row in rows for key in row["values"]}
    differing = [key for key in keys if len({str(row["values"].get(key)) for row in rows}) > 1]
    if len(differing) != 1:
        return None
    values = [row["values"].get(differing[0]) for row in rows]
    return differing[0] if all(isinstance(value, (int, float)) for value in values) else None


def sensible_range(values: Iterable[float]) -> Interval:
    """Choose limits of an axis that shows all values with room around them, whatever their intervals are.

    The interval of two seeds is wide (12.7 standard errors on either side): drawn whole it leaves the values
    themselves no room.
    """
    numbers = [value for value in values if np.isfinite(value)] or [0.0]
    low, high = min(numbers), max(numbers)
    room = max(0.75 * (high - low), 0.1 * max(abs(low), abs(high))) or 1.0
    return (max(0.0, low - room) if low >= 0 else low - room), high + room


def _panels(rows: Sequence[dict[str, Any]]) -> Panels:
    """Collect the score, and the held-out errors that all rows have."""
    name = ", ".join(dict.fromkeys(row["score_label"] for row in rows))
    panels = {name: [Estimate(row["score"], row["interval"], row["scores"]) for row in rows]}
    for name, label in (("reward_rmse", "held-out reward RMSE"), ("value_rmse", "held-out value RMSE")):
        if all(name in row["heldout"] for row in rows):
            panels[label] = [
                Estimate(row["heldout"][name], row["heldout_interval"][name], row["heldout_runs"][name]) for row in rows
            ]
    return panels


def _axis_label(row: dict[str, Any]) -> str:
    letter = "" if row["label"] == row["name"] else f"{row['label']}: "
    return wrapped(f"{letter}{row['name']}", 34)


def _draw_lines(axes: Any, rows: Sequence[dict[str, Any]], estimates: Sequence[Estimate]) -> None:
    """Draw a line for every group, its mean and interval on the horizontal axis."""
    for height, (row, estimate) in enumerate(zip(rows, estimates, strict=True)):
        colour = _DISTILLED if row["distilled"] else _ALONE
        axes.plot(estimate.values, [height] * len(estimate.values), "o", color=colour, markersize=3, alpha=0.4)
        axes.errorbar(estimate.mean, height, xerr=_bars([estimate]), marker="D", capsize=3, color=colour)
        if row["is_control"]:
            axes.axvline(estimate.mean, color=colour, linewidth=0.8, linestyle=":")
    axes.grid(axis="x", color="lightgrey", linewidth=0.5)


def _draw_sweep(axes: Any, rows: Sequence[dict[str, Any]], estimates: Sequence[Estimate], key: str) -> None:
    """Draw the groups with a teacher over the key they differ in, and the others as bands."""
    others = 0
    for row, estimate in zip(rows, estimates, strict=True):
        if row["distilled"]:
            positions = [row["values"][key]] * len(estimate.values)
            axes.plot(positions, estimate.values, "o", color=_DISTILLED, markersize=3, alpha=0.4)
            continue
        others += 1
        axes.axhline(estimate.mean, color=f"C{others}", linewidth=1, label=wrapped(row["name"], 40))
        if estimate.interval:
            axes.axhspan(*estimate.interval, color=f"C{others}", alpha=0.15, linewidth=0)
    distilled = [
        (row["values"][key], estimate) for row, estimate in zip(rows, estimates, strict=True) if row["distilled"]
    ]
    means = [estimate.mean for _, estimate in distilled]
    bars = _bars([estimate for _, estimate in distilled])
    values = [value for value, _ in distilled]
    axes.errorbar(values, means, yerr=bars, marker="D", capsize=3, color=_DISTILLED, label="with a teacher")


def _bars(estimates: Sequence[Estimate]) -> list[float]:
    """Halve the intervals; nan, for which nothing is drawn, where there is none."""
    return [(e.interval[1] - e.interval[0]) / 2 if e.interval else float("nan") for e in estimates]


def _limit(axes: Any, estimates: Sequence[Estimate], vertical: bool) -> bool:
    """Cut the axis to a sensible range if an interval leaves it; returns True if one does."""
    low, high = sensible_range(value for e in estimates for value in (e.mean, *e.values))
    cut = any(e.interval and (e.interval[0] < low or e.interval[1] > high) for e in estimates)
    if cut:
        first, last = axes.get_ylim() if vertical else axes.get_xlim()
        (axes.set_ylim if vertical else axes.set_xlim)(max(low, first), min(high, last))
    return cut
