"""How command lines end: errors of use, Ctrl-C, and a closed output pipe."""

from __future__ import annotations

import subprocess
import sys

import pytest
from gymnasium.error import DependencyNotInstalled

from tdmpc2.support.cli import one_line_errors
from tests.helpers.forks import environment


def ended(error: BaseException) -> int:
    @one_line_errors
    def fails() -> None:
        raise error

    with pytest.raises(SystemExit) as leaving:
        fails()
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def test_package_an_environment_needs_is_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Gymnasium's DependencyNotInstalled used to be a traceback of 50 lines."""
    assert ended(DependencyNotInstalled("Box2D is not installed,\n run `pip install swig`")) == 2
    assert capsys.readouterr().err == "error: Box2D is not installed, run `pip install swig`\n"


def test_interruption_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "Stopped by Ctrl-C\n"


@pytest.mark.parametrize("ending", ["", "; sys.exit(3)"])
def test_reader_that_has_left_is_no_error(ending: str) -> None:
    """`... inspect X | head` used to end in a BrokenPipeError."""
    code = (
        "import sys\nfrom tdmpc2.support.cli import one_line_errors\n"
        f"@one_line_errors\ndef main():\n    sys.stdin.read(); print('x' * 100){ending}\nmain()"
    )
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", code], env=environment(), stdin=pipe, stdout=pipe, stderr=pipe)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    child.stdin.close()
    assert child.stderr.read() == b""
    assert child.wait(60) == 141
    child.stderr.close()
