"""Running a command, and killing it at some moment or letting it find the disk full."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.forks import ForkServer

_VARIABLES = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONDONTWRITEBYTECODE": "1"}
HANGS = 300.0  # seconds after which a command is taken to hang; it should need a few


@dataclass(frozen=True)
class Kill:
    """A SIGKILL to all processes of the command, some seconds after its start or its first sign of work."""

    seconds: float
    from_start: bool = False

    def __str__(self) -> str:
        return f"killed {self.seconds:.2f} s after {'the start' if self.from_start else 'the first sign of work'}"


@dataclass(frozen=True)
class FullDisk:
    """A limit on the size of files, which acts like a full disk and needs no permissions."""

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


def run(
    server: ForkServer, command: Sequence[str], directory: Path, disturbance: Kill | FullDisk | None = None
) -> Outcome:
    """Run a command in a directory, and disturb it.

    Args:
        server: what the command is forked from, so that little of its time is spent on imports.
        command: what follows ``python``.
        directory: where.
        disturbance: what happens to it.
    """
    before, start, began = _state(directory), time.monotonic(), None
    largest = disturbance.largest if isinstance(disturbance, FullDisk) else None
    read, write = os.pipe()
    with open(read, "rb") as pipe:
        try:
            job = server.start(command, directory, _VARIABLES, Path(f"/proc/{os.getpid()}/fd/{write}"), largest)
            printed: list[bytes] = []
            reader = threading.Thread(target=lambda: printed.append(pipe.read()))
            reader.start()
            killed = False
            while job.poll() is None:
                now = time.monotonic()
                if began is None and _state(directory) != before:
                    began = now
                if isinstance(disturbance, Kill):
                    since = start if disturbance.from_start else began
                    killed = since is not None and now - since >= disturbance.seconds
                if killed or now - start > HANGS:
                    job.kill()
                    job.wait()
                    break
                time.sleep(0.002)
            end = time.monotonic()
        finally:
            os.close(write)  # the command has a descriptor of its own
        reader.join()
    code = None if killed else job.poll()
    output = b"".join(printed).decode(errors="replace")
    return Outcome(code, output, 0.0 if began is None else end - began, end - start)


def _state(directory: Path) -> dict[str, tuple[int, int]]:
    state = {}
    with suppress(FileNotFoundError):  # a file vanished meanwhile, which is a change, too
        for path in directory.rglob("*"):
            status = path.stat()
            state[str(path)] = status.st_mtime_ns, status.st_size
    return state
