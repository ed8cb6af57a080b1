"""Progress lines."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tdmpc2.tracking.console import RunConsole
from tdmpc2.tracking.logger import Logger
from tdmpc2.tracking.progress import Progress, progress
from tests.helpers.tracking import OFF, Terminal, config


def test_progress_of_minutes_shows_a_line_every_tenth_with_rate_and_remaining_time(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(2_000, "Evaluating", stream=stream) as bar:
        for _ in range(200):
            clock[0] += 1.0
            bar.update(10, text="walker-walk [812]")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "Evaluating: 200/2,000 steps (10%), 10.0/s, ETA 0:03:00, walker-walk [812]"
    assert lines[-1] == "Evaluating: done, 2,000 steps in 0:03:20 (10.0/s)"


def test_progress_leaves_the_first_update_out_of_its_rate(clock: list[float]) -> None:
    """An update that compiled for a minute used to make the estimate for the others days long."""
    stream = io.StringIO()
    with Progress(100, "Learning", unit="updates", stream=stream) as bar:
        for seconds in (60.0, *[1.0] * 99):
            clock[0] += seconds
            bar.update()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "Learning: 1/100 updates (1%)"
    assert lines[1] == "Learning: 11/100 updates (11%), 1.0/s, ETA 0:01:29"
    assert lines[-1] == "Learning: done, 100 updates in 0:02:39 (0.6/s)"


def test_progress_of_seconds_shows_one_line(clock: list[float]) -> None:
    """Without a terminal, an evaluation of a second used to print ten lines."""
    stream = io.StringIO()
    with Progress(2_000, "Evaluating", stream=stream) as bar:
        for _ in range(200):
            clock[0] += 0.04
            bar.update(10)
    assert stream.getvalue().splitlines() == ["Evaluating: done, 2,000 steps in 0:00:08 (250.0/s)"]


def test_progress_of_a_minute_shows_a_line_every_ten_seconds(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(100, "Evaluating", stream=stream) as bar:
        for _ in range(100):
            clock[0] += 0.5
            bar.update(1)
    percents = [line.split("(")[1].split(")")[0] for line in stream.getvalue().splitlines()[:-1]]
    assert percents == ["20%", "40%", "60%", "80%"]


def test_progress_when_slow_prints_every_30_seconds(clock: list[float]) -> None:
    stream = io.StringIO()

    def work() -> None:
        with Progress(None, "Importing", unit="episodes", stream=stream) as bar:
            for _ in range(7):
                clock[0] += 10.0
                bar.update(5)
            raise KeyError("chunk_3")

    with pytest.raises(KeyError, match="chunk_3"):
        work()
    assert stream.getvalue().splitlines() == [
        "Importing: 15 episodes, 0.5/s",
        "Importing: 30 episodes, 0.5/s",
        "Importing: stopped, 35 episodes in 0:01:10 (0.5/s)",
    ]


def test_progress_over_items_counts_them(clock: list[float]) -> None:
    stream = io.StringIO()
    assert list(progress([3, 1, 2], "Reading", unit="files", stream=stream)) == [3, 1, 2]
    assert list(progress(iter("ab"), "Reading", stream=stream)) == ["a", "b"]
    lines = stream.getvalue().splitlines()
    assert [line.split(" in ")[0] for line in lines if "done" in line] == [
        "Reading: done, 3 files",
        "Reading: done, 2 items",
    ]


def test_progress_bar_inside_a_live_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    """An evaluation shows its bar while the training line is on the terminal, and leaves only its last line."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with Logger(config(tmp_path), total_steps=10) as logger:
        clock[0] = 2.5
        logger.log(5, {"total_loss": 1.0})
        with Progress(100, "Evaluating", unit="episodes") as bar:
            for _ in range(100):
                clock[0] += 0.1
                bar.update(text="walker-walk 812")
        print("a line from somewhere else")
        assert not any("━" in line for line in terminal.screen()), "the bar is gone with its work"
        logger.log(6, {"total_loss": 0.5})
    assert "50/100 episodes (50%), 10.0/s, ETA 0:00:05, walker-walk 812" in terminal.getvalue()
    assert terminal.screen() == [
        OFF,
        "Evaluating: done, 100 episodes in 0:00:10 (10.0/s)",
        "a line from somewhere else",
        "step 6/10 (60%)   0.1 it/s   ETA 0:00:08   total 0.5",
    ]
    assert sys.stdout is terminal


class _Outputs:
    """A stand-in for a notebook that keeps each output with its newest text."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> SimpleNamespace:
        assert raw
        assert display_id
        number = len(self.texts)
        self.texts.append(content["text/plain"])

        def update(content: dict[str, str], *, raw: bool) -> None:
            self.texts[number] = content["text/plain"]

        return SimpleNamespace(update=update)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> _Outputs:
    outputs = _Outputs()
    module = SimpleNamespace(display=outputs.display)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=module))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    return outputs


def test_progress_in_a_notebook_is_one_line_that_changes(notebook: _Outputs, clock: list[float]) -> None:
    """In a notebook, every progress line used to become an output of its own."""
    stream = io.StringIO()
    with Progress(100, "Evaluating", stream=stream) as bar:
        for _ in range(100):
            clock[0] += 0.2
            bar.update(1)
            assert len(notebook.texts) <= 1
        assert notebook.texts[0].startswith("Evaluating: ")
    assert notebook.texts == ["Evaluating: done, 100 steps in 0:00:20 (5.0/s)"]
    assert not stream.getvalue()


def test_training_line_in_a_notebook_changes_and_messages_stay(notebook: _Outputs, tmp_path: Path) -> None:
    stream = io.StringIO()
    with RunConsole(tmp_path / "train.log", stream) as console:
        for step in range(3):
            console.training_line([f"step {step}", "x" * 90, "y" * 90])
            console.message(f"saved [{step}]")
    assert notebook.texts == ["\n".join(["step 2   " + "x" * 90, "y" * 90])]
    assert stream.getvalue().splitlines() == [f"saved [{step}]" for step in range(3)]
    assert (tmp_path / "train.log").read_text().count("step ") == 3
