"""Names of evaluations."""

from __future__ import annotations

from tdmpc2.config import Config
from tdmpc2.play.protocols import checkpoint_name, labels, plan_text

STUDENT = {
    "checkpoint": "logs/student/model.pt",
    "precision": "bf16",
    "action": "planner",
    "config": Config().to_dict(),
}


def test_labels_of_different_checkpoints_are_their_names() -> None:
    other = {**STUDENT, "checkpoint": "x/student_int8.pt"}
    assert labels([STUDENT, other], ["a", "b"]) == ["student", "student_int8"]


def test_labels_name_the_settings_that_differ() -> None:
    """A figure used to call three evaluations of one file student, student-2 and student-3."""
    few = {**STUDENT, "config": Config(num_samples=64, num_elites=8, num_pi_trajs=3).to_dict()}
    assert labels([STUDENT, few], ["a", "b"]) == ["student, num_samples=512", "student, num_samples=64"]


def test_labels_of_equal_evaluations_are_told_apart_by_their_directories() -> None:
    assert labels([STUDENT, dict(STUDENT)], ["eval-student", "eval-student-2"]) == [
        "student (eval-student)",
        "student (eval-student-2)",
    ]


def test_labels_of_results_without_a_protocol_still_differ() -> None:
    assert labels([{}, {}], ["a", "b"]) == ["? (a)", "? (b)"]


def test_files_of_a_run_are_named_with_their_directory() -> None:
    """The averaged weights of every run are called ema.pt."""
    assert checkpoint_name("logs/a/ema.pt") == "a-ema"
    assert checkpoint_name("logs/a/best.pt") == "a-best"
    assert checkpoint_name("logs/a/model_5000.pt") == "a-model_5000"
    assert checkpoint_name("logs/a/model.pt") == "a"
    assert checkpoint_name("models/student.pt") == "student"


def test_plan_text_names_what_is_not_usual() -> None:
    config = Config(num_samples=128, iterations=4, plan_action="mean")
    usual = {"config": config.to_dict(), "plan_iterations": 4}
    assert plan_text(usual) == "4 x 128 samples, horizon 3, mean of the plan"
    assert plan_text({"config": {**config.to_dict(), "num_elites": None}}) == plan_text(usual), "it follows"
    other = {**usual, "config": config.replace(temperature=9.0, num_elites=2).to_dict()}
    assert plan_text(other) == "4 x 128 samples, horizon 3, mean of the plan, num_elites=2, temperature=9"
