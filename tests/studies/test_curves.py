"""Learning curves: means over seeds, figures of runs and studies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tdmpc2.studies import curves
from tdmpc2.studies.curves import draw_run, mean_curve, study_figure
from tdmpc2.studies.runs import read_study
from tests.helpers.studies import PNG, write_run


def test_mean_curve_of_one_run_is_the_run() -> None:
    band = mean_curve([(np.array([10.0, 20.0]), np.array([1.0, 3.0]))])
    np.testing.assert_array_equal(band.x, [10, 20])
    np.testing.assert_array_equal(band.mean, [1, 3])
    assert np.isnan(band.low).all()


def test_mean_curve_interpolates_and_stops_averaging_where_a_run_ends() -> None:
    long = (np.array([0.0, 10.0, 20.0, 30.0]), np.array([0.0, 10.0, 20.0, 30.0]))
    short = (np.array([0.0, 20.0]), np.array([2.0, 22.0]))  # interpolated: 12 at step 10
    band = mean_curve([long, short])
    np.testing.assert_array_equal(band.x, [0, 10, 20, 30])
    np.testing.assert_allclose(band.mean, [1, 11, 21, 30])
    # Two values that differ by 2: their mean's standard error is 1, the t quantile of one degree of freedom 12.706.
    np.testing.assert_allclose(band.high[:3] - band.mean[:3], 12.706, atol=1e-3)
    assert np.isnan(band.high[3])


def test_mean_curve_leaves_out_what_is_not_finite() -> None:
    band = mean_curve([(np.array([0.0, 1.0, np.nan]), np.array([np.inf, 2.0, 3.0]))])
    assert (band.x.tolist(), band.mean.tolist()) == ([1], [2])
    assert not len(mean_curve([]).x)


def test_draw_run_leaves_curves_beside_the_logs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = write_run(tmp_path, 1, 20)
    assert draw_run(run) == f"Learning curves: {run / 'curves.png'}"
    assert (run / "curves.png").read_bytes().startswith(PNG)


def test_draw_run_reports_a_damaged_file_in_a_line(tmp_path: Path) -> None:
    """A figure that fails at the end of a training run must not make the run look failed."""
    run = write_run(tmp_path, 1, 20)
    (run / "train.csv").write_text("step,total_loss\n1,many\n")
    line = draw_run(run)
    assert line.startswith("No learning curves: ValueError: ")
    assert str(run / "train.csv") in line
    assert not (run / "curves.png").exists()


def test_draw_run_without_matplotlib_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path, 1, 20)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    line = draw_run(run)
    assert line.startswith("No learning curves: figures need matplotlib")
    assert "\n" not in line


def test_draw_run_before_anything_is_logged(tmp_path: Path) -> None:
    assert draw_run(tmp_path) == "No learning curves: no run has logged anything yet"
    assert not list(tmp_path.iterdir())


def test_study_figure_has_a_curve_for_every_group_over_steps_and_hours(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = pytest.importorskip("matplotlib.axes").Axes
    write_run(sweep, 3, None, weight=0.4, step=60)
    labels, axis_names, bands = [], [], []
    plot, set_xlabel, fill = axes.plot, axes.set_xlabel, axes.fill_between
    monkeypatch.setattr(axes, "plot", lambda *a, **k: (labels.append(k.get("label")), plot(*a, **k))[1])
    monkeypatch.setattr(axes, "set_xlabel", lambda *a, **k: (axis_names.append(a[1]), set_xlabel(*a, **k))[1])
    monkeypatch.setattr(axes, "fill_between", lambda *a, **k: (bands.append(a[1]), fill(*a, **k))[1])
    study = read_study([sweep])
    assert study_figure(tmp_path / "curves.png", study) == ""
    named = {label.replace("\n", " ") for label in labels if label}
    assert {group.name for group in study.groups} <= named
    assert any(label.startswith("unfinished: ") for label in named)
    assert {"updates", "hours of training"} <= set(axis_names)
    assert len(bands) >= 2 * len(study.groups)  # of two seeds each
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("score", ["normalized_score", "return", "mixed_score"])
def test_panels_show_distillation_losses_before_speed(score: str) -> None:
    names = ("speed/it_per_s", "distill/value_loss", "distill/factor", "train/value_loss", f"eval/{score}")
    panels = list(curves._metrics({"": [dict.fromkeys(names)]}))  # type: ignore[list-item]
    assert panels == ["score", "value loss", "distillation:\nvalue loss", "updates per second"]


def test_panels_of_learning_online_show_the_returns_of_each_task_after_the_score() -> None:
    tasks = [f"episode/{name}" for name in ("walker-walk", "walker-run")]
    names = ("speed/it_per_s", "speed/updates_per_s", "train/value_loss", "episode/return", *tasks)
    panels = curves._metrics({"": [dict.fromkeys(names)]})  # type: ignore[list-item]
    assert list(panels) == [
        "return of episodes\nwhile learning", "return of\nwalker-walk", "return of\nwalker-run", "value loss",
        "updates per second",
    ]  # fmt: skip
    one = curves._metrics({"": [dict.fromkeys(("episode/return", "episode/walker-walk"))]})  # type: ignore[list-item]
    assert list(one) == ["return of episodes\nwhile learning"]
    runs = [dict.fromkeys(("episode/return", task)) for task in tasks]
    assert len(curves._metrics({"": runs})) == 1  # type: ignore[arg-type]
    many = [f"episode/task-{number}" for number in range(30)]
    assert len(curves._metrics({"": [dict.fromkeys(("episode/return", *many))]})) == 1  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("runs", "label"),
    [([{"episode/return"}], "agent steps"), ([{"train/pi_loss"}, set()], "updates"),
     ([{"episode/return"}, {"train/pi_loss"}], "steps")],
)  # fmt: skip
def test_axis_of_steps_says_what_they_are(runs: list[set[str]], label: str) -> None:
    assert curves._steps_of({"": [dict.fromkeys(run) for run in runs]}) == label  # type: ignore[arg-type]
