"""A terminal that can be read, and the files of a logger."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

from tdmpc2.config import Config

OFF = "Weights & Biases: off (set wandb_project to turn it on)"


class Terminal(io.StringIO):
    """A stream that claims to be a terminal and knows what it shows."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """Return the lines that are finally visible; carriage return, cursor up and erase line are obeyed."""
        lines, row = [""], 0
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", self.getvalue()):
            if part == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif part == "\x1b[2K":
                lines[row] = ""
            elif part == "\x1b[1A":
                row -= 1
            elif part[0] not in "\r\x1b":
                lines[row] += part
        return [line.rstrip() for line in lines if line]


def config(directory: Path, **changes: Any) -> Config:
    return Config(task="walker-walk", work_dir=str(directory), **changes)


def text_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
