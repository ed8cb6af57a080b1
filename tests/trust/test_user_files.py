"""Nothing of the user's is deleted, overwritten or followed."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from tdmpc2.support.appending import append_whole, open_append
from tdmpc2.support.csv_files import CsvFile
from tdmpc2.support.files import delete_leftovers
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
    """A resumed run deleted or cut every CSV file that began with `step`."""
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
    """A link of the name of a log file led to a file that then was appended to, cut or deleted."""
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
