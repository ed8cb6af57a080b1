"""One bad run never stops a report, and scores that are not finite never get into it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.studies.report import to_json, write_report
from tdmpc2.studies.runs import read_study
from tdmpc2.studies.summary import rows_of
from tests.helpers.studies import write_run


def _record(**changes: Any) -> Callable[[Path], Any]:
    def change(run: Path) -> None:
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | changes))

    return change


def _write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_text(text)


def _directory(name: str) -> Callable[[Path], Any]:
    def change(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()

    return change


BAD: dict[str, Callable[[Path], Any]] = {
    "targets 5": _record(distillation_targets=5),
    "weight": _record(distillation_weight="x"),
    "data": _record(data=5),
    "data of numbers": _record(data={"chunk_0.pt": 5}),
    "teacher": _record(teacher_sha256=7),
    "seed": _record(seed="a"),
    "steps nan": _record(steps=float("nan")),
    "score of 400 digits": _write("evaluations.json", '{"100": ' + "9" * 400 + "}"),
    "score of 5,000 digits": _write("evaluations.json", '{"100": ' + "9" * 5000 + "}"),
    "step of 5,000 digits": _write("evaluations.json", '{"' + "9" * 5000 + '": 1}'),
    "scale of scores": _write("evaluations.json", '{"score": [1], "100": 1}'),
    "deep": _write("evaluations.json", "[" * 100_000),
    "long field": _write("train.csv", "step,reward_loss\n100," + "1" * 200_000 + "\n"),
    "step inf": _write("train.csv", "step,reward_loss\ninf,1\n"),
    "step nan": _write("speed.csv", "step,seconds\nnan,1\n"),
    "negative step": _write("eval.csv", "step,normalized_score\n-4,1\n"),
    "directory": _directory("train.csv"),
    "directory of tasks": _directory("eval_tasks.csv"),
    "heldout": _write("heldout.json", '{"errors": "x"}'),
    "heldout list": _write("heldout.json", "[]"),
    "heldout nan": _write("heldout.json", '{"errors": {"reward_rmse": NaN}, "step": 100}'),
}


@pytest.mark.parametrize("case", BAD)
def test_report_leaves_out_a_bad_run_and_names_it(tmp_path: Path, case: str) -> None:
    """A report over many runs used to end in a traceback at the first odd file."""
    good = [write_run(tmp_path / "runs", seed, 50.0 + seed) for seed in (1, 2)]
    bad = write_run(tmp_path / "runs", 3, 60.0)
    BAD[case](bad)
    study = read_study([tmp_path / "runs"])
    (line,) = study.left_out
    assert str(bad) in line
    assert len(line) < 1000
    assert [run.path for group in study.groups for run in group.runs] == good
    write_report(study, tmp_path, force=False)
    assert line in (tmp_path / "report.md").read_text()


def _strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("score", ["NaN", "1e400", "-Infinity", "null"])
@pytest.mark.parametrize("step", [50, 100])
def test_report_has_no_score_that_is_not_finite(tmp_path: Path, score: str, step: int) -> None:
    """NaN used to be shown as a score, which made report.json invalid JSON."""
    good, bad = (write_run(tmp_path / "runs", seed, 50.0) for seed in (1, 2))
    scores = {50: "51.0", 100: "50.0"} | {step: score}
    (bad / "evaluations.json").write_text("{" + ", ".join(f'"{at}": {value}' for at, value in scores.items()) + "}")
    study = read_study([tmp_path / "runs"])
    runs = [run for group in study.groups for run in group.runs]
    assert [run.path for run in runs] == [good, bad]
    (line,) = study.left_out
    assert str(bad) in line
    assert "not" in line
    assert "finite" in line
    group = _strict(to_json(study, rows_of(study)))["groups"][0]
    assert group["score_step"] == 150 - step, "the newest at which both have a score"
    assert len(group["scores"]) == 2
    assert math.isfinite(group["score"])


@pytest.mark.parametrize("score", ["nan", "1e400"])
def test_report_of_an_eval_csv_with_a_last_score_that_is_not_finite_leaves_the_run_out(
    tmp_path: Path, score: str
) -> None:
    good, bad = (write_run(tmp_path / "runs", seed, 50.0) for seed in (1, 2))
    (bad / "evaluations.json").unlink()
    (bad / "eval.csv").write_text(f"step,normalized_score\n50,51.0\n100,{score}\n")
    study = read_study([tmp_path / "runs"])
    assert [run.path for group in study.groups for run in group.runs] == [good]
    assert f"{bad / 'eval.csv'} is damaged" in study.left_out[0]


def test_report_with_losses_that_are_not_finite_is_json(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", 1, 50.0)
    (run / "train.csv").write_text("step,reward_loss,value_loss\n100,nan,1e400\n")
    study = read_study([tmp_path / "runs"])
    assert _strict(to_json(study, rows_of(study)))["groups"][0]["losses"] == {}
