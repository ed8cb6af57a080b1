"""Learning curves of a run, read from its directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tdmpc2.support.csv_files import read_csv
from tdmpc2.support.text import cut
from tdmpc2.tracking.names import wandb_name

#: Columns of ``speed.csv`` that are curves; ``seconds`` and ``wall_seconds`` are the axis.
_SPEED = ("it_per_s", "updates_per_s", "data_wait")


class Curve(NamedTuple):
    """One metric over a run; entries have ascending steps.

    Attributes:
        step: training steps, [n] int64.
        hours: hours since the run first started, without the breaks between its starts, [n] float64; nan where the
            run has no ``speed.csv``.
        value: the metric, [n] float64; may be nan or infinite.
    """

    step: NDArray[np.int64]
    hours: NDArray[np.float64]
    value: NDArray[np.float64]


def read_curves(run_dir: str | Path) -> dict[str, Curve]:
    """Read every metric that a run has logged, by its name in Weights & Biases (:mod:`tdmpc2.tracking.names`).

    Such names are ``train/total_loss``, ``distill/reward_loss``, ``eval/normalized_score``, ``eval/walker-walk`` (the
    return of a task) and ``speed/it_per_s``. A run that learns by acting also has ``episode/walker-walk``, returns of
    the episodes that it learns from, and ``episode/return``, the mean of all that ended with a step. Hours between
    two rows of ``speed.csv`` are interpolated. Works while the run is going on.

    Args:
        run_dir: directory of the run; its CSV files may be missing.

    Returns:
        A curve for each metric with at least one value.

    Raises:
        ValueError: a file is damaged; the message names it and the line.
    """
    directory = Path(run_dir)
    clock = _clock(directory / "speed.csv")
    points: dict[str, list[tuple[int, float]]] = {}
    for group in ("train", "eval", "speed"):
        for step, name, value in _cells(directory / f"{group}.csv"):
            if group != "speed" or name in _SPEED:
                points.setdefault(wandb_name(group, name), []).append((step, value))
    for number, row in _rows(directory / "eval_tasks.csv"):
        path = directory / "eval_tasks.csv"
        if row.get("return"):
            point = (_step(path, number, row), _number(path, number, row["return"]))
            points.setdefault(wandb_name("eval", row.get("task", "")), []).append(point)
    curves = {name: _curve(values, clock) for name, values in points.items()}
    return curves | {name: _curve(values, clock) for name, values in _episodes(directory / "episodes.csv").items()}


def wall_seconds(run_dir: Path, until: int) -> float:
    """Read from ``speed.csv`` how long a run trained, in all its starts, until a step; 0 without such a file.

    Raises:
        ValueError: the file is damaged.
    """
    steps, seconds = _clock(run_dir / "speed.csv")
    return float(seconds[steps <= until][-1])


def _clock(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and seconds since the run started, from its beginning; rows of older versions have ``seconds`` alone."""
    steps, times = [0.0], [0.0]
    for number, row in _rows(path):
        if row.get("wall_seconds"):
            now = _number(path, number, row["wall_seconds"])
        else:
            now = times[-1] + _number(path, number, row.get("seconds") or "nan")
        steps.append(_step(path, number, row))
        times.append(now)
    return np.array(steps), np.array(times)


def _curve(points: list[tuple[int, float]], clock: tuple[NDArray[np.float64], NDArray[np.float64]]) -> Curve:
    step = np.array([step for step, _ in points], np.int64)
    seconds = np.interp(step, *clock) if len(clock[0]) > 1 else np.full(len(step), np.nan)
    return Curve(step, seconds / 3600, np.array([value for _, value in points], np.float64))


def _episodes(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Mean return of the episodes that ended with a step: of each task, and of all tasks."""
    returns: dict[str, dict[int, list[float]]] = {}
    for number, row in _rows(path):
        if row.get("return"):
            step, value = _step(path, number, row), _number(path, number, row["return"])
            for name in ("return", row.get("task", "")):
                returns.setdefault(wandb_name("episode", name), {}).setdefault(step, []).append(value)
    return {name: [(step, float(np.mean(of))) for step, of in steps.items()] for name, steps in returns.items()}


def _cells(path: Path) -> Iterator[tuple[int, str, float]]:
    """Step, column and value of each cell that is not empty."""
    for number, row in _rows(path):
        step = _step(path, number, row)
        for name, text in row.items():
            if text and name != "step":
                yield step, name, _number(path, number, text)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a file."""
    return enumerate(read_csv(path)[1], 2)


def _step(path: Path, number: int, row: dict[str, str]) -> int:
    try:
        if (step := int(row["step"])) >= 2**53:
            raise ValueError(f"{step:.3g} is not a number of updates")
        return step
    except (KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is damaged [line {number}, step: {cut(str(error))}]") from error


def _number(path: Path, number: int, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged [line {number}: {cut(str(error))}]") from error
