"""Files and tables of an evaluation's results."""

from __future__ import annotations

import csv
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tdmpc2.config import Config
from tdmpc2.play import results, scoring
from tdmpc2.play.evaluation import Evaluation, TaskResult
from tests.helpers.playing import MIXED, fake


def test_write_results_writes_all_files(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    results.write_results(directory, MIXED, {"action": "planner", "config": Config().to_dict()})
    summary = json.loads((directory / "results.json").read_text())
    assert summary["normalized_score"] == pytest.approx(55)
    assert summary["interval"] == list(MIXED.interval or ())
    assert summary["protocol"]["action"] == "planner"
    assert summary["protocol"]["config"]["task"] == "mt30"
    assert {"python", "torch", "mujoco", "dm_control", "gymnasium", "numpy"} <= summary["versions"].keys()
    assert [(row["task"], row["episodes"], row["return"], row["success"]) for row in summary["tasks"]] == [
        ("walker-walk", 2, 600.0, None), ("mw-reach", 2, 625.5, 0.5),
    ]  # fmt: skip
    assert summary["tasks"][0]["return_interval"] == [500, 700]
    with (directory / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["task"], int(r["seed"]), float(r["return"]), r["success"]) for r in rows] == [
        ("walker-walk", 100, 500, ""), ("walker-walk", 101, 700, ""),
        ("mw-reach", 100, 1234, "1.0"), ("mw-reach", 101, 17, "0.0"),
    ]  # fmt: skip
    assert sorted(path.name for path in directory.iterdir()) == ["results.csv", "results.json"]


def test_results_csv_keeps_returns_exactly(tmp_path: Path) -> None:
    value = 100 / 3
    results.write_results(tmp_path, fake(("cup-spin", [value], [0.0])), {})
    assert float((tmp_path / "results.csv").read_text().splitlines()[1].split(",")[2]) == value
    assert json.loads((tmp_path / "results.json").read_text())["tasks"][0]["return"] == value


def test_write_results_interrupted_leaves_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.write_results(tmp_path, MIXED, {"run": 1})
    before = (tmp_path / "results.json").read_bytes()

    def crash(source: Any, target: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        results.write_results(tmp_path, MIXED, {"run": 2})
    assert (tmp_path / "results.json").read_bytes() == before


def test_fresh_directory_never_holds_results(tmp_path: Path) -> None:
    base = tmp_path / "eval-x"
    seen = []
    for _ in range(3):
        with results.fresh_directory(base) as directory:
            results.write_results(directory, MIXED, {})
        seen.append(directory.name)
    with results.fresh_directory(base) as one, results.fresh_directory(base) as other:  # at the same time
        seen += [one.name, other.name]
    with results.fresh_directory(base) as directory:  # the name is free again
        results.write_episodes(directory, MIXED)  # and nothing else, as if interrupted
    seen.append(directory.name)
    assert seen == ["eval-x", "eval-x-2", "eval-x-3", "eval-x-4", "eval-x-5", "eval-x-4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval-x", "eval-x-2", "eval-x-3", "eval-x-4"]
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "model.pt").touch()
    with results.fresh_directory(tmp_path / "training") as directory:
        assert directory == tmp_path / "training"  # a run's own directory
    assert [path.name for path in directory.iterdir()] == ["model.pt"]


def test_fresh_directory_of_a_killed_evaluation_is_taken_again(tmp_path: Path) -> None:
    """The empty file of an evaluation killed at its start used to send the next one to eval-x-2."""
    (tmp_path / "eval-x").mkdir()
    (tmp_path / "eval-x" / "results.csv").touch()
    (tmp_path / ".eval-x.lock").touch()
    with results.fresh_directory(tmp_path / "eval-x") as directory:
        results.write_results(directory, MIXED, {})
    assert [path.name for path in tmp_path.iterdir()] == ["eval-x"]


def shown(result: Evaluation, width: int = 100) -> list[str]:
    """Return the lines of an evaluation's table."""
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(results.table(result, "student"))
    return console.export_text().splitlines()


def test_table_has_success_only_for_tasks_that_know_it() -> None:
    lines = shown(MIXED)
    walker = next(line for line in lines if "walker-walk" in line).split()
    assert walker == ["walker-walk", "2", "600.0", "[500.0,", "700.0]", "-"]
    reach = next(line for line in lines if "mw-reach" in line).split()
    assert reach[-1] == "0.50"
    assert "55.00" in next(line for line in lines if "normalized score" in line)


def test_table_of_dm_control_tasks_has_no_column_for_success() -> None:
    """These tasks do not define success, and a column of 0.00 would read as if every episode had failed."""
    text = "\n".join(shown(fake(("walker-walk", [500.0], [0.0]))))
    assert "success" not in text
    assert "500.0" in text


def test_returns_without_a_scale_are_not_called_a_normalised_score() -> None:
    """Pendulum-v1 used to be given a normalised score of -96.93, a tenth of its return."""
    result = Evaluation((TaskResult("Pendulum-v1", (1, 2), (-900.0, -1000.0), (0.0, 0.0), False),))
    assert result.score_label == "return"
    assert result.normalized_score == -950
    assert list(result.metrics()) == ["return", "low", "high"]
    assert "-950.00" in next(line for line in shown(result) if "mean return" in line)


SCALES = Evaluation(
    (
        TaskResult("Pendulum-v1", (1, 2), (-900.0, -1000.0), (0.0, 0.0), False),
        TaskResult("mw-reach", (1, 2), (3.0, 4.0), (1.0, 0.0), True),
    )
)


def test_tasks_on_different_scales_have_no_common_score(tmp_path: Path) -> None:
    """A mean of -950 and 50 was called the mean return."""
    assert (SCALES.score_label, SCALES.interval, SCALES.aggregates) == ("mixed score", None, ())
    assert math.isnan(SCALES.normalized_score)
    assert SCALES.metrics() == {"mixed_score": -450}  # what tells steps of one run apart
    total = shown(SCALES)[-1 if "score" in shown(SCALES)[-1] else -2]
    assert ("score" in total, "-450" in total, "return" in total) == (True, False, False)
    results.write_results(tmp_path, SCALES, {})
    summary = json.loads((tmp_path / "results.json").read_text())
    assert (summary["normalized_score"], summary["score_label"], summary["interval"]) == (None, "mixed score", None)
    assert [task["return"] for task in summary["tasks"]] == [-950, 3.5]


def test_comparison_of_tasks_on_different_scales_is_by_task(capsys: pytest.CaptureFixture[str]) -> None:
    worse = replace(SCALES.tasks[0], returns=(-902.0, -1002.0))
    scoring._print_difference("a minus b", SCALES, Evaluation((worse, SCALES.tasks[1])))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a minus b, by task, each on its own scale:"
    assert [line.partition(" (9")[0] for line in lines[1:]] == [
        "  Pendulum-v1 (return): +2.00", "  mw-reach (normalized score): +0.00",
    ]  # fmt: skip


def test_one_episode_has_no_interval_to_log() -> None:
    """Evaluations of one episode used to print "low 21.65   high 21.65", as if the score were certain."""
    assert fake(("walker-walk", [216.5], [0.0])).metrics() == {"normalized_score": pytest.approx(21.65)}


# -- why an evaluation has a directory of its own ---------------------------------------------------------------------

PROTOCOL = {"checkpoint": "logs/student/model.pt", "sha256": "1", "precision": "bf16", "config": Config().to_dict()}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, " (eval-x holds one with the same settings)"),
        ({"precision": "int8"}, " (eval-x holds the same with precision=bf16)"),
        ({"sha256": "2"}, " (eval-x holds the same with other weights)"),
        ({"config": Config(num_samples=64, num_elites=8).to_dict()}, " (eval-x holds the same with num_samples=512)"),
        ({"config": Config(tasks=("cup-spin",)).to_dict()}, " (eval-x holds the same with tasks=null)"),
    ],
)
def test_why_another_names_what_differs(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    """Nothing used to tell what the evaluations in eval-x, eval-x-2 and eval-x-3 were of."""
    results.write_results(tmp_path / "eval-x", MIXED, PROTOCOL)
    now = {**PROTOCOL, **changes}
    assert results.why_another(tmp_path / "eval-x-2", tmp_path / "eval-x", now) == reason
    assert results.why_another(tmp_path / "eval-x", tmp_path / "eval-x", now) == ""


def test_why_another_marks_an_evaluation_that_did_not_end(tmp_path: Path) -> None:
    results.write_episodes(tmp_path / "eval-x", MIXED)
    reason = " (eval-x holds episodes of an evaluation that did not end: delete it to use its name)"
    assert results.why_another(tmp_path / "eval-x-2", tmp_path / "eval-x", PROTOCOL) == reason


def test_why_another_copes_with_results_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    assert results.why_another(tmp_path / "x", tmp_path, PROTOCOL).endswith("holds other results)")
