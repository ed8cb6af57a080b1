"""Continuing: signals, one process in a directory, and output failures that do not cost the run."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import tdmpc2_start
from tdmpc2.play import results
from tdmpc2.support.cli import one_line_errors
from tdmpc2.support.signals import EndedBySignal
from tdmpc2.tracking.logger import Logger
from tdmpc2.tracking.progress import Progress
from tdmpc2.training.guards import STOPPED, stop_on_signal
from tdmpc2.training.run_dir import hold, lock
from tests.helpers.reference import REPO
from tests.helpers.tracking import config

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and locks are those of POSIX")

# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Check that the test restores all signal handlers, since tests share a process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    assert {number: signal.getsignal(number) for number in numbers} == before
    for number, handler in before.items():
        signal.signal(number, handler)


def test_training_is_asked_to_stop_by_a_terminal_that_is_closed() -> None:
    """SIGHUP used to end the run without saving; a closed terminal sends it more than once."""
    with stop_on_signal() as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert stop.signal is signal.SIGHUP


def test_training_under_nohup_goes_on() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signal() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_training_that_has_nothing_to_save_ends_though_its_terminal_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdout", Gone())
    with stop_on_signal() as stop:
        stop.at_once = True
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGHUP)
    assert ended.value.code == STOPPED


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_command_ended_by_a_signal_cleans_up_and_says_so(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned = []

    @one_line_errors
    def command() -> None:
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == code
    assert cleaned
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_command_started_before_it_listened_takes_ctrl_c() -> None:
    """While scripts import, Ctrl-C ends them quietly; after that it is an exception again."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:

        @one_line_errors
        def command() -> None:
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(SystemExit) as ended:
            command()
        assert ended.value.code == 130
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("script", ["train", "evaluate", "collect", "quantize", "report"])
def test_script_listens_before_its_slow_imports(script: str) -> None:
    """Ctrl-C in the first tenths of a second used to be a traceback."""
    text = (REPO / f"{script}.py").read_text()
    assert text.index("prepare()") < min(text.find(name) % len(text) for name in ("import hydra", "from tdmpc2."))


def _variables_after(call: str, **environment: str) -> list[str]:
    """Return the OpenMP variables and slow modules of a process that has made one call."""
    code = f"import os, sys, tdmpc2_start; tdmpc2_start.{call}; " + (
        "print(*(f'{k}={v}' for k, v in os.environ.items() if 'OMP_' in k), *({'torch', 'hydra'} & {*sys.modules}))"
    )
    own = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=own, cwd=REPO)
    return done.stdout.split()


def test_command_bounds_the_spinning_of_threads_before_torch_is_imported() -> None:
    """Beside a busy process, two threads that spin for each other used to take ten times as long."""
    assert _variables_after("prepare()") == [f"GOMP_SPINCOUNT={tdmpc2_start.SPIN_COUNT}"]


@pytest.mark.parametrize("chosen", ["OMP_WAIT_POLICY=ACTIVE", "GOMP_SPINCOUNT=7"])
def test_command_leaves_the_users_choice_of_spinning(chosen: str) -> None:
    name, _, value = chosen.partition("=")
    assert _variables_after("bound_spinning()", **{name: value}) == [chosen]


def test_console_script_interrupted_while_it_is_imported_is_one_line(tmp_path: Path) -> None:
    """Ctrl-C while the package was imported used to be a traceback of forty lines."""
    (tmp_path / "tdmpc2").mkdir()
    (tmp_path / "tdmpc2" / "__init__.py").write_text("raise KeyboardInterrupt\n")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(REPO)!r}]; import tdmpc2_start; tdmpc2_start.main()"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "Stopped by Ctrl-C\n"


def test_console_script_starts_where_interruptions_are_handled() -> None:
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"tdmpc2": "tdmpc2_start:main"}


# -- one process in a directory ---------------------------------------------------------------------------------------


def other_process(directory: Path) -> str:
    """Say why another process cannot lock the directory, or return an empty text if it can."""

    def attempt(pipe: multiprocessing.connection.Connection) -> None:
        try:
            with lock(directory):
                pipe.send("")
        except ValueError as error:
            pipe.send(str(error))

    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=attempt, args=(theirs,))
    child.start()
    said: str = ours.recv()
    child.join(20)
    return said


def test_run_directory_reached_through_a_link_is_locked(tmp_path: Path) -> None:
    """Two processes used to train in the same files if one of them came through a link."""
    (tmp_path / "kt").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kt")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "link").symlink_to("../link")
    with lock(tmp_path / "kt"):
        for name in ("kt", "link", "deep/link", "deep/../kt"):
            assert "Another process is training" in other_process(tmp_path / name), name
    assert other_process(tmp_path / "link") == ""


def test_run_directory_that_is_yet_to_be_made_is_locked_through_a_linked_parent(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "logs")
    with lock(tmp_path / "logs" / "new"):
        assert "Another process is training" in other_process(tmp_path / "link" / "new")


def test_run_directory_that_was_renamed_is_still_locked(tmp_path: Path) -> None:
    (tmp_path / "kt").mkdir()
    with lock(tmp_path / "kt"):
        (tmp_path / "kt").rename(tmp_path / "other")
        assert "Another process is training" in other_process(tmp_path / "other")


def test_run_directory_made_by_the_run_is_held(tmp_path: Path) -> None:
    with lock(tmp_path / "kt"):
        (tmp_path / "kt").mkdir()
        with hold(tmp_path / "kt"):
            (tmp_path / "kt").rename(tmp_path / "other")
            assert "Another process is training" in other_process(tmp_path / "other")


def test_run_directory_that_is_a_dangling_link_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "kt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"kt is a link to .*nowhere, which is not there"), lock(tmp_path / "kt"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["kt"]


def test_results_placeholder_of_a_killed_evaluation_is_taken_over(tmp_path: Path) -> None:
    """Every killed evaluation used to send the next one to another directory."""
    base = tmp_path / "eval"

    def killed() -> None:
        with results.fresh_directory(base):
            os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join(20)
    with results.fresh_directory(base) as directory:
        assert directory == base
        with results.fresh_directory(base) as other:  # while the first one lives
            assert other == tmp_path / "eval-2"


def test_evaluation_ended_by_sigterm_leaves_no_placeholder(tmp_path: Path) -> None:
    @one_line_errors
    def command() -> None:
        with results.fresh_directory(tmp_path / "eval"):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        command()
    assert not (tmp_path / "eval").exists()
    assert issubclass(EndedBySignal, SystemExit)


# -- outputs ----------------------------------------------------------------------------------------------------------


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class Closed(io.StringIO):
    """A pipe that nobody reads."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


class FullTerminal(Full):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Full, Closed, FullTerminal])
def test_console_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, stream: type[io.StringIO], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train.py > /dev/full` used to end the run with '[Errno 28]' and without saving."""
    monkeypatch.setattr("rich.console.Console.on_broken_pipe", _as_rich_does)
    with Logger(config(tmp_path), total_steps=9, stream=stream()) as logger:
        for step in (1, 2, 3):
            logger.log(step, {"a": 1.0})
    assert capsys.readouterr().err.count("warning: The output cannot be written any more") == 1
    assert len((tmp_path / "train.csv").read_text().splitlines()) == 4
    assert (tmp_path / "train.log").read_text().count("step ") == 3


def _as_rich_does(console: object) -> None:
    """Do what Rich does on a broken pipe, except for replacing this process's standard output."""
    console.quiet = True  # type: ignore[attr-defined]
    raise SystemExit(1)


@pytest.mark.parametrize("name", ["train.csv", "speed.csv", "train.log"])
def test_log_that_the_disk_refuses_costs_one_warning(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was full between two saves used to end the run."""
    from tdmpc2.support import csv_files
    from tdmpc2.tracking import console

    def full(file: object, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / name))

    monkeypatch.setattr(console if name == "train.log" else csv_files, "append_whole", full)
    stream = io.StringIO()
    with Logger(config(tmp_path), total_steps=9, stream=stream) as logger:
        for step in (1, 2, 3):
            logger.log(step, {"a": 1.0})
    assert stream.getvalue().count(f"{name} ") == 1
    assert "No space left" in stream.getvalue()


def test_log_has_its_rows_again_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tdmpc2.support import csv_files

    real, full = csv_files.append_whole, [False]

    def disk(file: object, content: bytes) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")
        real(file, content)  # type: ignore[arg-type]

    monkeypatch.setattr(csv_files, "append_whole", disk)
    with Logger(config(tmp_path), total_steps=9, stream=io.StringIO()) as logger:
        for step in (1, 2, 3):
            full[0] = step == 2
            logger.log(step, {"a": 1.0})
    assert (tmp_path / "train.csv").read_text() == "step,a\n1,1.0\n3,1.0\n"


def test_progress_on_a_full_disk_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(3, "Evaluating", stream=Full()) as bar:
        bar.update(3)
    assert "the work goes on without it" in capsys.readouterr().err


def test_progress_whose_reader_has_left_ends_the_command() -> None:
    with pytest.raises(BrokenPipeError), Progress(3, "Evaluating", stream=Closed()) as bar:
        bar.update(3)
