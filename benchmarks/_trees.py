"""A process that imports the package from a worktree, so that two commits can be measured in turns."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def worker(tree: Path, code: str, *arguments: object, folder: Path) -> Iterator[Callable[[str], None]]:
    """Start a process of a tree, and yield what makes it do something by name.

    Args:
        tree: a clone or worktree, whose package it imports.
        code: prints ``ready`` once it is, and ``done`` after having done what each line of its input names.
        arguments: of the code.
        folder: it runs in.

    Raises:
        SystemExit: the tree is none of this project, or the process ended early.
    """
    if not (tree / "tdmpc2" / "__init__.py").is_file():  # the installed package would be measured in its place
        raise SystemExit(f"{tree} is no clone or worktree of this project")
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def answer(expected: str) -> None:
            if (line := process.stdout.readline().strip()) != expected:
                raise SystemExit(f"The process of {tree} ended early{f': {line}' if line else ''}")

        def do(name: str) -> None:
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
            answer("done")

        answer("ready")
        yield do
        process.stdin.close()
