"""The tool that tries damaged files sorts outcomes rightly, repeats itself, and finds nothing in a short run."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import runner
from tests.fuzz.mutations import change_bytes, change_json, change_tree
from tests.helpers.commands import environment
from tests.helpers.reference import REPO

TRACE = 'Traceback (most recent call last):\n  File "/a/tdmpc2/x.py", line 7, in f\nKeyError: 5\n'


@pytest.mark.parametrize(
    ("code", "text", "outcome"),
    [
        (0, "done\n", "worked"),
        (0, "Normalized score: nan\n", "wrong result"),
        (0, "played banana-inf\n", "worked"),
        (2, "note\nerror: x.pt is empty\n", "refused"),
        (2, "error: No run can be read\n  a: no run.json\n", "refused"),
        (2, "error: one\nerror: two\n", "unclear message"),
        (2, "usage: something\n", "unclear message"),
        (2, "error: \x1b[2J\n", "unclear message"),
        (2, f"error: {'x' * 5000}\n", "unclear message"),
        (1, "error: something\n", "unclear message"),
        (1, TRACE, "traceback"),
        (-11, "", "signal"),
        (None, "", "hang"),
    ],
)
def test_sort_of_exit_code_and_output(code: int | None, text: str, outcome: str) -> None:
    assert runner.sort(code, text, (2,), inspects=False).outcome == outcome


def test_sort_names_the_place_of_a_traceback() -> None:
    assert runner.sort(1, TRACE, (2,), inspects=False).detail == "KeyError: 5 at tdmpc2/x.py:7"


def _wait_for_ever() -> None:
    signal.pause()


def _eat_memory() -> None:
    bytearray(2**34)


def _crash() -> None:
    faulthandler.disable()  # pytest's, whose report would look like a crash of the tests
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (lambda: None, 0),
        (lambda: sys.exit(2), 2),
        (_crash, -signal.SIGSEGV),
        (_wait_for_ever, None),
        (_eat_memory, 1),
    ],
)
def test_in_child_returns_the_exit_code(
    function: Callable[[], None], code: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "SECONDS", 1.0 if code is None else 60.0)
    begun = time.monotonic()
    assert runner.in_child(function, tmp_path, tmp_path / "out") == code
    assert time.monotonic() - begun < 50


def test_attempt_that_touches_a_file_of_the_user_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/notes.txt").write_text("mine")
    monkeypatch.setattr(runner, "_work", lambda words, seed: Path(words[1]).write_text("x"))

    def outcome(name: str) -> str:
        return runner.attempt(["write", name], tmp_path / "work", 0, ("new/*", "new.pt"), (2,)).outcome

    assert [outcome(name) for name in ("new.pt", "notes.txt", "other.txt")] == [
        "worked",
        "file touched",
        "file touched",
    ]


def test_mutations_of_one_seed_are_the_same() -> None:
    tree = {"a": [1, 2.5, "x"], "b": {"c": None, "d": [True, {}]}}
    for change, value in ((change_bytes, b"0123456789" * 30), (change_json, b'{"a": [1, {"b": 2}]}')):
        first, again = ([change(random.Random(seed), value) for seed in range(60)] for _ in range(2))  # type: ignore[operator]
        assert first == again
        assert len(set(first)) > 40
    assert sum(change_tree(random.Random(seed), tree) is not tree for seed in range(200)) == 200
    assert tree == {"a": [1, 2.5, "x"], "b": {"c": None, "d": [True, {}]}}


@pytest.mark.slow
def test_fuzz_short_run_finds_no_fault(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "tests.fuzz", "--inputs", "80", "--minutes", "4", "--seed", "11", "--workers", "1"]
    done = subprocess.run(
        [*line, "--faults", str(tmp_path)], cwd=REPO, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    last = done.stdout.splitlines()[-1]
    assert " 0 faults" in last
    assert int(last.split(" distinct")[0]) > 40, last
