"""Command lines: ``tdmpc2 COMMAND``, ``python -m tdmpc2 COMMAND`` and the scripts in the root of the repository.

Each command is a module with a ``main(argv)``. Modules import what is slow to load inside their functions, so that
``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from tdmpc2.commands.completion import last_command
from tdmpc2.commands.pages import Row, Section, page, show
from tdmpc2.support.cli import one_line_errors
from tdmpc2.support.version import version
from tdmpc2.tasks import nearest

#: Name -> purpose; the module of that name in this package holds the command.
COMMANDS = {
    "train": "train a student on offline data, distilled from a teacher or from scratch",
    "evaluate": "score a checkpoint by playing its tasks",
    "play": "watch a checkpoint play, in a window or as a video",
    "collect": "play episodes and store them as training data",
    "quantize": "write a checkpoint in fp16, int8 and mixed precision and measure what that costs",
    "export": "write a checkpoint as files that run without this program: ONNX, torch.export or C++",
    "report": "gather runs into a table with intervals over seeds, figures, or one web page",
    "leaderboard": "build a leaderboard of MT30 from public results and evaluations of your own",
    "data": "look at offline data, check it, convert it",
    "checkpoint": "look at a checkpoint, convert it to another layout",
    "heldout": "measure a model's errors on episodes it was not trained on",
    "targets": "compute a teacher's outputs for all stored episodes, once",
    "doctor": "say what works on this machine, what is missing and how to get it",
}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run ``tdmpc2 COMMAND ...``."""
    words = list(sys.argv[1:] if argv is None else argv)
    first = words[0] if words else "--help"
    if first in ("--help", "-h", "help"):
        if len(words) > 1 and words[1] in COMMANDS:
            return run(words[1], ["--help"])
        return show(overview())
    if first in ("--version", "-V"):
        return print(f"tdmpc2 {version()}")
    if first in ("--shell-completion", "-sc"):
        return _complete(words)
    if first not in COMMANDS:
        raise ValueError(f"'{first}' is not a command of tdmpc2: {', '.join(COMMANDS)}.{nearest(first, COMMANDS)}")
    return run(first, words[1:])


def run(name: str, argv: Sequence[str]) -> None:
    """Run one command."""
    import_module(f"{__name__}.{name}").main(argv)


def overview() -> str:
    """The help page of all commands."""
    rows = [Row(name, None, purpose) for name, purpose in COMMANDS.items()]
    doc = "TD-MPC-Opt: distil and quantise TD-MPC2 world models."
    note = "`tdmpc2 COMMAND --help` explains one. key=value and --key value are the same. --version prints the version."
    return page("", doc, [Section("tdmpc2 COMMAND [key=value ...]", rows)], note)


def _complete(arguments: list[str]) -> None:
    """Complete the name of a command, or let the command complete its keys."""
    line = os.environ.get("COMP_LINE")
    if line is None:
        return run("train", arguments)  # prints how to install completion, the same for every command
    name, word = last_command(line)
    if name in ("train", "evaluate", "collect"):
        return run(name, arguments)
    if name is None:
        return print(" ".join(command for command in COMMANDS if command.startswith(word)))
    return None
