"""Scores that are not finite are never the best, never NaN in JSON, and explained in one line."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.commands import data
from tdmpc2.config import Config, parse_cfg
from tdmpc2.play.collector import collect
from tdmpc2.play.evaluation import evaluate
from tdmpc2.play.results import write_results
from tdmpc2.support.files import json_text
from tdmpc2.training import run_dir
from tdmpc2.training.evaluations import read_scores
from tdmpc2.training.offline import train
from tdmpc2.training.online import train_online
from tests.helpers.faulty_envs import AT, PREFIX
from tests.helpers.playing import SIZES, fake


def strict(path: Path) -> Any:
    """Read JSON as readers that know no NaN do."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}, which is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("first", [math.nan, math.inf, -math.inf])
def test_score_that_is_not_finite_is_never_best(tmp_path: Path, tiny_cfg: Config, first: float) -> None:
    """A NaN as the first score used to keep all later ones from being the best."""
    agent = TDMPC2(tiny_cfg)
    found = [
        run_dir.record_score(agent, tmp_path, step, score, "normalized score", True)
        for step, score in ((2, first), (4, 0.8), (6, math.nan), (8, 0.7), (10, 0.9))
    ]
    assert found == [False, True, False, False, True]
    assert strict(tmp_path / "evaluations.json") == {"2": None, "4": 0.8, "6": None, "8": 0.7, "10": 0.9}
    scores = read_scores(tmp_path, "normalized score")
    assert math.isnan(scores[2])
    assert scores[10] == 0.9


def test_scores_of_an_older_run_with_nan_are_read(tmp_path: Path, tiny_cfg: Config) -> None:
    (tmp_path / "evaluations.json").write_text('{"2": NaN, "4": 0.5}')
    assert run_dir.record_score(TDMPC2(tiny_cfg), tmp_path, 6, 0.6, "normalized score", True)
    assert strict(tmp_path / "evaluations.json") == {"2": None, "4": 0.5, "6": 0.6}


def test_results_that_are_not_finite_are_null(tmp_path: Path) -> None:
    result = fake(("walker-walk", [math.nan, 700.0], [0.0, 0.0]))
    write_results(tmp_path, result, {"bound": math.inf})
    content = strict(tmp_path / "results.json")
    assert content["normalized_score"] is None
    assert content["interval"] == [None, None]
    assert content["protocol"] == {"bound": None}


def test_json_text_of_finite_content_is_that_of_json() -> None:
    content = {"a": [1, 2.5, None, True, "NaN"], "b": {"c": (1e300,)}}
    assert json_text(content, 1) == json.dumps(content, indent=1)


def test_training_goes_on_after_an_evaluation_without_a_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An untrained policy may drive a simulation into NaN; later evaluations are scored and kept."""
    keys = {**SIZES, "task": f"{PREFIX}NanReward101-v0", "batch_size": 8, "data_dir": str(tmp_path / "data")}
    collect(parse_cfg({**keys, "episodes_per_task": 2}), None, tmp_path / "data")
    evaluations = iter([101, 102, 102])
    cfg = parse_cfg(
        {**keys, "work_dir": str(tmp_path / "run"), "steps": 6, "eval_freq": 2, "eval_episodes": 1, "log_freq": 2}
    )

    def evaluator(agent: TDMPC2, cfg: Config, **arguments: Any) -> Any:
        return evaluate(agent, cfg.replace(eval_seed=next(evaluations)), quiet=True, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tdmpc2.training.offline.evaluate", evaluator)
        train(cfg, None)
    scores = strict(tmp_path / "run" / "evaluations.json")
    assert [scores[step] for step in ("2", "4", "6")] == [None, 8, 8]
    assert (tmp_path / "run" / "best.pt").exists()
    lines = [line for line in capsys.readouterr().out.splitlines() if "no score" in line]
    assert len(lines) == 1
    assert (
        f"Evaluation at step 2 has no score: {PREFIX}NanReward101-v0 (seed 101, step {AT}): the reward is nan"
        in lines[0]
    )
    with (tmp_path / "run" / "eval.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["4", "6"]


def test_training_on_rewards_beyond_the_bins_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such rewards are all learned as the last bin, whose value is 22,025."""
    keys = {**SIZES, "task": f"{PREFIX}LargeReward-v0", "batch_size": 64, "data_dir": str(tmp_path / "data")}
    collect(parse_cfg({**keys, "episodes_per_task": 2}), None, tmp_path / "data")
    capsys.readouterr()
    train(parse_cfg({**keys, "work_dir": str(tmp_path / "run"), "steps": 1, "eval_freq": 0}), None)
    assert_one_warning(capsys)


def test_inspecting_rewards_beyond_the_bins_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = parse_cfg({**SIZES, "task": f"{PREFIX}LargeReward-v0", "episodes_per_task": 2})
    collect(cfg, None, tmp_path / "data")
    capsys.readouterr()
    data.main(["inspect", str(tmp_path / "data"), f"task={cfg.task}", "figure=" + str(tmp_path / "returns.png")])
    assert_one_warning(capsys)


def test_learning_online_from_rewards_beyond_the_bins_warns_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {**SIZES, "task": f"{PREFIX}LargeReward-v0", "mode": "online", "batch_size": 8, "seed_steps": 20}
    train_online(parse_cfg({**keys, "work_dir": str(tmp_path / "run"), "steps": 32, "eval_freq": 0}), None)
    assert_one_warning(capsys)


def assert_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in capsys.readouterr().out.splitlines() if "Warning" in line]
    assert len(lines) == 1
    assert "LargeReward-v0 has rewards such as 1e+30, beyond the model's bins, -22,025 to 22,025" in lines[0]
