"""Command lines of the documentation, parsed as the commands themselves would."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from tdmpc2.commands import COMMANDS
from tdmpc2.commands.options import parse
from tdmpc2.commands.overrides import read_line
from tdmpc2.config import key_names
from tests.helpers.reference import REPO

#: Modules that are commands under `python -m`.
MODULES = {
    "tdmpc2.data": "data",
    "tdmpc2.checkpoint": "checkpoint",
    "tdmpc2.checkpoints": "checkpoint",
    "tdmpc2.heldout": "heldout",
    "tdmpc2.data.targets": "targets",
}


def command_of(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Find the command that a line runs and the words behind it; None if it runs something else.

    Args:
        words: the line without ``python``, such as ``["train.py", "steps=1"]`` or ``["tdmpc2", "train", "steps=1"]``.

    Raises:
        ValueError: ``tdmpc2`` has no such command.
    """
    first, *rest = words
    if first == "-m" and rest[0] == "tdmpc2":
        first, rest = "tdmpc2", rest[1:]
    if first == "tdmpc2":
        if rest[0] not in COMMANDS:
            raise ValueError(f"'{rest[0]}' is not a command of tdmpc2")
        return rest[0], rest[1:]
    if first == "-m":
        return MODULES.get(rest[0]), rest[1:]
    name = first.removesuffix(".py")
    return (name if name in COMMANDS else None), rest


def script_of(words: Sequence[str]) -> Path:
    """Find the file that a line without a command runs: ``examples/demo.py`` or ``-m tdmpc2.config``."""
    if words[0] != "-m":
        return REPO / words[0]
    module = REPO / words[1].replace(".", "/")
    return module / "__main__.py" if module.is_dir() else module.with_suffix(".py")


def accepted(name: str, words: Sequence[str]) -> Sequence[str]:
    """Return the overrides that Hydra would get; they are empty for commands without Hydra.

    Raises:
        ValueError: the command would refuse the line.
    """
    command = import_module(f"tdmpc2.commands.{name}")
    if hasattr(command, "APP"):
        return read_line(words, command.APP.groups, command.APP.bare).overrides
    if hasattr(command, "VERBS"):
        if words:  # pages also name a command alone,
            options = command.VERBS[words[0]].options
            if len(words) > 1:  # or with nothing but a verb
                parse(words[1:], options)
    elif words and words != ["--help"]:
        others = key_names() if name in ("export", "play", "quantize", "targets") else ()
        parse([word for word in words if word != "--set"], command.OPTIONS, others)
    return []
