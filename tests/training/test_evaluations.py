"""The scores that a run keeps, and the scale they are on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, parse_cfg
from tdmpc2.envs.registry import score_label
from tdmpc2.studies.runs import read_run
from tdmpc2.support.csv_files import read_csv
from tdmpc2.training.evaluations import read_scores, rename_score
from tdmpc2.training.run_dir import record_score
from tests.helpers.toy_envs import STANDS


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Write evaluations as version 0.1.0 did for a Gymnasium task whose returns were 500 and 480."""
    (tmp_path / "evaluations.json").write_text(json.dumps({"10": 50.0, "20": 48}))
    (tmp_path / "eval.csv").write_text("step,normalized_score,low,high\n10,50.0,45.5,55\n20,48,,\n")
    return tmp_path


def test_a_lower_return_does_not_replace_the_best_of_an_older_run(older: Path, tiny_cfg: Config) -> None:
    """A return of 300 used to pass for better than one of 500, which version 0.1.0 recorded as 50."""
    agent = TDMPC2(tiny_cfg)
    assert not record_score(agent, older, 30, 300.0, "return", True)
    assert not (older / "best.pt").exists()
    assert record_score(agent, older, 40, 501.0, "return", True)
    recorded = json.loads((older / "evaluations.json").read_text())
    assert recorded == {"score": "return", "10": 500.0, "20": 480.0, "30": 300.0, "40": 501.0}


def test_scores_of_an_unknown_scale_are_not_compared(older: Path, tiny_cfg: Config) -> None:
    record_score(TDMPC2(tiny_cfg), older, 30, 300.0, "return", False)
    assert read_scores(older, "normalized score") == {}
    assert read_scores(older, "return") == {10: 500.0, 20: 480.0, 30: 300.0}


def test_rename_score_gives_an_older_run_one_column(older: Path) -> None:
    rename_score(older, "return")
    columns, rows = read_csv(older / "eval.csv")
    assert columns == ["step", "return", "low", "high"]
    assert [list(row.values()) for row in rows] == [["10", "500", "455", "550"], ["20", "480", "", ""]]
    before = (older / "eval.csv").read_bytes()
    rename_score(older, "return")
    assert (older / "eval.csv").read_bytes() == before


def test_rename_score_leaves_normalised_scores(older: Path) -> None:
    before = (older / "eval.csv").read_bytes()
    rename_score(older, "normalized score")
    assert (older / "eval.csv").read_bytes() == before


@pytest.mark.parametrize("recorded", [True, False])
def test_study_reads_scores_of_an_older_run_as_returns(older: Path, recorded: bool) -> None:
    """Scores are read from ``evaluations.json``, or from ``eval.csv`` if only that is there."""
    cfg = parse_cfg({"task": STANDS})
    assert score_label(cfg.task_specs) == "return"
    (older / "run.json").write_text(json.dumps({**cfg.to_dict(), "teacher_sha256": None, "data": None}))
    if not recorded:
        (older / "evaluations.json").unlink()
    run = read_run(older)
    assert (run.score_label, run.scores) == ("return", {10: 500.0, 20: 480.0})


def test_run_whose_last_evaluation_met_a_failed_environment_is_read_with_a_remark(older: Path) -> None:
    cfg = parse_cfg({"task": STANDS})
    (older / "run.json").write_text(json.dumps({**cfg.to_dict(), "teacher_sha256": None, "data": None}))
    (older / "evaluations.json").write_text(json.dumps({"score": "return", "10": 500.0, "20": None}))
    (older / "eval.csv").unlink()
    run = read_run(older)
    assert run.scores == {10: 500.0}
    assert "the score of step 20, which is not a finite number" in run.remarks[0]
