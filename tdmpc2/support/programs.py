"""Helper programs, such as compilers: none runs longer than its time, and none outlives this process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

#: Runs a program in a process group of its own and kills all of it when the pipe on standard input closes: that is
#: when its time is over, or when the process that asked for it has ended in whatever way. Ctrl-C and other signals to
#: the group of both do the same.
_KEEPER = """
import os, signal, subprocess, sys, threading
child, ended = None, False
def end(*_):
    global ended
    ended = True
    if child is not None:
        os.killpg(child.pid, signal.SIGKILL)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, end)
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
if ended:  # while it was started
    end()
def watch():
    os.read(0, 1)
    end()
threading.Thread(target=watch, daemon=True).start()
code = child.wait()
os._exit(code if code >= 0 else 128 - code)
"""


def run_program(
    command: Sequence[str], seconds: float, *, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and take what it prints.

    Args:
        command: the program and its arguments.
        seconds: time it may take.
        env: its environment; by default that of this process.

    Raises:
        RuntimeError: it took longer, and was killed with all that it had started.
        OSError: it cannot be started.
    """
    if not hasattr(os, "killpg"):  # Windows
        process = _start(command, subprocess.DEVNULL, env)
        return _waited(process, command, seconds, process.kill)
    theirs, ours = os.pipe()
    with open(ours, "wb", 0) as alive:
        try:
            process = _start([sys.executable, "-I", "-S", "-c", _KEEPER, *command], theirs, env)
        finally:
            os.close(theirs)
        return _waited(process, command, seconds, alive.close)


def run_in_terminal(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: IO[str] | None = None,
) -> int:
    """Run a command that shares this process's terminal; returns its exit code.

    Ctrl-C reaches both. The command saves what it has done then, so its end is waited for instead of killing it.

    Args:
        command: the program and its arguments.
        env: its environment; by default that of this process.
        cwd: where it runs; by default where this process does.
        output: file that it prints to; by default the terminal.
    """
    errors = None if output is None else subprocess.STDOUT
    with subprocess.Popen(command, env=env, cwd=cwd, stdout=output, stderr=errors) as process:
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return process.wait()


def _start(command: Sequence[str], stdin: int, env: Mapping[str, str] | None) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=stdin, stdout=pipe, stderr=pipe, text=True, errors="replace", env=env)


def _waited(
    process: subprocess.Popen[str], command: Sequence[str], seconds: float, end: Callable[[], None]
) -> subprocess.CompletedProcess[str]:
    with process:
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException as error:  # also Ctrl-C: nothing is left running
            end()
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"{command[0]} took more than {seconds:g} s and was ended") from None
            raise
    return subprocess.CompletedProcess(list(command), process.returncode, out, err)
