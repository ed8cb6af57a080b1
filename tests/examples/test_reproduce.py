"""The command that makes teachers, data, a student and its copies, at toy size and killed midway."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import Config, parse_cfg, typed_values
from tdmpc2.support.files import write_text

REPO = Path(__file__).resolve().parents[2]


def command(directory: Path, *words: str) -> list[str]:
    return [sys.executable, str(REPO / "examples" / "reproduce.py"), "--work-dir", str(directory), "--smoke", *words]


def run(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(directory, *words), cwd=REPO, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType, ModuleType, ModuleType]:
    """The files of the example: command, sizes, steps, estimate."""
    monkeypatch.syspath_prepend(REPO / "examples")
    names = ("reproduce", "reproduce_scale", "reproduce_steps", "reproduce_estimate")
    return tuple(map(importlib.import_module, names))  # type: ignore[return-value]


Modules = tuple[ModuleType, ModuleType, ModuleType, ModuleType]


@pytest.mark.slow
def test_all_stages_are_taken_and_go_on_after_a_kill(tmp_path: Path) -> None:
    """Steps that were done before the kill are not done again, and the files at the end have their cards.

    Then the same teachers and their data serve a student that begins with a file of all tasks.
    """
    work = tmp_path / "work"
    planned = run(work, "--plan")
    assert planned.stdout.count(" h  tdmpc2 ") == 37, planned.stderr
    assert not work.exists()
    first = subprocess.Popen(command(work), cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    seen = next((line for line in first.stdout if line.startswith("  replay-pendulum: ")), None)
    first.kill()  # during the next step, whose command dies with it
    first.communicate()
    assert seen is not None
    begun = (work / "begun.json").read_text()
    taught = work / "teachers" / "pendulum" / "model.pt"
    before = taught.stat().st_mtime_ns

    done = run(work)
    assert done.returncode == 0, done.stderr
    assert "All 37 steps are done" in done.stdout
    assert taught.stat().st_mtime_ns == before
    assert (work / "begun.json").read_text() == begun
    hours = json.loads((work / "hours.json").read_text())
    assert min(hours.values()) > 0
    assert "Hours by stage, over all attempts: teachers " in done.stdout
    chosen = json.loads((work / "chosen.json").read_text())
    assert f"Round {chosen['round']} of the student is taken" in done.stdout
    compared = json.loads((work / "compared" / "student_int8-planned" / "report.json").read_text())["pairs"]
    assert len(compared[0]["tasks"]) == 4

    student = load_file(work / "models" / "student.pt")
    assert student.card is not None
    assert [score["action"] for score in student.card["scores"]] == ["planner", "policy"]
    assert {score["seed"] for score in student.card["scores"]} == {1000}
    assert set(student.card["trust"]["tasks"]) == {"pendulum-swingup", "pendulum-spin", "cartpole-balance", "cup-catch"}
    assert student.card["start"] == "random weights"
    assert student.card["steps"] == 20 * (chosen["round"] + 1), "of the rounds up to the one that was chosen"
    assert "'distillation_targets=[reward,value,plan 5,ranking 10]'" in student.card["command"]
    averaged = load_file(work / "student" / str(chosen["round"]) / "ema.pt")
    assert all(torch.equal(tensor, averaged.model[name]) for name, tensor in student.model.items())
    copy = load_file(work / "models" / "student_int8.pt")
    assert copy.card is not None
    assert copy.card["trust"]["starts"] > 0
    teacher = load_file(work / "models" / "teacher_pendulum.pt")
    assert teacher.card is not None
    assert set(teacher.card["trust"]["tasks"]) == {"pendulum-swingup", "pendulum-spin"}
    assert "mode=online" in teacher.card["command"]
    assert any(tensor.dtype == torch.int8 for tensor in torch.load(copy.origin, weights_only=True)["model"].values())

    again = run(work, "--plan")
    assert again.stdout.count(" done  tdmpc2 ") == 37
    assert "37 steps, 0.00 hours" in again.stdout

    published = tmp_path / "published.pt"
    sizes = {"model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "task_dim": 8, "num_q": 2}
    TDMPC2(Config(**sizes, device="cpu")).save(published)
    _forget_all_but_teachers(work)
    with_file = run(work, "--student", str(published))
    assert with_file.returncode == 0, with_file.stderr
    assert "All 41 steps are done" in with_file.stdout
    assert taught.stat().st_mtime_ns == before
    card = load_file(work / "models" / "student.pt").card
    assert card is not None
    assert card["start"] == "published.pt"
    assert "value_rmse" in card["trust"]["tasks"]["cup-catch"], "against the values of the published file"
    assert (work / "compared" / "published-alone" / "report.md").exists()


def _forget_all_but_teachers(work: Path) -> None:
    for path in (work / "done").iterdir():
        if not path.name.startswith(("teacher-", "replay-", "noisy-")):
            path.unlink()
    for folder in ("student", "selection", "scores", "copies", "models", "compared"):
        shutil.rmtree(work / folder)
    for folder in filter(Path.is_dir, (work / "data").iterdir()):  # beside locks
        if not folder.name.endswith(("_replay", "_noisy")):
            shutil.rmtree(folder)
    (work / "chosen.json").unlink()


def keys(step: Any) -> dict[str, str]:
    return dict(word.split("=", 1) for word in step.words if "=" in word)


def test_student_imitates_plans_more_than_all_else(modules: Modules) -> None:
    """At equal weights the divergence of the policies is many times the error of the plans."""
    _, scale, steps, _ = modules
    every = {step.name: step for step in steps.steps_of(scale.FULL, "work", "s.pt", steps.Origin("p", None))}
    for number in range(3):
        typed = keys(every[f"student-{number}"])
        typed = {key: value for key, value in typed.items() if key not in ("teachers", "checkpoint")}
        cfg = parse_cfg(typed_values(typed))
        assert cfg.distillation_terms["plan"] == 5
        assert cfg.distillation_terms.get("policy", 0) <= 0.02
        assert (cfg.value_scale, cfg.ema_decay) == ("per_task", 0.999)
        labels = keys(every[f"labels-{number}"])
        assert (labels["num_samples"], labels["iterations"]) == ("256", "6"), "fewer cost regret: benchmarks/RESULTS.md"
    assert keys(every["student-1"])["checkpoint"] == "work/student/0/ema.pt"
    assert "work/student/0/ema.pt" in keys(every["visited-1"])["mix"]


def test_seeds_of_rounds_selection_and_report_are_apart(modules: Modules) -> None:
    """Two rounds would visit the same starts, and a round would be chosen on what is reported."""
    _, scale, steps, _ = modules
    every = steps.steps_of(scale.FULL, "work", None, steps.Origin("p", None))
    visited = [keys(step) for step in every if step.name.startswith("visited-")]
    assert {typed["episodes_per_task"] for typed in visited} == {"40"}
    seeds = [typed["seed"] for typed in visited] + [
        "1",
        keys(next(s for s in every if s.name == "heldout-data"))["seed"],
    ]
    assert len(set(seeds)) == len(seeds)
    played = {
        kind: {
            int(keys(step)["eval_seed"]) + episode
            for step in every
            if step.name.startswith(kind)
            for episode in range(int(keys(step)["eval_episodes"]))
        }
        for kind in ("select-", "score-")
    }
    assert played["select-"]
    assert played["select-"].isdisjoint(played["score-"])


def test_round_with_the_best_selection_scores_is_taken(
    modules: Modules, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last round is not always the best; the choice stays, and everything after it is about that round."""
    reproduce, scale, steps, _ = modules
    pipeline = reproduce.Pipeline(tmp_path, scale.FULL, None, steps.Origin("p", None))
    scores = {(0, "planned"): 40.0, (0, "alone"): 30.0, (1, "planned"): 50.0, (1, "alone"): 45.0}
    scores |= {(2, "planned"): 51.0, (2, "alone"): 20.0}
    own = [step for step in pipeline.steps if step.name.startswith("select-")]
    assert len(own) == len(scores)
    for step, ((number, way), score) in zip(own, scores.items(), strict=True):
        assert pipeline.chosen() is None
        assert f"select-{number}-{way}" == step.name
        path = Path(steps.selection(str(tmp_path), number, way), "results.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"normalized_score": score}))
        write_text(pipeline.record(step), json.dumps({"command": step.line, "seconds": 1.0}))
        pipeline.choose()
    assert pipeline.chosen() == 1
    assert "Round 1 of the student is taken" in capsys.readouterr().out
    later = {step.name: step.line for step in pipeline.steps if step.stage in steps.LATER}
    assert f"{tmp_path}/student/1/ema.pt" in later["score-student-planned"]
    assert f"{tmp_path}/student/1/ema.pt" in later["copies"]
    assert f"run=[{tmp_path}/student/0,{tmp_path}/student/1]" in later["card-student"]
    assert not any("student/2" in line or "all-2" in line for line in later.values())
    (tmp_path / "chosen.json").write_text('{"round": 7, "scores": {}}')
    with pytest.raises(ValueError, match="there is no round 7"):
        pipeline.chosen()


def test_hours_are_those_of_all_attempts(
    modules: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a stop a step had the time of its last attempt alone."""
    reproduce, scale, steps, _ = modules
    pipeline = reproduce.Pipeline(tmp_path, scale.SMOKE, None, steps.Origin("p", None))
    step = next(step for step in pipeline.steps if step.name == "data-0")
    write_text(tmp_path / "spent" / "data-0.json", '{"seconds": 7200.0}')
    monkeypatch.setattr(steps.Step, "is_there", lambda self: True)
    pipeline.run(step)
    assert json.loads(pipeline.record(step).read_text())["seconds"] >= 7200
    reproduce.print_hours(pipeline)
    assert "data 2.00" in capsys.readouterr().out
    assert json.loads((tmp_path / "hours.json").read_text())["data"] == pytest.approx(2, abs=0.1)


def test_disk_counts_every_store_and_the_columns_beside_it(modules: Modules) -> None:
    """Three merged stores were counted as one, and none of what the teachers say of them."""
    _, scale, steps, estimate = modules
    every = {step.name: step for step in steps.steps_of(scale.FULL, "work", "s.pt", steps.Origin("p", None))}
    cfg = Config()
    rows = 2 * 50_000 * 5 + 7 * 50_000 + 500 * 40 * 30  # replay; noisy and other tasks' episodes
    for number in range(3):
        count = rows + number * 500 * 40 * 30
        assert estimate.disk_bytes(cfg, every[f"data-{number}"].work) == 4 * (24 + 6 + 1) * count
        assert estimate.disk_bytes(cfg, every[f"labels-{number}"].work) == 6 * 6 * count
        assert estimate.disk_bytes(cfg, every[f"student-{number}"].work) == 6 * 2 * count
    assert every["labels-1"].work.labels == 500 * 40 * 30
    assert every["heldout"].work.updates > 0


def test_cards_name_where_the_work_was_begun(modules: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer cores, on another machine or without git the command lines of the cards stay as they were."""
    reproduce, scale, steps, _ = modules
    lines = []
    for _ in range(2):
        origin = reproduce.origin_of(tmp_path)
        (tmp_path / "begun.json").write_text(json.dumps(origin._asdict()))
        lines.append([step.line for step in steps.steps_of(scale.SMOKE, "work", None, origin)])
        monkeypatch.setattr(reproduce, "usable_cores", lambda: 77)
        monkeypatch.setenv("PATH", str(tmp_path))
    assert lines[0] == lines[1]
    assert any("processor=" in line for line in lines[0])
    (tmp_path / "begun.json").unlink()
    assert reproduce.origin_of(tmp_path) == (f"{reproduce.processor_name()}, 77 cores", None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--student", "nowhere.pt"], "--student nowhere.pt does not exist: README.md says where the published one is"),
        (["--student", "a b.pt"], "--student a b.pt: a name without spaces"),
    ],
)
def test_file_that_cannot_be_is_refused_before_anything_is_made(tmp_path: Path, words: list[str], message: str) -> None:
    refused = run(tmp_path / "work", *words)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not (tmp_path / "work").exists()
