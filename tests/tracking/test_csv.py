"""CSV files of a run: exact values, and how they survive kills."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdmpc2.tracking.logger import Logger
from tests.helpers.tracking import config, text_rows


def test_csv_has_exact_values_in_one_file_per_group(tmp_path: Path) -> None:
    third = torch.tensor(1 / 3)
    with Logger(config(tmp_path), total_steps=300, stream=io.StringIO()) as logger:
        logger.log(100, {"total_loss": third, "n": 3})
        assert len(text_rows(tmp_path / "train.csv")) == 1, "a row is on disk when log returns"
        logger.log(200, {"total_loss": float("nan"), "n": 4})
        logger.log(200, {"score": 12.5}, group="eval")
        logger.log_table(200, "eval/tasks", ["task", "score"], [["walker-walk", 12.5], ["a,b", None]])
    assert (tmp_path / "train.csv").read_text() == f"step,total_loss,n\n100,{third.item()!r},3\n200,nan,4\n"
    assert (tmp_path / "eval.csv").read_text() == "step,score\n200,12.5\n"
    assert text_rows(tmp_path / "eval_tasks.csv") == [
        {"step": "200", "task": "walker-walk", "score": "12.5"},
        {"step": "200", "task": "a,b", "score": ""},
    ]


def test_csv_new_column_is_added_to_earlier_rows(tmp_path: Path) -> None:
    with Logger(config(tmp_path), total_steps=3, stream=io.StringIO()) as logger:
        logger.log(1, {"a": 1.0})
        logger.log(2, {"b": 2.0, "a": 1.5})
        logger.log(3, {"b": 3.0})
    assert (tmp_path / "train.csv").read_text() == "step,a,b\n1,1.0,\n2,1.5,2.0\n3,,3.0\n"
    assert {path.name for path in tmp_path.iterdir()} == {"train.csv", "speed.csv", "train.log"}


def test_csv_speed_has_its_own_file(tmp_path: Path, clock: list[float]) -> None:
    """Times are not in train.csv, where equal runs would differ; they add up over the steps that were kept."""
    with Logger(config(tmp_path), total_steps=300, stream=io.StringIO()) as logger:
        for step in (100, 200):
            clock[0] += 4.0
            logger.log(step, {"a": 1.0}, data_wait=0.5)
    with Logger(config(tmp_path), total_steps=300, start_step=100, wall_seconds=5.0, stream=io.StringIO()) as logger:
        clock[0] += 2.0
        logger.log(200, {"a": 1.0})
    assert (tmp_path / "train.csv").read_text() == "step,a\n100,1.0\n200,1.0\n"
    assert (tmp_path / "speed.csv").read_text() == (
        "step,seconds,it_per_s,data_wait,wall_seconds\n100,4.0,25.0,0.5,4.0\n200,2.0,50.0,,7.0\n"
    )


def test_speed_leaves_out_pauses(tmp_path: Path, clock: list[float]) -> None:
    """An evaluation between two rows used to lower the logged speed of updates."""
    with Logger(config(tmp_path), total_steps=300, stream=io.StringIO()) as logger:
        clock[0] += 4.0
        with logger.pause():
            clock[0] += 96.0
        logger.log(100, {"a": 1.0})
        clock[0] += 4.0
        logger.log(200, {"a": 1.0})
    assert [(row["seconds"], row["it_per_s"], row["wall_seconds"]) for row in text_rows(tmp_path / "speed.csv")] == [
        ("100.0", "25.0", "100.0"),
        ("4.0", "25.0", "104.0"),
    ]


def test_speed_file_without_wall_seconds_is_continued(tmp_path: Path, clock: list[float]) -> None:
    (tmp_path / "speed.csv").write_text("step,seconds,it_per_s,data_wait\n100,4.0,25.0,0.5\n")
    with Logger(config(tmp_path), total_steps=300, start_step=100, wall_seconds=4.0, stream=io.StringIO()) as logger:
        clock[0] += 2.0
        logger.log(200, {"a": 1.0}, data_wait=0.25)
    assert (tmp_path / "speed.csv").read_text() == (
        "step,seconds,it_per_s,data_wait,wall_seconds\n100,4.0,25.0,0.5,\n200,2.0,50.0,0.25,6.0\n"
    )


def test_csv_switched_off_writes_no_file(tmp_path: Path) -> None:
    with Logger(config(tmp_path / "run", save_csv=False), total_steps=1, stream=io.StringIO()) as logger:
        logger.log(1, {"a": 1.0})
    assert list((tmp_path / "run").iterdir()) == []


def test_csv_new_run_sets_old_files_aside(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        with Logger(config(tmp_path), total_steps=1, stream=io.StringIO()) as logger:
            logger.log(1, {"a": value})
    found = {path.name: text_rows(path)[0]["a"] for path in tmp_path.glob("train.csv*")}
    assert found == {"train.csv.1": "1.0", "train.csv.2": "2.0", "train.csv": "3.0"}


def test_csv_of_unsaved_run_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("my,own\n1,2\n")
    for value in (1.0, 2.0):
        with Logger(config(tmp_path), total_steps=1, begun_before=value > 1, stream=io.StringIO()) as logger:
            logger.log(1, {"a": value})
    assert [row["a"] for row in text_rows(tmp_path / "train.csv")] == ["2.0"]
    assert not list(tmp_path.glob("*.csv.1"))
    assert (tmp_path / "notes.csv").read_text() == "my,own\n1,2\n"


def test_csv_rows_survive_a_kill(tmp_path: Path) -> None:
    def child() -> None:
        logger = Logger(config(tmp_path), total_steps=9, stream=io.StringIO()).__enter__()
        for step in range(1, 8):
            logger.log(step, {"a": step / 3})
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [(row["step"], float(row["a"])) for row in text_rows(tmp_path / "train.csv")] == [
        (str(step), step / 3) for step in range(1, 8)
    ]


def test_csv_torn_last_row_is_dropped(tmp_path: Path) -> None:
    """The last number looks complete, but may be the start of a longer one."""
    (tmp_path / "train.csv").write_text("step,a\n100,1.0\n200,2.2")
    with Logger(config(tmp_path), total_steps=1000, start_step=200, stream=io.StringIO()) as logger:
        logger.log(300, {"a": 3.0})
    assert (tmp_path / "train.csv").read_text() == "step,a\n100,1.0\n300,3.0\n"


def test_csv_resumed_leaves_other_files_alone(tmp_path: Path) -> None:
    foreign = "name,step\nx,900\n"
    (tmp_path / "notes.csv").write_text(foreign)
    (tmp_path / "train.csv.1").write_text("step,a\n900,1.0\n")
    (tmp_path / "eval.csv").write_text("step,a\n100,1.0\n900,1.0\n")
    with Logger(config(tmp_path), total_steps=1000, start_step=500, stream=io.StringIO()):
        pass
    assert (tmp_path / "notes.csv").read_text() == foreign
    assert (tmp_path / "train.csv.1").read_text() == "step,a\n900,1.0\n"
    assert (tmp_path / "eval.csv").read_text() == "step,a\n100,1.0\n"


HISTORY = st.lists(
    st.dictionaries(st.sampled_from(["a", "b,c", 'd "e"']), st.floats(), min_size=1), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(history=HISTORY, data=st.data())
def test_csv_killed_and_resumed_equals_undisturbed(history: list[dict], data: st.DataObject) -> None:
    """The kill may cut the file at any byte after the rows of the step that training resumes from."""

    def write(directory: Path, start: int, stop: int) -> bytes:
        with Logger(config(directory), total_steps=8, start_step=start, stream=io.StringIO()) as logger:
            for step in range(start + 1, stop + 1):
                logger.log(step, history[step - 1])
        return (directory / "train.csv").read_bytes()

    with tempfile.TemporaryDirectory() as name:
        undisturbed = write(Path(name) / "undisturbed", 0, len(history))
        killed_at = data.draw(st.integers(1, len(history)))
        resumed_from = data.draw(st.integers(1, killed_at))
        killed = Path(name) / "killed"
        text = write(killed, 0, killed_at)
        kept = sum(len(line) for line in text.splitlines(keepends=True)[: resumed_from + 1])
        (killed / "train.csv").write_bytes(text[: data.draw(st.integers(kept, len(text)))])
        if resumed_from == len(history):
            with Logger(config(killed), total_steps=8, start_step=resumed_from, stream=io.StringIO()):
                pass
            assert (killed / "train.csv").read_bytes() == undisturbed
        else:
            assert write(killed, resumed_from, len(history)) == undisturbed
