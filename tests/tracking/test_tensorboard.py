"""TensorBoard: what it is given, how continued runs are shown, and failures that do not disturb training."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.tracking.logger import Logger
from tests.helpers.tracking import OFF, config, text_rows

pytest.importorskip("tensorboard")


def log(directory: Path, steps: range, start_step: int = 0, again: bool = False, **keys: Any) -> list[str]:
    """Log one start of a run and return the lines of its console."""
    stream = io.StringIO()
    cfg = config(directory, **{"tracker": "tensorboard", **keys})
    with Logger(cfg, total_steps=9, start_step=start_step, evaluate_again=again, stream=stream) as logger:
        if again:
            logger.log(start_step, {"normalized_score": -1.0}, "eval")
        for step in steps:
            logger.log(step, {"total_loss": step / 4, "distillation_loss": 1.0})
            logger.log(step, {"normalized_score": 10.0 * step}, "eval")
        logger.log_episodes(steps[-1], [{"task": "walker-walk", "return": 5.0}])
        logger.log_table(steps[-1], "eval/tasks", ("task", "return"), [["walker-walk", 7.0]], curve="return")
        logger.log_video(1, "video/walker-walk", "no.mp4")
        logger.save_artifact("no.pt", "x", "model")
        logger.alert("Training diverged", "at step 7")
    return stream.getvalue().splitlines()


def read(directory: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    return events


def series(events: Any, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_shows_the_names_of_wandb(tmp_path: Path) -> None:
    lines = log(tmp_path, range(1, 4), teacher_score=30.0)
    assert lines[0] == f"TensorBoard: tensorboard --logdir {tmp_path / 'tensorboard'}"
    events = read(tmp_path)
    assert series(events, "train/total_loss") == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert series(events, "eval/normalized_score") == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert series(events, "eval/walker-walk") == [(3, 7.0)]
    assert series(events, "episode/walker-walk") == [(3, 5.0)]
    assert series(events, "eval/teacher_score")[0] == (0, 30.0)
    assert {"distill/reward_loss", "speed/it_per_s"} <= set(events.Tags()["scalars"])
    texts = {name: events.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in events.Tags()["tensors"]}
    assert '"task": "walker-walk"' in texts["config/student/text_summary"]
    assert "at step 7" in texts["alerts/text_summary"]


def test_tensorboard_of_continued_run_shows_each_step_once(tmp_path: Path) -> None:
    """A run killed after step 5 with step 3 saved takes the steps 4 and 5 again."""
    log(tmp_path, range(1, 6))
    log(tmp_path, range(4, 8), start_step=3)
    assert [step for step, _ in series(read(tmp_path), "train/total_loss")] == [1, 2, 3, 4, 5, 6, 7]


def test_tensorboard_of_run_that_evaluates_again_shows_the_evaluation_once(tmp_path: Path) -> None:
    """A run killed while it wrote the evaluation of step 3 makes it again; the training row of the step stays."""
    log(tmp_path, range(1, 4), teacher_score=30.0)
    log(tmp_path, range(4, 6), start_step=3, again=True, teacher_score=30.0)
    events = read(tmp_path)
    scores = series(events, "eval/normalized_score")
    assert scores == [(1, 10.0), (2, 20.0), (3, -1.0), (4, 40.0), (5, 50.0)]
    assert [step for step, _ in series(events, "eval/teacher_score")] == [0, 1, 2, 3, 4, 5]
    assert series(events, "train/total_loss") == [(step, step / 4) for step in range(1, 6)]
    assert series(events, "episode/walker-walk") == [(3, 5.0), (5, 5.0)]


def test_tensorboard_of_continued_run_shows_the_scores_to_compare_with_once(tmp_path: Path) -> None:
    for steps, start in ((range(1, 4), 0), (range(4, 6), 3)):
        log(tmp_path, steps, start_step=start, teacher_score=30.0)
    assert [step for step, _ in series(read(tmp_path), "eval/teacher_score")] == [0, 1, 2, 3, 4, 5]


def test_tensorboard_of_run_begun_anew_hides_what_never_was_saved(tmp_path: Path) -> None:
    """A run killed before its first save takes all steps again."""
    log(tmp_path, range(1, 6))
    log(tmp_path, range(1, 3))
    assert [step for step, _ in series(read(tmp_path), "train/total_loss")] == [1, 2]


def test_tensorboard_beside_wandb_leaves_its_line(tmp_path: Path) -> None:
    lines = log(tmp_path, range(1, 2), tracker=["tensorboard", "wandb"])
    assert lines[:2] == [OFF, f"TensorBoard: tensorboard --logdir {tmp_path / 'tensorboard'}"]


def test_tracker_none_shows_and_writes_nothing_of_trackers(tmp_path: Path) -> None:
    lines = log(tmp_path, range(1, 2), tracker="none", wandb_project="p")
    assert not [line for line in lines if "TensorBoard" in line or "Weights" in line]
    assert not (tmp_path / "tensorboard").exists()


def test_tensorboard_failing_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    lines = [line for line in log(tmp_path, range(1, 6)) if "TensorBoard" in line]
    assert lines[1:] == [
        "TensorBoard: metrics off after an error (OSError: [Errno 28] No space left on device). Training continues."
    ]
    assert len(text_rows(tmp_path / "train.csv")) == 5


def test_tensorboard_that_cannot_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard may not be installed, or its folder may be a link or a file."""
    off = "TensorBoard: off, it did not start ({}). Training continues without it."
    with monkeypatch.context() as patch:
        patch.setattr("tdmpc2.tracking.tensorboard.missing_packages", lambda _: ["tensorboard"])
        first = log(tmp_path / "a", range(1, 2))[0]
    assert first == off.format("it is not installed: pip install tensorboard")
    linked = tmp_path / "b" / "tensorboard"
    linked.parent.mkdir()
    linked.symlink_to(tmp_path / "elsewhere")
    assert log(tmp_path / "b", range(1, 2))[0] == off.format(
        f"{linked} is a link, and nothing is written through links"
    )
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "tensorboard").write_text("a file")
    assert log(tmp_path / "c", range(1, 2))[0].startswith("TensorBoard: off, it did not start (FileExistsError")
    assert len(text_rows(tmp_path / "c" / "train.csv")) == 1
