"""The files of the report, and the report of a whole small sweep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tdmpc2.checkpoints.files import load_file
from tdmpc2.commands.report import main
from tdmpc2.config import Config
from tdmpc2.play import evaluation
from tdmpc2.studies.runs import read_run, read_study
from tdmpc2.studies.summary import rows_of
from tdmpc2.training import offline
from tdmpc2.training.offline import train
from tests.helpers.reference import REPO
from tests.helpers.runs import TASKS, TINY
from tests.helpers.studies import PNG

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


# -- files ------------------------------------------------------------------------------------------------------------


def test_report_is_three_files_and_learning_curves(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "report"
    main([str(sweep), "--out", str(out)])
    assert (out / "report.md").read_text() in capsys.readouterr().out
    assert "![Scores](report.png)" in (out / "report.md").read_text()
    assert "![Learning curves](curves.png)" in (out / "report.md").read_text()
    assert all((out / name).read_bytes().startswith(PNG) for name in ("report.png", "curves.png"))
    assert [row["score"] for row in json.loads((out / "report.json").read_text())["groups"]] == [12, 12, 21, 10.5]
    (out / "report.md").write_text("mine")
    with pytest.raises(SystemExit):
        main([str(sweep), "--out", str(out)])
    assert "There is already" in capsys.readouterr().err
    assert (out / "report.md").read_text() == "mine"
    main([str(sweep), "--out", str(out), "--force"])
    assert (out / "report.md").read_text() != "mine"


def test_report_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, message in ((tmp_path, "No run that can be read"), (tmp_path / "none", "does not exist")):
        with pytest.raises(SystemExit):
            main([str(path), "--out", str(tmp_path / "report")])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_report_of_trained_run_has_its_score(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the other tests write by hand have the format of real training runs."""
    result = evaluation.Evaluation((evaluation.TaskResult(TASKS[0], (1, 2), (100.0, 300.0), (0.0, 0.0), False),))
    monkeypatch.setattr(offline, "evaluate", lambda *_, **__: result)
    train(cfg.replace(eval_freq=10, work_dir=str(cfg.run_dir / "1")), None)
    train(cfg.replace(eval_freq=10, work_dir=str(cfg.run_dir / "2"), seed=2), None)
    (row,) = rows_of(read_study([cfg.run_dir]))
    assert (row["name"], row["seeds"], row["steps"], row["score"]) == ("no teacher", [1, 2], 20, 20.0)
    assert row["returns"] == {TASKS[0]: 200.0}
    assert {"reward_loss", "value_loss"} <= row["losses"].keys()
    assert row["hours"] > 0
    run = read_run(cfg.run_dir / "1")
    assert (run.finished, run.step, run.scores) == (True, 20, {10: 20.0, 20: 20.0})


# -- sweeps -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_report_of_multirun_sweep_end_to_end_is_complete(cfg: Config, tmp_path: Path) -> None:
    """In real processes, one value of the sweep is refused, and the runs of the others are trained and reported."""
    teacher = train(cfg.replace(work_dir=str(tmp_path / "teacher")), None)
    settings = {**TINY, "tasks": f"[{TASKS[0]}]", "steps": 4, "eval_freq": 4, "eval_episodes": 1, "mpc": False}
    settings |= {"model_size": "null", "data_dir": cfg.data_dir}
    student = [f"student_config.{key}={value}" for key, value in settings.items()]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=100)

    swept = ["student_config.distillation_weight=0,0.45,-1", "student_config.seed=1,2"]
    taught = f"teacher_config.checkpoint={teacher}"
    outcome = run(str(REPO / "train.py"), "--multirun", *student, taught, *swept)
    assert outcome.returncode == 1
    assert "Traceback" not in outcome.stderr
    for seed in (1, 2):
        line = f"error: distillation_weight_-1-seed_{seed}: distillation_weight=-1.0 must be at least 0"
        assert line in outcome.stderr.splitlines()
    runs = sorted(str(path.parent.relative_to(tmp_path)) for path in (tmp_path / "logs").rglob("model.pt"))
    assert runs == [f"logs/mt30/{seed}/distillation_weight_{w}-seed_{seed}" for seed in (1, 2) for w in ("0", "0.45")]
    weights = [load_file(tmp_path / path / "model.pt").model for path in runs]
    assert all(not torch.equal(a["_encoder.state.0.weight"], b["_encoder.state.0.weight"])
               for a, b in zip(weights[:2], weights[2:], strict=True))  # fmt: skip

    outcome = run(str(REPO / "report.py"), "logs")
    assert outcome.returncode == 0, outcome.stderr
    groups = json.loads((tmp_path / "report" / "report.json").read_text())["groups"]
    assert [(row["name"], row["seeds"], row["is_control"]) for row in groups] == [
        ("no teacher (one of weight 0)", [1, 2], True),
        ("distillation_weight=0.45", [1, 2], False),
    ]
    assert groups[1]["minus_control_interval"] is not None
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(PNG)
