"""The command `tdmpc2 export`: what it refuses, what it writes, and what it finds when it checks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.commands.export import main
from tdmpc2.export import check as checking
from tdmpc2.export.graph import STEPS
from tdmpc2.export.onnx_file import ENDING, export, read_card
from tdmpc2.export.request import Request, load
from tdmpc2.export.step_files import target_files
from tdmpc2.tasks import TaskSpec
from tests.helpers.agents import small_config


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--to", "tflite"), "to: 'tflite' is not one of onnx"),
        (("precision=bf16",), "precision=bf16: --to onnx writes fp32, int8"),
        (("task=walker-wolk",), "walker-walk"),
        (("tasks=[walker-walk,humanoid-run]",), "'humanoid-run' is none of the tasks"),
        (("task=walker-walk", "tasks=[cup-catch]"), "name one of the two keys"),
        (("num_samples=1",), "num_samples=1"),
        (("lr=1",), "Unknown key 'lr'"),
        (("envs=0",), "envs=0 must be at least 1"),
        (("steps=4",), "steps is what a check goes by: add --check"),
        (("data=episodes",), "data is what a check goes by: add --check"),
        (("out=model.tflite",), "out=model.tflite must end in .onnx, or be a directory"),
    ],
)
def test_command_refuses_in_one_line(
    words: tuple[str, ...], line: str, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = () if any("out=" in word for word in words) else (f"out={tmp_path / 'robot.onnx'}",)
    assert line in refusal(capsys, str(model_file), *words, *elsewhere)
    assert {path.suffix for path in model_file.parent.iterdir()} <= {".pt", ".onnx"}


def test_check_that_cannot_play_the_task_is_refused_before_writing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The module of a user's own environment is imported only if the user names the task."""
    path, task = tmp_path / "model.pt", "absent_module:Mine-v0"
    TDMPC2(small_config(task=task, task_specs=(TaskSpec(task, 4, 2),), task_dim=0)).save(path)
    assert "name the task yourself, as in task=absent_module:Mine-v0" in refusal(capsys, str(path), "check=true")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_command_replaces_no_file_unasked(model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "robot_plan.onnx").write_text("mine")
    line = refusal(capsys, str(model_file), f"out={tmp_path / 'robot.onnx'}")
    assert "There is already" in line
    assert "--force" in line
    assert (tmp_path / "robot_plan.onnx").read_text() == "mine"


def test_command_never_replaces_the_checkpoint(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "robot_plan.onnx"
    shutil.copy(model_file, own)
    line = refusal(capsys, str(own), f"out={tmp_path / 'robot.onnx'}", "--force")
    assert "is the checkpoint itself" in line


def test_command_without_onnx_says_how_to_get_it(
    model_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tdmpc2.export.onnx_file.missing_packages", lambda extra: ["onnxruntime"])
    line = refusal(capsys, str(model_file))
    assert "needs onnxruntime: pip install onnx" in line


def test_files_are_named_after_checkpoint_task_and_precision(model_file: Path, tmp_path: Path) -> None:
    request = Request(model_file, task="walker-walk", precision="int8")
    assert target_files(request, ENDING)["plan"].name == "model_walker-walk_int8_plan.onnx"
    copy = replace(request, checkpoint=tmp_path / "student_int8.pt", task=None)
    assert target_files(copy, ENDING)["plan"].name == "student_int8_plan.onnx"
    assert target_files(replace(copy, precision="fp32"), ENDING)["plan"].name == "student_int8_plan.onnx"
    assert target_files(replace(request, out=tmp_path), ENDING)["policy"].parent == tmp_path
    assert target_files(replace(request, out=tmp_path / "a.onnx"), ENDING)["policy"] == tmp_path / "a_policy.onnx"
    own = target_files(replace(request, task="mine:Mine-v0"), ENDING)["plan"].name
    assert ":" not in own  # not allowed in names on Windows


def test_read_card_of_another_file_is_one_line(model_file: Path) -> None:
    with pytest.raises(ValueError, match=r"model.pt is no ONNX file of `tdmpc2 export`"):
        read_card(model_file)


def compared(request: Request, files: dict[str, Path]) -> list[checking.Parity]:
    source, runtimes = load(request), {name: checking.Runtime(path) for name, path in files.items()}
    return checking.compare(request, source, [step(source.model, num_envs=request.envs) for step in STEPS], runtimes)


def test_check_on_played_episodes_finds_no_difference(
    request_of: Request, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = compared(replace(request_of, steps=3), files)
    assert [row.task for row in rows] == list(request_of.tasks)
    assert {row.observations for row in rows} == {3}
    assert checking.check(rows)
    assert "all within the limits" in capsys.readouterr().out


@pytest.mark.slow
def test_check_on_stored_episodes_finds_no_difference(request_of: Request, data_dir: Path, tmp_path: Path) -> None:
    request = replace(
        request_of, tasks=("pendulum-spin",), data=str(data_dir), steps=3, check=True, out=tmp_path / "robot.onnx"
    )
    assert export(request)
    rows = compared(request, target_files(request, ENDING))
    assert [(row.task, row.observations) for row in rows] == [("pendulum-spin", 3)]
    assert checking.check(rows)


@pytest.mark.parametrize(
    ("regret", "rounding", "right"),
    [(0.0001, 0, True), (0.06, 0, False), (0.24, 0.24, True), (0.24, 0.1, False)],
)
def test_regret_of_rounded_weights_is_not_the_exports(regret: float, rounding: float, right: bool) -> None:
    """Rounding to int8 costs some regret by itself; an export is wrong only if it adds to that."""
    row = checking.Parity("cheetah-run", 20, 0, 0, 0, 0, 1, regret, rounding, regret - rounding)
    assert row.right == right


def test_plans_of_equal_worth_behind_an_end_are_right() -> None:
    """Sequences that differ only after a predicted termination are worth the same, so either may be chosen."""
    row = checking.Parity("Hopper-v5", 20, 0, 0, 0.1, 1, 1, 0.0, 0, 0.0)
    assert not row.right
    assert row._replace(ties=True).right
    assert not row._replace(ties=True, regret=0.1, beyond=0.1).right


def test_check_finds_a_weight_that_differs(
    request_of: Request, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A check that cannot fail is worth nothing."""
    changed = {name: tmp_path / path.name for name, path in files.items()}
    for name, path in files.items():
        model = onnx.load(path)
        [weight] = [tensor for tensor in model.graph.initializer if tensor.name == "model._pi.0.weight"]
        values = onnx.numpy_helper.to_array(weight) * np.linspace(0.5, 2, 32, dtype=np.float32)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, changed[name])
    rows = compared(replace(request_of, steps=2), changed)
    assert not checking.check(rows)
    assert "outside of the limits" in capsys.readouterr().out
    assert min(row.policy for row in rows) > 1e-3
