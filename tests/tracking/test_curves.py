"""Reading a run's learning curves back."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from tdmpc2.tracking import read_curves
from tdmpc2.tracking.logger import Logger
from tests.helpers.tracking import config


def test_read_curves_returns_every_metric_over_steps_and_hours(tmp_path: Path, clock: list[float]) -> None:
    with Logger(config(tmp_path), total_steps=300, stream=io.StringIO()) as logger:
        for step in (100, 200):
            clock[0] += 1800.0
            logger.log(step, {"total_loss": 1 / step, "distillation_loss": 2.0}, data_wait=0.5)
        logger.log(200, {"normalized_score": 30.0}, group="eval")
        logger.log_table(200, "eval/tasks", ["task", "return"], [["walker-walk", 300.0], ["walker-run", None]])
    with Logger(config(tmp_path), total_steps=300, start_step=200, wall_seconds=4000.0, stream=io.StringIO()) as logger:
        clock[0] += 200.0
        logger.log(300, {"total_loss": 1 / 300, "distillation_loss": float("nan")}, data_wait=0.5)
    curves = read_curves(tmp_path)
    assert set(curves) == {
        "train/total_loss", "distill/reward_loss", "speed/it_per_s", "speed/data_wait", "eval/normalized_score",
        "eval/walker-walk",
    }  # fmt: skip
    total = curves["train/total_loss"]
    assert total.step.tolist() == [100, 200, 300]
    np.testing.assert_allclose(total.hours, [0.5, 1.0, 4200 / 3600])
    np.testing.assert_array_equal(total.value, [1 / 100, 1 / 200, 1 / 300])
    np.testing.assert_array_equal(curves["distill/reward_loss"].value, [2.0, 2.0, np.nan])
    assert curves["eval/walker-walk"].value.tolist() == [300.0]
    assert curves["eval/normalized_score"].hours.tolist() == [1.0]


def test_read_curves_interpolates_hours_between_rows_of_the_speed_file(tmp_path: Path) -> None:
    (tmp_path / "speed.csv").write_text("step,seconds,it_per_s\n100,3600.0,1.0\n200,7200.0,1.0\n")
    (tmp_path / "eval.csv").write_text("step,normalized_score\n50,1.0\n150,2.0\n")
    assert read_curves(tmp_path)["eval/normalized_score"].hours.tolist() == [0.5, 2.0]


def test_read_curves_without_speed_file_has_no_hours(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("step,total_loss\n5,1.5\n")
    curve = read_curves(tmp_path)["train/total_loss"]
    assert (curve.step.tolist(), curve.value.tolist()) == ([5], [1.5])
    assert np.isnan(curve.hours).all()


def test_read_curves_of_learning_online_average_the_episodes_of_a_step(tmp_path: Path) -> None:
    (tmp_path / "episodes.csv").write_text(
        "step,task,return,length,success,terminated\n"
        "500,cup-spin,10.0,500,0.0,0\n500,cup-spin,20.0,500,0.0,0\n500,cup-catch,60.0,500,0.0,0\n1000,cup-spin,40.0,500,0.0,0\n"
    )
    (tmp_path / "speed.csv").write_text("step,seconds,it_per_s,updates_per_s\n1000,3600.0,5.0,2.5\n")
    curves = read_curves(tmp_path)
    found = {name: list(zip(curve.step.tolist(), curve.value.tolist(), strict=True)) for name, curve in curves.items()}
    assert found == {
        "episode/return": [(500, 30.0), (1000, 40.0)],
        "episode/cup-spin": [(500, 15.0), (1000, 40.0)],
        "episode/cup-catch": [(500, 60.0)],
        "speed/it_per_s": [(1000, 5.0)],
        "speed/updates_per_s": [(1000, 2.5)],
    }
    assert curves["episode/return"].hours.tolist() == [0.5, 1.0]


def test_read_curves_empty_directory_is_empty(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == {}


def test_read_curves_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("step,total_loss\n5,1.5\n10,many\n")
    with pytest.raises(ValueError, match=r"train\.csv is damaged \[line 3: could not convert"):
        read_curves(tmp_path)
