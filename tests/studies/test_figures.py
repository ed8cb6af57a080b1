"""The figure of a study, checked by what it asks matplotlib to draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.studies.figures import score_figure, sensible_range
from tdmpc2.studies.runs import read_study
from tdmpc2.studies.summary import rows_of
from tests.helpers.studies import PNG, write_run

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Calls]:
    """Record the calls of a method of matplotlib's axes, and make them all the same."""
    axes = pytest.importorskip("matplotlib.axes").Axes

    def record(name: str) -> Calls:
        calls: Calls = []
        original = getattr(axes, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls.append((args[1:], kwargs))
            return original(*args, **kwargs)

        monkeypatch.setattr(axes, name, wrapper)
        return calls

    return record


def test_sweep_of_one_number_is_a_curve_with_controls_as_bands(
    sweep: Path, tmp_path: Path, drawn: Callable[[str], Calls]
) -> None:
    curves, bands = drawn("errorbar"), drawn("axhspan")
    rows = rows_of(read_study([sweep]))
    assert score_figure(tmp_path / "curve.png", rows) == ""
    (((values, means), options),) = curves
    assert (values, means) == ([0.4, 0.9], [21, 10.5])
    assert options["yerr"] == pytest.approx([12.706, 1.5 * 12.706], abs=1e-2)
    assert [args for args, _ in bands] == [rows[0]["interval"], rows[1]["interval"]]


def test_groups_that_differ_in_more_have_a_line_each(
    sweep: Path, tmp_path: Path, drawn: Callable[[str], Calls]
) -> None:
    write_run(sweep, 1, 30, weight=0.4, policy_loss="tdmpc2")
    marks, estimates = drawn("set_yticks"), drawn("errorbar")
    rows = rows_of(read_study([sweep]))
    assert score_figure(tmp_path / "lines.png", rows) == ""
    (labels,) = [args[1] for args, _ in marks if len(args) == 2]
    assert labels == [
        "A: no teacher",
        "B: no teacher (one of weight 0)",
        "C: distillation_weight=0.4",
        "D: distillation_weight=0.4,\npolicy_loss=tdmpc2",
        "E: distillation_weight=0.9",
    ]
    assert [args[0] for args, _ in estimates] == [row["score"] for row in rows]
    assert (tmp_path / "lines.png").read_bytes().startswith(PNG)


def test_interval_of_two_seeds_does_not_set_the_axis(
    sweep: Path, tmp_path: Path, drawn: Callable[[str], Calls]
) -> None:
    """An interval over two seeds used to make an axis begin at -20 for scores between 9 and 22."""
    limits = drawn("set_ylim")
    rows = rows_of(read_study([sweep]))
    assert min(row["interval"][0] for row in rows) < -8
    assert score_figure(tmp_path / "curve.png", rows) == ""
    low, high = [args for args, _ in limits if len(args) == 2][-1]
    assert low == 0
    assert 22 < high <= 36


@pytest.mark.parametrize(
    ("values", "limits"),
    [([5.0], (4.5, 5.5)), ([0.0, 10.0], (0, 17.5)), ([-3.0, 1.0], (-6, 4)), ([0.0], (0, 1)), ([float("nan")], (0, 1))],
)
def test_sensible_range_leaves_room_and_invents_no_negative_scores(
    values: list[float], limits: tuple[float, float]
) -> None:
    assert sensible_range(values) == pytest.approx(limits)


def test_study_without_scores_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, 1, None, eval_freq=0)
    assert "no run was evaluated" in score_figure(tmp_path / "none.png", rows_of(read_study([tmp_path])))
    assert not (tmp_path / "none.png").exists()
