"""Runs one input in its own process and folder, under limits, and sorts the outcome."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tdmpc2.checkpoints.files import load_file
from tdmpc2.commands import run
from tdmpc2.support.cli import EXPECTED, one_line
from tests.fuzz import calls
from tests.fuzz.jobs import Job

#: Outcomes in the order of the table; those after ``refused`` must never occur.
OUTCOMES = ("worked", "refused", "unclear message", "traceback", "signal", "hang", "wrong result", "file touched")
SECONDS = 60.0
MEMORY = 4 * 2**30
_MESSAGE = 1500  # characters a line may have
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x9b]")
_LOCKS = (".*.lock", "*/.*.lock")
#: Warnings of libraries that are not ours to word.
_NOISE = re.compile(r"Warning: |^  warnings\.warn|^\s*$|^  [a-z_.]+\(")
_NOT_FINITE = re.compile(r"(?<![\w./-])(nan|-?inf)(?![\w./-])", re.IGNORECASE)


@dataclass(frozen=True)
class Result:
    """The outcome of one input.

    Attributes:
        outcome: one of :data:`OUTCOMES`.
        detail: the line that tells why, equal for equal faults.
    """

    outcome: str
    detail: str = ""


def prepare(job: Job, template: Path, folder: Path, file: Path, content: bytes | None) -> None:
    """Lay out the files of a job in a new folder, with one of them replaced."""
    folder.mkdir()
    for name in {*job.folders, file.parts[0]}:
        source = template / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    for name in ("notes.txt", "mine.csv"):
        shutil.copy(template / name, folder / name)
    if content is not None:
        (folder / file).write_bytes(content)


def fingerprints(folder: Path) -> dict[str, str]:
    """Hash every file of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): hashlib.sha1(path.read_bytes()).hexdigest() for path in files}


def attempt(words: list[str], folder: Path, seed: int, writes: tuple[str, ...], refusals: tuple[int, ...]) -> Result:
    """Run a command line in a child process in this folder and sort its outcome."""
    before = fingerprints(folder)
    output = folder.with_name(folder.name + ".out")
    code = in_child(lambda: _work(words, seed), folder, output)
    text = output.read_text(errors="replace")
    output.unlink()
    result = sort(code, text, refusals, inspects=words[0] == "data")
    if result.outcome in ("worked", "refused"):
        after = fingerprints(folder)
        changed = [name for name, value in before.items() if after.get(name) != value]
        asked = {word.partition("=")[2] for word in words}  # files that the command names, as html=name does
        changed += [name for name in after if name not in before and name.partition("/")[0] not in asked]
        for name in changed:
            if not any(fnmatch.fnmatch(name, pattern) for pattern in (*writes, *_LOCKS)):
                return Result("file touched", name)
    return result


def in_child(function: Callable[[], None], folder: Path, output: Path) -> int | None:
    """Run a function in a forked child with its output in a file. Returns its exit code, or None if it hung."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        code = 1
        try:
            os.chdir(folder)
            for kind, limit in ((resource.RLIMIT_AS, _size() + MEMORY), (resource.RLIMIT_FSIZE, 2**29)):
                resource.setrlimit(kind, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            code = exit_code(function)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    descriptor = os.pidfd_open(child)
    try:
        ended = select.select([descriptor], [], [], SECONDS)[0]
        if not ended:
            os.killpg(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(descriptor)
    return status if ended else None


def _size() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def exit_code(function: Callable[[], None]) -> int:
    """Call a function as a program would, and return its exit code."""
    try:
        function()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _work(words: list[str], seed: int) -> None:
    if words[0] != "call":
        return run_command(words)
    rng = random.Random(seed)
    try:
        getattr(calls, words[1])(rng, *words[2:])
    except EXPECTED as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def run_command(words: list[str]) -> None:
    """Run ``tdmpc2 WORDS``."""
    from tdmpc2.commands import COMMANDS, main

    if words[0] in COMMANDS:
        sys.argv[0] = words[0]
        run(words[0], words[1:])
    else:
        main(words)


def content(path: Path) -> str:
    """Hash the weights in a checkpoint, or the bytes of another file."""
    if path.suffix != ".pt":
        return hashlib.sha1(path.read_bytes()).hexdigest()
    model = load_file(path).model
    digest = hashlib.sha1()
    for name in sorted(model):
        digest.update(name.encode() + model[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sort(code: int | None, text: str, refusals: tuple[int, ...], inspects: bool) -> Result:
    """Sort an exit code and an output by the promises they keep; a command that inspects data may print NaN."""
    lines = [line for line in text.splitlines() if not _NOISE.search(line)]
    last = lines[-1] if lines else ""
    if code is None:
        return Result("hang", last[:200])
    if code < 0:
        return Result("signal", f"{signal.Signals(-code).name} {last[:200]}")
    if "Traceback (most recent call last)" in text:
        places = re.findall(r'File ".*?/(tdmpc2/[^"]*)", line (\d+)', text)
        return Result("traceback", f"{last[:160]} at {':'.join(places[-1]) if places else '?'}")
    if code == 0:
        found = None if inspects else _NOT_FINITE.search(text)
        return Result("wrong result", f"prints {found[0]}: {_line_of(text, found)}") if found else Result("worked")
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    listed = all(line.startswith("  ") for line in lines[errors[0] + 1 :]) if errors else False  # one per run or file
    if code not in refusals or (code == 2 and not (len(errors) == 1 and listed)):
        return Result("unclear message", f"exit code {code}: {' | '.join(lines[-2:])[:300]}")
    if len(last) > _MESSAGE or _CONTROL.search(text):
        return Result("unclear message", f"{len(last)} characters or control characters: {last[:160]!r}")
    return Result("refused")


def _line_of(text: str, found: re.Match[str]) -> str:
    start = text.rfind("\n", 0, found.start()) + 1
    return text[start : text.find("\n", found.end())][:160]
