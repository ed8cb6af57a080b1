"""Files of the user are never deleted, overwritten or written to through links."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from tdmpc2.commands import main
from tdmpc2.studies.curves import draw_run
from tdmpc2.studies.report import markdown, to_json, write_report
from tdmpc2.studies.runs import Study, read_study
from tdmpc2.studies.summary import rows_of
from tdmpc2.support.appending import append_whole, open_append
from tdmpc2.support.csv_files import CsvFile
from tdmpc2.support.figures import free_figure_name, save_figure
from tdmpc2.support.files import delete_leftovers, directory_locked
from tdmpc2.tracking.logger import Logger
from tests.helpers.tracking import config

OWN = {
    "mine.csv": "step,note\n1,x\n999,y\nfoo,z\n",
    "empty.csv": "",
    "hand.csv": "step,label",
    ".mine.tmp": "x",
    ".notes.draft.tmp": "x",
    "train.csv.bak": "step,a\n9,1\n",
    ".wandb-notes": "x",
}


@pytest.mark.parametrize("starting", [{"begun_before": True}, {"start_step": 4}, {"start_step": 4, "run_id": "x"}, {}])
def test_run_directory_keeps_the_users_own_files(tmp_path: Path, starting: dict[str, object]) -> None:
    """A resumed run used to delete or cut every CSV file that began with `step`."""
    for name, text in OWN.items():
        (tmp_path / name).write_text(text)
    delete_leftovers(tmp_path)
    with Logger(config(tmp_path), total_steps=9, stream=io.StringIO(), **starting) as logger:  # type: ignore[arg-type]
        logger.log(5, {"a": 1.0})
    assert {name: (tmp_path / name).read_text() for name in OWN} == OWN


@pytest.mark.parametrize("name", ["train.csv", "speed.csv", "train.log", "eval.csv", "eval_tasks.csv"])
@pytest.mark.parametrize("starting", [{"begun_before": True}, {"start_step": 4}])
def test_log_through_a_link_leaves_the_file_behind_it_alone(
    tmp_path: Path, name: str, starting: dict[str, object]
) -> None:
    """A link with the name of a log file used to have its target appended to, cut or deleted."""
    precious = "step,mine\n9,1\n"
    (tmp_path / "precious").write_text(precious)
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(tmp_path / "precious")
    stream = io.StringIO()
    with Logger(config(run), total_steps=9, stream=stream, **starting) as logger:  # type: ignore[arg-type]
        logger.log(5, {"a": 1.0})
        logger.log(5, {"score": 1.0}, group="eval")
        logger.log_table(5, "eval/tasks", ["task"], [["x"]])
    assert (tmp_path / "precious").read_text() == precious
    assert (run / name).is_symlink()
    assert name in stream.getvalue()
    assert "link" in stream.getvalue()


@pytest.mark.parametrize("kind", ["fifo", "directory", "dangling link"])
def test_append_to_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "train.csv"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match=r"named pipe|a directory|link"):
        open_append(path)
    assert not (tmp_path / "nowhere").exists()


def test_append_that_the_disk_refuses_leaves_no_half_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.csv"
    file = CsvFile(path)
    file.append([{"step": 1, "a": 1.0}])
    whole, write = path.read_bytes(), os.write
    room = [4]

    def full(descriptor: int, content: memoryview) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        taken, room[0] = room[0], 0
        return write(descriptor, content[:taken])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        file.append([{"step": 2, "a": 2.0}])
    assert path.read_bytes() == whole
    monkeypatch.undo()
    file.append([{"step": 3, "a": 3.0}])
    assert path.read_text() == "step,a\n1,1.0\n3,3.0\n"
    with open_append(path) as more:
        append_whole(more, b"4,4.0\n")
    assert path.read_text().endswith("3,3.0\n4,4.0\n")


# -- figures and reports ----------------------------------------------------------------------------------------------


def run_with_curves(directory: Path) -> Path:
    with Logger(config(directory), total_steps=9, stream=io.StringIO()) as logger:
        for step in (1, 2, 3):
            logger.log(step, {"total_loss": 1.0 / step})
    return directory


@pytest.mark.parametrize("kind", ["file", "figure", "link", "dangling link", "directory"])
def test_figure_never_takes_the_name_of_a_file_that_is_there(tmp_path: Path, kind: str) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    path, other = tmp_path / "curves.png", tmp_path / "precious.png"
    other.write_bytes(b"precious")
    if kind == "file":
        path.write_bytes(b"precious")
    elif kind == "figure":
        figures.Figure().savefig(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(other if kind == "link" else tmp_path / "nowhere")
    assert free_figure_name(path) == tmp_path / "curves-2.png"
    with pytest.raises(ValueError, match="was not drawn by this program"):
        save_figure(figures.Figure(), path)
    save_figure(figures.Figure(), tmp_path / "curves-2.png")
    assert free_figure_name(path) == tmp_path / "curves-2.png", "its own figure is replaced"
    assert other.read_bytes() == b"precious"


def test_curves_of_a_run_leave_the_users_figure_alone(tmp_path: Path) -> None:
    """The figure that training draws used to replace any file called curves.png."""
    pytest.importorskip("matplotlib.figure")
    run = run_with_curves(tmp_path / "run")
    (run / "curves.png").write_bytes(b"precious")
    assert draw_run(run) == f"Learning curves: {run / 'curves-2.png'}"
    assert (run / "curves.png").read_bytes() == b"precious"


def test_figure_of_data_never_takes_the_name_of_a_file_that_is_there(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib.figure")
    figure = tmp_path / "mine.png"
    figure.write_bytes(b"precious")
    with pytest.raises(SystemExit) as ended:
        main(["data", "inspect", str(data_dir), f"figure={figure}"])
    assert ended.value.code == 2
    assert "was not drawn by this program" in capsys.readouterr().err
    assert figure.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["report.md", "report.json", "report.png", "curves.png"])
def test_report_refuses_names_that_are_taken_also_by_links(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"There is already .*{name}"):
        write_report(Study((), (), ()), tmp_path, force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_report_being_written_by_another_process_is_left_to_it(tmp_path: Path) -> None:
    with directory_locked(tmp_path, ""), pytest.raises(ValueError, match="Another report is being written"):
        write_report(Study((), (), ()), tmp_path, force=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", ["[]", "null", "5", '{"seed": "x"}', '{"seed": 1, "task": 7}', "{" * 5000, '{"lr": 1e999}']
)
def test_bad_run_never_stops_a_report(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(content)
    good = run_with_curves(tmp_path / "good")
    record = {key: value for key, value in config(good).to_dict().items() if key != "resume"}
    (good / "run.json").write_text(json.dumps({**record, "teacher_sha256": None, "data": None}))
    study = read_study([tmp_path])
    assert [run.path.name for run in study.unfinished] == ["good"]
    (line,) = study.left_out
    assert "bad" in line


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "step,a\ninf,1\n"),
        ("train.csv", "step,a\n1," + "9" * 200_000),
        ("speed.csv", "step\nx\n"),
        ("evaluations.json", '{"4": 1e999}'),
        ("heldout.json", "[1"),
        ("eval_tasks.csv", "step,task\n1,x\n"),
    ],
)
def test_run_with_a_damaged_file_never_stops_a_report(tmp_path: Path, name: str, content: str) -> None:
    for directory in (tmp_path / "bad", tmp_path / "good"):
        run_with_curves(directory)
        record = {key: value for key, value in config(directory).to_dict().items() if key != "resume"}
        (directory / "run.json").write_text(json.dumps({**record, "teacher_sha256": None, "data": None}))
    (tmp_path / "bad" / name).write_text(content)
    study = read_study([tmp_path])
    assert "good" in [run.path.name for run in study.unfinished]
    json.loads(to_json(study, rows_of(study)), parse_constant=lambda name: pytest.fail(name))
    assert markdown(study, rows_of(study))


def test_row_that_a_kill_tore_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("step,a\n1,1.0\n2,2")
    CsvFile(path).append([{"step": 3, "a": 3.0}])
    assert path.read_text().splitlines() == ["step,a", "1,1.0", "3,3.0"]


def test_log_that_is_no_text_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(b"step,a\n1,\xff\n")
    CsvFile(path).append([{"step": 3, "a": 3.0}])
    assert path.read_bytes().endswith(b"\n3,3.0\n")
