"""Completion of keys by the tab key, with Hydra's own plugins.

They read the line from the environment. They know neither keys without a name before them (``steps`` for
``student_config.steps``) nor ``--key``, so they are asked for the last word alone, under its full name.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def complete(groups: Sequence[str], arguments: Sequence[str], main: Callable[[], Any]) -> None:
    """Answer a shell that asks how to install completion, or how the word under the cursor goes on.

    Args:
        groups: names that full keys begin with; none if keys stand alone.
        arguments: of the program, ``-sc query=bash`` or ``-sc install=bash``.
        main: the function decorated by ``hydra.main``.
    """
    line = os.environ.get("COMP_LINE")
    if line is None or not any(word.startswith("query=") for word in arguments):
        _asked(arguments, main)
        return
    word = "" if line.endswith(" ") else line.split()[-1]
    dashes = word[: len(word) - len(word.lstrip("-"))]
    key = word[len(dashes) :]
    names = [""] if not groups or key.startswith(tuple(f"{group}" for group in groups)) else ["", f"{groups[0]}."]
    found: set[str] = set()
    for name in names:
        with _environment(COMP_LINE=f"app {name}{key}"):
            answers = _asked(arguments, main, show=False).split()
        found |= {f"{dashes}{answer.removeprefix(name)}" for answer in answers if answer.startswith(name)}
    print(" ".join(sorted(found)))


def last_command(line: str) -> tuple[str | None, str]:
    """The command of a line ``tdmpc2 COMMAND ...`` that is being typed, and its last word.

    Returns:
        None for the command while it is itself the last word.
    """
    words = line.split()[1:]
    word = "" if line.endswith(" ") or not words else words.pop()
    return (words[0] if words else None), word


def _asked(arguments: Sequence[str], main: Callable[[], Any], show: bool = True) -> str:
    before, output = sys.argv[1:], io.StringIO()
    sys.argv[1:] = arguments
    try:
        with contextlib.redirect_stdout(output):
            main()
    finally:
        sys.argv[1:] = before
    if show:
        print(output.getvalue(), end="")
    return output.getvalue()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
