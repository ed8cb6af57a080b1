"""Learning curves: scores, losses and speed over steps and over hours, of one run or of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tdmpc2.studies.figures import sensible_range
from tdmpc2.studies.labels import wrapped
from tdmpc2.studies.public_points import LABEL, published_points
from tdmpc2.studies.runs import Group, Run, Study
from tdmpc2.support.figures import figure_class, free_figure_name, save_figure
from tdmpc2.support.files import read_json
from tdmpc2.support.intervals import mean_interval
from tdmpc2.tracking.curves import Curve, read_curves

Floats = NDArray[np.float64]
EPISODES = "episode/return"
_MOST_TASKS = 6  # that have panels of their own
#: What is drawn, in this order: title -> names of its curves, of which the first that a run has is taken.
_PANELS = {
    "score": ("eval/normalized_score", "eval/return", "eval/mixed_score"),
    "return of episodes\nwhile learning": (EPISODES,),
    "total loss": ("train/total_loss",),
    "consistency loss": ("train/consistency_loss",),
    "reward loss": ("train/reward_loss",),
    "value loss": ("train/value_loss",),
    "policy loss": ("train/pi_loss",),
    "updates per second": ("speed/updates_per_s", "speed/it_per_s"),
}
_DISTILL = "distill/"
_GRID = 200  # points of a mean curve
_AXES = ("step", "hours")


class Band(NamedTuple):
    """A mean curve over several runs; ``low`` and ``high`` are nan where fewer than two runs have got to."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


def draw_run(run_dir: str | Path) -> str:
    """Draw the learning curves of one run as ``curves.png`` in its directory, or under the next free name.

    Meant for the end of a training run, which no figure may spoil: whatever goes wrong is the line that is returned.

    Returns:
        A line to print: where the figure is, or why there is none.
    """
    path = free_figure_name(Path(run_dir) / "curves.png")
    try:
        configs = [read_json(Path(run_dir) / "run.json")] if (Path(run_dir) / "run.json").exists() else []
        return _draw(path, {"": [read_curves(run_dir)]}, configs) or f"Learning curves: {path}"
    except Exception as error:  # a figure is never worth a run: whatever stops it is said instead
        return f"No learning curves: {type(error).__name__}: {error}"


def study_figure(path: Path, study: Study) -> str:
    """Draw the learning curves of all groups of a study, runs that are not finished among them.

    Args:
        path: the PNG to write.
        study: its runs; those of one group are a mean and its 95 % interval over seeds.

    Returns:
        Why there is no figure, or nothing.

    Raises:
        ValueError: the disk refused.
    """
    groups = [*study.groups, *(Group(f"unfinished: {run.path}", (run,), {}) for run in study.unfinished)]
    configs = [run.config for group in groups for run in group.runs]
    return _draw(path, {group.name: [_curves(run) for run in group.runs] for group in groups}, configs, force=True)


def mean_curve(curves: Sequence[tuple[Floats, Floats]]) -> Band:
    """Average curves that were not logged at the same places.

    Args:
        curves: x and value of each run, [n] each, x ascending; the runs' lengths may differ.

    Returns:
        The mean of those runs that reach so far, interpolated between their points, with Student's 95 % interval over
        them. One curve is returned as it is.
    """
    known = [(x[keep], y[keep]) for x, y in curves if (keep := np.isfinite(x) & np.isfinite(y)).any()]
    if not known:
        empty = np.zeros(0)
        return Band(empty, empty, empty, empty)
    if len(known) == 1:
        x, y = known[0]
        return Band(x, y, np.full(len(x), np.nan), np.full(len(x), np.nan))
    places = np.unique(np.concatenate([x for x, _ in known]))
    if len(places) > _GRID:
        places = np.linspace(places[0], places[-1], _GRID)
    values = np.array([np.interp(places, x, y, left=np.nan, right=np.nan) for x, y in known])  # [runs, places]
    columns = [column[np.isfinite(column)] for column in values.T]
    limits = [mean_interval(column) or (np.nan, np.nan) for column in columns]
    mean = np.array([column.mean() if len(column) else np.nan for column in columns])
    return Band(places, mean, np.array([low for low, _ in limits]), np.array([high for _, high in limits]))


def _curves(run: Run) -> dict[str, Curve]:
    try:
        return read_curves(run.path)
    except (ValueError, OSError):  # the table says what is wrong with it: one run does not stop the figure
        return {}


def _draw(
    path: Path,
    groups: Mapping[str, Sequence[Mapping[str, Curve]]],
    configs: Sequence[Mapping[str, Any]] = (),
    force: bool = False,
) -> str:
    """Write the figure: a line of panels for each metric, over steps on the left and over hours on the right."""
    panels = _metrics(groups)
    if not panels:
        return "No learning curves: no run has logged anything yet"
    named = [name for name in groups if name]
    timed = any(np.isfinite(c.hours).any() for runs in groups.values() for curves in runs for c in curves.values())
    axes_names = _AXES if timed else _AXES[:1]
    lines = sum(wrapped(name, 60).count("\n") + 1 for name in named)
    size = (4.6 * len(axes_names) + 0.4, 1.9 * len(panels) + 0.6 + 0.16 * lines)
    try:
        figure = figure_class()(figsize=size, layout="constrained")
    except ModuleNotFoundError as error:
        return f"No learning curves: {error}"
    grid = figure.subplots(len(panels), len(axes_names), squeeze=False, sharex="col", sharey="row")
    for line, (title, names) in zip(grid, panels.items(), strict=True):
        for axes, axis in zip(line, axes_names, strict=True):
            _draw_panel(axes, groups, names, axis)
        line[0].set_ylabel(title, fontsize=8)
        _limit(line[0], groups, names)
        if names == (EPISODES,):
            _draw_published(line[0], configs)
    for axes, axis in zip(grid[-1], axes_names, strict=True):
        axes.set_xlabel(_steps_of(groups) if axis == "step" else "hours of training", fontsize=8)
    if any(len(runs) > 1 for runs in groups.values()):
        figure.suptitle("means and 95 % intervals over seeds; a thin line is one run", fontsize=8)
    if named:
        handles, labels = _legend(grid)
        figure.legend(handles, labels, loc="outside lower center", fontsize=7)
    save_figure(figure, path, force=force)
    return ""


def _steps_of(groups: Mapping[str, Sequence[Mapping[str, Curve]]]) -> str:
    """Say what the steps of the runs are."""
    online = {EPISODES in curves for runs in groups.values() for curves in runs if curves}
    return "steps" if len(online) > 1 else "agent steps" if True in online else "updates"


def _metrics(groups: Mapping[str, Sequence[Mapping[str, Curve]]]) -> dict[str, tuple[str, ...]]:
    """Choose the panels for which there is something to draw: title -> possible names of the curve."""
    logged = dict.fromkeys(name for runs in groups.values() for curves in runs for name in curves)
    panels = {title: names for title, names in _PANELS.items() if any(name in logged for name in names)}
    tasks = [name for name in logged if name.startswith("episode/") and name != EPISODES]
    several = any(len(curves.keys() & set(tasks)) > 1 for runs in groups.values() for curves in runs)
    if several and len(tasks) <= _MOST_TASKS:
        own = {f"return of\n{wrapped(name.removeprefix('episode/'), 24)}": (name,) for name in tasks}
        before = [title for title in panels if panels[title][0].startswith(("eval/", "episode/"))]
        panels = {title: panels[title] for title in before} | own | panels
    speed = panels.pop("updates per second", None)
    for name in logged:
        if name.startswith(_DISTILL) and name.endswith("loss"):
            panels[f"distillation:\n{name.removeprefix(_DISTILL).replace('_', ' ')}"] = (name,)
    return panels | ({"updates per second": speed} if speed else {})


def _found(curves: Mapping[str, Curve], names: Sequence[str]) -> Curve | None:
    return next((curves[name] for name in names if name in curves), None)


def _draw_panel(
    axes: Any, groups: Mapping[str, Sequence[Mapping[str, Curve]]], names: Sequence[str], axis: str
) -> None:
    for index, (name, runs) in enumerate(groups.items()):
        found = [curve for curves in runs if (curve := _found(curves, names))]
        series = [(np.asarray(getattr(curve, axis), float), curve.value) for curve in found]
        band = mean_curve(series)
        colour = f"C{index % 10}"
        style = {"color": colour, "marker": "." if len(band.x) < 20 else "", "markersize": 4, "linewidth": 1.2}
        if len(series) > 1:
            for x, y in series:
                axes.plot(x, y, color=colour, linewidth=0.5, alpha=0.35)
            axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(band.x, band.mean, label=wrapped(name, 60), **style)
    axes.grid(color="lightgrey", linewidth=0.4)
    axes.tick_params(labelsize=7)


def _draw_published(axes: Any, configs: Sequence[Mapping[str, Any]]) -> None:
    """Draw what others have published for the same task, as far as the curves go."""
    last = max((line.get_xdata().max() for line in axes.lines if len(line.get_xdata())), default=0)
    points = published_points(configs, last)
    if not points:
        return
    step, mean, low, high = (np.array(column) for column in zip(*points, strict=True))
    style = {"color": "0.35", "marker": "D", "markersize": 4, "capsize": 3, "linestyle": "none"}
    handle = axes.errorbar(step, mean, [mean - low, high - mean], **style)
    axes.set_ylim(top=max(axes.get_ylim()[1], 1.05 * high.max()))
    axes.legend([handle], [LABEL], fontsize=6, loc="lower right")


def _limit(axes: Any, groups: Mapping[str, Sequence[Mapping[str, Curve]]], names: Sequence[str]) -> None:
    """Leave the curves their room: intervals over two seeds may be many times as high as the curves themselves."""
    found = [curve.value for runs in groups.values() for curves in runs if (curve := _found(curves, names))]
    values = np.concatenate(found) if found else np.zeros(0)
    low, high = sensible_range(values)
    bottom, top = axes.get_ylim()
    if bottom < low or top > high:
        axes.set_ylim(max(low, bottom), min(high, top))


def _legend(grid: Any) -> tuple[list[Any], list[str]]:
    """Collect the handles of all groups; not every group is in every panel."""
    found: dict[str, Any] = {}
    for axes in grid.flatten():
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
