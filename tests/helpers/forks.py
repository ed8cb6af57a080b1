"""Commands in forks of one process that has everything imported, so that they start in a tenth of a second.

A fork is a process of its own. It can be killed or stopped by a signal as one that a shell has started.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.helpers.reference import REPO

_SERVER = """
import ctypes, importlib, json, os, resource, runpy, signal, sys, traceback
import tdmpc2.envs.dm_control, tdmpc2.envs.vector, tdmpc2.training.offline, tdmpc2.play.collector
import tdmpc2.commands.hydra_app, tdmpc2.commands.targets, tdmpc2.data.store.importer, torch._dynamo
for name in sys.argv[1:]:
    importlib.import_module(name)

def end_with_parent():  # or a job would go on for hours after the tests have been killed
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

def work(job):
    end_with_parent()
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in (1, 2):
        os.dup2(os.open(job["streams"][stream - 1], os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(job["cwd"])
    os.environ.update(job["environment"])
    if job["largest"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest"], resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    first, *rest = job["argv"]
    try:
        if first == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(rest[0], {"__name__": "__main__"})
        elif first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = job["argv"]
            runpy.run_path(first, run_name="__main__")
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush(), sys.stderr.flush()

def keep(job):  # waits for the job, so that jobs can run side by side
    end_with_parent()
    if (pid := os.fork()) == 0:
        os._exit(work(job))
    print(pid, flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with open(job["code"] + ".new", "w") as file:
        file.write(str(code))
    os.rename(job["code"] + ".new", job["code"])

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        keep(json.loads(line))
        os._exit(0)
"""


def environment() -> dict[str, str]:
    """Return the variables of a command: one thread, wide lines, no network."""
    own = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "WANDB_MODE": "disabled", "PYTHONPATH": str(REPO)}
    return {**{k: v for k, v in os.environ.items() if k not in ("TDMPC2_TRACEBACK", "FORCE_COLOR")}, **own}


class Job:
    """A command at work, with the main methods of ``subprocess.Popen``; its output is in files."""

    def __init__(self, pid: int, code: Path, out: Path, err: Path) -> None:
        self.pid, self.out, self.err, self._code = pid, out, err, code

    def poll(self) -> int | None:
        """Return the exit code, or None while the command runs."""
        return int(self._code.read_text()) if self._code.exists() else None

    def wait(self, timeout: float = 60) -> int:
        """Wait for the command's end and return its exit code."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, f"still running after {timeout} s: {self.out.read_text()}"
            time.sleep(0.005)
        return code

    def wait_for(self, text: str, timeout: float = 60) -> None:
        """Wait until the command has printed a text."""
        deadline = time.monotonic() + timeout
        while text not in self.out.read_text():
            assert self.poll() is None, self.out.read_text() + self.err.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def kill(self) -> None:
        """Kill the command and what it has started, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


class ForkServer:
    """A process that has everything imported and forks for each command."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder, self._numbers = process, folder, itertools.count()

    def start(
        self,
        argv: Sequence[object],
        cwd: Path,
        variables: Mapping[str, str] | None = None,
        output: Path | None = None,
        largest: int | None = None,
    ) -> Job:
        """Start a command.

        Args:
            argv: what would follow ``python``: a script, ``-m`` and a module or ``-c`` and a program; then words.
            cwd: where it runs.
            variables: besides those of :func:`environment`.
            output: what it prints to instead of the files of the job.
            largest: bytes beyond which none of its files can grow, as on a disk that is full.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        number = next(self._numbers)
        code, out, err = (self._folder / f"{number}.{kind}" for kind in ("code", "out", "err"))
        out.touch()
        err.touch()
        streams = [str(output or out), str(output or err)]
        job = {"argv": [*map(str, argv)], "cwd": str(cwd), "environment": dict(variables or {}),
               "streams": streams, "code": str(code), "largest": largest}  # fmt: skip
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Job(int(self._process.stdout.readline()), code, out, err)


@contextlib.contextmanager
def fork_server(*modules: str) -> Iterator[ForkServer]:
    """Start a server that has also imported these modules; it ends with the context."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, *modules], env=environment(), cwd=folder, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            yield ForkServer(process, Path(folder))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            code = process.wait(300)
        assert code == 0
