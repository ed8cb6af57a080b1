"""Run a command, kill it at a moment, or let it find the disk full."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.forks import ForkServer, Job
from tests.helpers.reference import REPO

HANGS = 300.0  # seconds after which a command that takes a few is taken to hang


@dataclass(frozen=True)
class Kill:
    """SIGKILL to all processes of the command, so many seconds after its start or its first sign of work."""

    seconds: float
    from_start: bool = False

    def __str__(self) -> str:
        return f"killed {self.seconds:.2f} s after {'the start' if self.from_start else 'the first sign of work'}"


@dataclass(frozen=True)
class FullDisk:
    """A disk that lets no file grow beyond so many bytes, which needs no disk of its own and no rights."""

    largest: int

    def __str__(self) -> str:
        return f"no file over {self.largest:,} bytes"


@dataclass(frozen=True)
class Outcome:
    """The end of a command.

    Attributes:
        code: exit code; None if it was killed as intended.
        output: all it printed.
        work: seconds from the first change in its directory to its end.
        seconds: from its start to its end.
    """

    code: int | None
    output: str
    work: float
    seconds: float


Runner = Callable[[Sequence[str], Path, Kill | FullDisk | None], Outcome]


def run(command: Sequence[str], directory: Path, disturbance: Kill | FullDisk | None = None) -> Outcome:
    """Run a command in a directory, in a process of its own, and disturb it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"WANDB_MODE": "disabled", "OMP_WAIT_POLICY": "PASSIVE"}
    before, start = _state(directory), time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=(lambda: _limit(disturbance.largest)) if isinstance(disturbance, FullDisk) else None,
    )
    printed: list[bytes] = []
    reader = threading.Thread(target=lambda: printed.append(process.stdout.read() if process.stdout else b""))
    reader.start()
    killed, began, end = _disturb(process, directory, before, disturbance)
    reader.join()
    output = b"".join(printed).decode(errors="replace")
    return Outcome(None if killed else process.returncode, output, end - began, end - start)


def in_forks(forks: ForkServer) -> Runner:
    """Make a :func:`run` that forks a process which has everything imported, and so begins at its work.

    A full disk is not for it: what a command prints goes to a file there, which the limit would reach as well.
    """

    def run_forked(command: Sequence[str], directory: Path, disturbance: Kill | FullDisk | None = None) -> Outcome:
        if isinstance(disturbance, FullDisk):
            return run(command, directory, disturbance)
        before, start = _state(directory), time.monotonic()
        job = forks.start(command[1:], directory, {"PYTHONDONTWRITEBYTECODE": "1"})
        killed, began, end = _disturb(job, directory, before, disturbance)
        output = job.out.read_text(errors="replace") + job.err.read_text(errors="replace")
        return Outcome(None if killed else job.poll(), output, end - began, end - start)

    return run_forked


def _disturb(
    process: subprocess.Popen[bytes] | Job, directory: Path, before: object, disturbance: Kill | FullDisk | None
) -> tuple[bool, float, float]:
    """Wait for a command that has just been started, or kill it; returns whether it was, and when it began and ended.

    It begins when something in its directory is no longer as before; one that never does ends as it begins.
    """
    start, began, killed = time.monotonic(), None, False
    while process.poll() is None:
        now = time.monotonic()
        if began is None and _state(directory) != before:
            began = now
        if isinstance(disturbance, Kill):
            since = start if disturbance.from_start else began
            killed = since is not None and now - since >= disturbance.seconds
        if killed or now - start > HANGS:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            break
        time.sleep(0.002)
    end = time.monotonic()
    return killed, end if began is None else began, end


def _limit(largest: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _state(directory: Path) -> dict[str, tuple[int, int]]:
    state = {}
    with suppress(FileNotFoundError):  # it went while one looked, which is a change as well
        for path in directory.rglob("*"):
            status = path.stat()
            state[str(path)] = status.st_mtime_ns, status.st_size
    return state
