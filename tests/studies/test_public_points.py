"""Published returns beside the curves of a run that learns the same task."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdmpc2.studies import curves
from tdmpc2.studies.curves import draw_run
from tdmpc2.studies.public_points import Point, published_points
from tdmpc2.studies.sources import SHORT

LEARNED = {"tasks": ["walker-walk"], "task": "mt30", "mode": "online", "obs": "state"}


def test_points_are_those_of_the_file_at_half_its_control_steps() -> None:
    points = published_points([LEARNED], 60_000)
    with (SHORT / "single_task_curves.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["method"], row["task"]) == ("tdmpc2", "walker-walk")]
    values = [float(row["value"]) for row in rows if row["env_step"] == "100000"]
    assert points == [Point(50_000, pytest.approx(np.mean(values)), min(values), max(values))]
    assert not published_points([LEARNED], 49_999)


@pytest.mark.parametrize("change", [
    {"tasks": ["walker-walk", "walker-run"]}, {"mode": "offline"}, {"obs": "rgb"}, {"tasks": ["dog-run"]},
])  # fmt: skip
def test_runs_that_learn_something_else_have_none(change: dict[str, Any]) -> None:
    assert published_points([{**LEARNED, **change}], 1e6) == []
    assert published_points([LEARNED, {**LEARNED, **change}], 1e6) == []


def test_run_without_tasks_of_its_own_learns_its_task() -> None:
    """A run of a single task names it in ``task``; records of older runs have no kind of observation."""
    assert published_points([{"tasks": None, "task": "walker-walk", "mode": "online"}], 60_000)
    assert not published_points([], 60_000)


def test_figure_of_a_run_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "run.json").write_text(json.dumps(LEARNED))
    (tmp_path / "episodes.csv").write_text(
        "step,task,return,length,success,terminated\n500,walker-walk,20,500,0,0\n60000,walker-walk,900,500,0,0\n"
    )
    (tmp_path / "eval.csv").write_text("step,normalized_score\n0,2\n60000,97\n")
    drawn: list[tuple[list[float], float]] = []
    inner = curves._draw_published

    def noted(axes: Any, configs: Any) -> None:
        inner(axes, configs)
        steps = [float(x) for line in axes.lines if line.get_marker() == "D" for x in line.get_xdata()]
        drawn.append((steps, axes.get_ylim()[1]))

    monkeypatch.setattr(curves, "_draw_published", noted)
    assert draw_run(tmp_path) == f"Learning curves: {tmp_path / 'curves.png'}"
    ((steps, top),) = drawn  # once: the score of MT30 is a tenth of a return, and has no such points
    assert steps == [50_000]
    assert top > 962
