"""Reading the runs of a study: intervals, groups, the control."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.studies.labels import short_labels, wrapped
from tdmpc2.studies.report import markdown
from tdmpc2.studies.runs import Study, read_study
from tdmpc2.studies.summary import rows_of
from tdmpc2.support.intervals import difference_interval, mean_interval
from tdmpc2.tasks import TaskSpec, lookup
from tests.helpers.studies import write_run

# -- intervals --------------------------------------------------------------------------------------------------------


def test_mean_interval_matches_values_by_hand() -> None:
    """Printed t quantiles at 97.5 %: 12.706 for one degree of freedom, 4.303 for two, 2.776 for four."""
    assert mean_interval([3.0]) is None
    assert mean_interval([1.0, 3.0]) == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)  # s / sqrt(n) is 1
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    # Equal variances and numbers: Welch's degrees of freedom are 2 (n - 1) = 4.
    half = 2.776 * (2 / 3) ** 0.5
    assert difference_interval([11, 12, 13], [1, 2, 3]) == pytest.approx((10 - half, 10 + half), abs=1e-3)
    # The second has no variance: the degrees of freedom are those of the first.
    half = 4.303 / 3**0.5
    assert difference_interval([11, 12, 13], [2, 2]) == pytest.approx((10 - half, 10 + half), abs=1e-3)
    assert difference_interval([1, 1], [2, 2]) == (-1, -1)
    assert difference_interval([1, 2], [2]) is None


# -- groups -----------------------------------------------------------------------------------------------------------


def test_study_groups_are_named_by_what_differs(sweep: Path) -> None:
    names = ["no teacher", "no teacher (one of weight 0)", "distillation_weight=0.4", "distillation_weight=0.9"]
    rows = rows_of(read_study([sweep]))
    assert [row["name"] for row in rows] == names
    assert [row["is_control"] for row in rows] == [True, False, False, False]
    assert [row["score"] for row in rows] == [12, 12, 21, 10.5]
    assert [row["best"] for row in rows] == [13, 13, 22, 11.5]
    assert [row["minus_control"] for row in rows] == [None, 0, 9, -1.5]
    assert rows[2]["interval"] == pytest.approx((21 - 12.706, 21 + 12.706), abs=1e-3)
    assert rows[2]["minus_control_interval"] == difference_interval([20, 22], [10, 14])
    assert rows[2]["losses"] == {"reward_loss": 0.75, "value_loss": 1.5}
    assert rows[2]["returns"] == {"cup-spin": 210}
    assert rows[2]["hours"] == 2
    assert rows[2]["seeds"] == [1, 2]


def test_study_weight_zero_is_a_control(sweep: Path) -> None:
    for seed in (1, 2):
        shutil.rmtree(sweep / str(seed) / "none")
    control, taught, _ = rows_of(read_study([sweep]))
    assert (control["name"], control["is_control"]) == ("no teacher (one of weight 0)", True)
    assert taught["control"] == control["name"]


def test_study_control_has_the_same_budget(sweep: Path) -> None:
    """Runs with other batch sizes, steps or data are compared with controls of their own."""
    write_run(sweep, 1, 30, weight=0.4, batch_size=64)
    rows = rows_of(read_study([sweep]))
    assert [row["name"] for row in rows[-3:]] == [
        "batch_size=64, distillation_weight=0.4",
        "batch_size=256, distillation_weight=0.4",
        "batch_size=256, distillation_weight=0.9",
    ]
    assert [row["control"] for row in rows[-3:]] == [None, *["no teacher, batch_size=256"] * 2]


def test_study_keys_of_one_run_do_not_split_groups(tmp_path: Path) -> None:
    write_run(tmp_path, 1, 10, log_freq=7, wandb_project="p", save_video=True, device="cpu")
    write_run(tmp_path, 2, 12)
    (group,) = read_study([tmp_path]).groups
    assert (group.name, [run.seed for run in group.runs]) == ("no teacher", [1, 2])


def test_study_of_one_seed_has_no_interval(tmp_path: Path) -> None:
    write_run(tmp_path, 1, 10)
    write_run(tmp_path, 1, 15, weight=0.4)
    study = read_study([tmp_path])
    rows = rows_of(study)
    assert [(row["interval"], row["minus_control"], row["minus_control_interval"]) for row in rows] == [
        (None, None, None),
        (None, 5, None),
    ]
    assert "| distillation_weight=0.4 | 1 | 100 | 15.00 | +5.00 |" in markdown(study, rows)


def test_study_of_tasks_on_different_scales_has_no_score(tmp_path: Path) -> None:
    """The mean of normalised scores and returns was reported as a return; the table of returns by task remains."""
    for seed in (1, 2):
        directory = write_run(tmp_path, seed, 5.0)
        record = json.loads((directory / "run.json").read_text())
        specs = (lookup("cup-spin"), TaskSpec("Pendulum-v1", 3, 1, 200))
        record |= {"task": "own", "task_specs": [spec.plain() for spec in specs]}
        (directory / "run.json").write_text(json.dumps(record))
        label = "mixed score" if seed == 1 else "return"  # as it was called before
        (directory / "evaluations.json").write_text(json.dumps({"score": label, "50": 6.0, "100": -400.0}))
    study = read_study([tmp_path])
    (row,) = rows_of(study)
    assert (row["runs"], row["score"], row["best"], row["interval"]) == (2, None, None, None)
    text = markdown(study, [row])
    assert "-400" not in text
    assert "cup-spin" in text


def test_study_repeated_run_counts_once(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep / "1" / "none", tmp_path / "copy")
    study = read_study([sweep, tmp_path / "copy", sweep / "1"])  # a path below another one is read once
    assert [row["runs"] for row in rows_of(study)] == [2, 2, 2, 2]
    (line,) = study.left_out
    assert line.endswith("same settings and seed")


def test_study_lists_unfinished_runs(sweep: Path) -> None:
    write_run(sweep, 3, None, weight=0.4, step=60)
    not_evaluated = write_run(sweep, 4, None, weight=0.4, step=100)
    study = read_study([sweep])
    assert [row["runs"] for row in rows_of(study)] == [2, 2, 2, 2]
    assert {run.path: run.step for run in study.unfinished} == {sweep / "3" / "weight_0.4": 60, not_evaluated: 100}
    assert f"| {sweep / '3' / 'weight_0.4'} | 60 | 100 |" in markdown(study, rows_of(study))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", '{"seed": 1'),
        ("run.json", "[1]"),
        ("run.json", '{"steps": "many"}'),
        ("evaluations.json", '{"fifty": 1}'),
        ("train.csv", "step,reward_loss\n50,many\n"),
        ("train.csv", "reward_loss\n1.0\n"),
        ("eval_tasks.csv", "step,task\n50,cup-spin\n"),
        ("heldout.json", "\x00"),
    ],
)
def test_study_names_damaged_files(sweep: Path, name: str, content: str) -> None:
    path = sweep / "1" / "weight_0.4" / name
    path.write_text(content)
    study = read_study([sweep])
    (line,) = study.left_out
    assert line.startswith(f"{path} is damaged [")
    assert [row["runs"] for row in rows_of(study)] == [2, 2, 1, 2]


def test_study_says_which_evaluation_met_a_failed_environment(sweep: Path) -> None:
    path = sweep / "1" / "weight_0.4"
    evaluated = json.loads((path / "evaluations.json").read_text())
    last = max(evaluated, key=int)
    (path / "evaluations.json").write_text(json.dumps({**evaluated, last: None}))
    study = read_study([sweep])
    (line,) = study.left_out
    assert line == f"{path}: the score of step {last}, which is not a finite number"
    assert not study.unfinished, "it has been made, and would not be made again"
    rows = rows_of(study)
    assert [row["runs"] for row in rows] == [2, 2, 2, 2]
    assert [len(row["scores"]) for row in rows] == [2, 2, 2, 2], "at the step before"


# -- the control that is missing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", ["absent", "not evaluated"])
def test_missing_control_is_named_with_its_remedy(sweep: Path, control: str) -> None:
    for seed in (1, 2):
        shutil.rmtree(sweep / str(seed) / "weight_0.0")
        if control == "absent":
            shutil.rmtree(sweep / str(seed) / "none")
        else:
            (sweep / str(seed) / "none" / "run.json").write_text(
                (sweep / str(seed) / "none" / "run.json").read_text().replace('"eval_freq": 50', '"eval_freq": 0')
            )
            (sweep / str(seed) / "none" / "evaluations.json").unlink()
    study = read_study([sweep])
    rows = rows_of(study)
    assert all(row["minus_control"] is None for row in rows)
    text = markdown(study, rows)
    assert "has the same budget as: distillation_weight=0.4; distillation_weight=0.9." in text
    assert "`teacher_config=null`" in text


def test_study_with_controls_does_not_ask_for_any(sweep: Path) -> None:
    study = read_study([sweep])
    assert "No finished run without a teacher" not in markdown(study, rows_of(study))


# -- labels -----------------------------------------------------------------------------------------------------------


def test_keys_that_follow_from_the_model_size_are_not_in_a_name(tmp_path: Path) -> None:
    """A 5M teacher beside 1M students used to put latent_dim, mlp_dim, num_q, ... into every label."""
    write_run(tmp_path, 1, 50, model_size=5)
    write_run(tmp_path, 1, 10)
    write_run(tmp_path, 1, 20, weight=0.45)
    assert [row["name"] for row in rows_of(read_study([tmp_path]))] == [
        "no teacher, model_size=1",
        "no teacher, model_size=5",
        "model_size=1, distillation_weight=0.45",
    ]


def test_widths_without_a_model_size_part_groups(tmp_path: Path) -> None:
    for mlp_dim in (64, 128):
        write_run(tmp_path, 1, 10, model_size=None, mlp_dim=mlp_dim)
    names = [row["name"] for row in rows_of(read_study([tmp_path]))]
    assert names == ["no teacher, mlp_dim=64", "no teacher, mlp_dim=128"]


def test_long_names_become_letters_that_a_table_explains(tmp_path: Path) -> None:
    write_run(tmp_path, 1, 10, weight=0.4, distillation_targets=("reward", "next_state_linear"))
    write_run(tmp_path, 1, 20, weight=0.4, distillation_targets=("reward", "next_state_pca"), batch_size=64)
    study = read_study([tmp_path])
    rows = rows_of(study)
    assert [row["label"] for row in rows] == ["A", "B"]
    text = markdown(study, rows)
    assert f"| A | {rows[0]['name']} |" in text
    assert "| task | A | B |" in text


def test_wrapped_breaks_between_settings() -> None:
    text = "distillation_targets=[reward,value], distillation_weight=0.45, model_size=1"
    assert wrapped(text, 40).split("\n") == [
        "distillation_targets=[reward,value],",
        "distillation_weight=0.45, model_size=1",
    ]
    assert wrapped("targets=[reward,value 0.1]", 20) == "targets=[reward,\nvalue 0.1]"
    assert max(map(len, wrapped("x" * 70, 30).split("\n"))) <= 30


def test_letters_go_on_after_z() -> None:
    labels = short_labels([f"{index:050}" for index in range(28)])
    assert list(labels.values())[-3:] == ["Z", "AA", "AB"]


def test_groups_that_differ_in_the_contents_of_one_directory_keep_their_own_controls(tmp_path: Path) -> None:
    """Their names were equal, and the student of the newer data was compared with the control of the older."""
    for contents, base in (("old", 10.0), ("new", 50.0)):
        for weight, gain in ((None, 0.0), (0.45, 5.0)):
            for seed in (1, 2):
                run = write_run(tmp_path / contents, seed, base + gain + seed, weight=weight)
                record = json.loads((run / "run.json").read_text())
                (run / "run.json").write_text(json.dumps(record | {"data": {"checksum": contents}}))
    rows = rows_of(read_study([tmp_path]))
    assert len({row["name"] for row in rows}) == 4
    assert len({row["label"] for row in rows}) == 4
    assert [row["minus_control"] for row in rows if row["distilled"]] == pytest.approx([5.0, 5.0])


def scored(tmp_path: Path, scores: dict[int, float], step: int, **keys: Any) -> Study:
    run = write_run(tmp_path, 1, 0.0, step=step, **keys)
    (run / "evaluations.json").write_text(json.dumps(scores))
    return read_study([tmp_path])


def test_run_whose_environments_step_beyond_the_last_step_is_finished(tmp_path: Path) -> None:
    """Three environments take the 100 steps as 102, and evaluate after 51 and 102."""
    study = scored(tmp_path, {0: 1.0, 51: 2.0, 102: 3.0}, 102)
    assert not study.unfinished
    assert study.groups[0].scores == [3.0]


def test_score_of_step_zero_is_not_that_of_a_finished_run(tmp_path: Path) -> None:
    """Learning online evaluates what it begins with; evaluated at no later step, the run has no score."""
    study = scored(tmp_path, {0: 60.0}, 100, eval_freq=1000)
    assert not study.unfinished
    (row,) = rows_of(study)
    assert (row["scores"], row["score"], row["score_step"]) == ([], None, None)


def test_score_of_an_earlier_step_says_which(tmp_path: Path) -> None:
    study = scored(tmp_path, {0: 1.0, 60: 7.0}, 100, eval_freq=60)
    (row,) = rows_of(study)
    assert (row["score"], row["score_step"]) == (7.0, 60)
    assert "| of step |" in markdown(study, [row])


def test_scores_of_different_steps_are_not_passed_off_as_those_of_one(tmp_path: Path) -> None:
    """Two seeds that share no step of evaluation had a mean without a word about it, and a difference from others."""
    for seed, scores in ((1, {30: 1.0, 60: 7.0}), (2, {45: 3.0, 90: 5.0})):
        path = write_run(tmp_path / str(seed), seed, 0.0, step=100, eval_freq=min(scores))
        (path / "evaluations.json").write_text(json.dumps(scores))
    study = read_study([tmp_path])
    (row,) = rows_of(study)
    assert (row["score"], row["score_step"]) == (6.0, None)
    assert "| of different steps |" in markdown(study, [row])


def test_students_of_different_plans_are_no_repetitions(tmp_path: Path) -> None:
    """Plans are made before the run, whose own settings do not tell how."""
    for samples in (8, 64):
        directory = write_run(tmp_path / str(samples), 1, 10 + samples, weight=0.4)
        record = json.loads((directory / "run.json").read_text())
        (directory / "run.json").write_text(json.dumps(record | {"made_outputs": {"plan": {"num_samples": samples}}}))
    study = read_study([tmp_path])
    assert [group.values["plan.num_samples"] for group in study.groups] == [8, 64]
    assert not study.left_out


def test_errors_are_of_the_weights_whose_scores_are_the_runs(tmp_path: Path) -> None:
    """With eval_weights=ema that is the average."""
    directory = write_run(tmp_path, 1, 10, ema_decay=0.99, eval_weights="ema")
    (directory / "heldout.json").write_text('{"checkpoint": "model.pt", "errors": {"reward_rmse": 1.0}, "step": 100}')
    (directory / "heldout_ema.json").write_text('{"checkpoint": "ema.pt", "errors": {"reward_rmse": 2.0}, "step": 100}')
    (row,) = rows_of(read_study([tmp_path]))
    assert row["heldout"] == {"reward_rmse": 2.0}
