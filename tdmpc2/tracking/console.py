"""Console of a run and its history: one live line on a terminal, every line in ``train.log``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TextIO

from rich.live import Live
from rich.text import Text

from tdmpc2.support.appending import append_whole, open_append
from tdmpc2.support.reading import MOST_TEXT, read_bytes
from tdmpc2.tracking.names import console_order
from tdmpc2.tracking.notebook import NotebookLine
from tdmpc2.tracking.progress import attempt, is_terminal, open_console, print_line

_GAP = "   "
NOTEBOOK_WIDTH = 100  # letters of a line


class RunConsole:
    """Lines of a run, for the length of a ``with`` block.

    Args:
        history: file that every line is appended to with its time, so that a terminal's live line is kept, too; None
            for no file. Nothing is ever removed: a continued run shows the steps that it took again twice.
        stream: where lines are shown; standard output by default.
    """

    def __init__(self, history: Path | None, stream: TextIO | None = None) -> None:
        self._console = open_console(stream)
        self._history = history
        self._live: Live | None = None
        self._notebook: NotebookLine | None = None
        self._appended = self._failed = False

    @property
    def terminal(self) -> bool:
        """True where the training line is redrawn in place."""
        return is_terminal(self._console)

    def __enter__(self) -> RunConsole:
        if self.terminal:
            self._live = Live(Text(), console=self._console, auto_refresh=False)
            attempt(self._console, self._live.start)
        elif self._console.is_jupyter:
            self._notebook = NotebookLine()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            attempt(self._console, self._live.stop)
        self._live = self._notebook = None

    def message(self, text: str) -> None:
        """Print a line that stays; on a terminal, above the live line."""
        print_line(self._console, text, essential=False)
        self._keep(text)

    def training_line(self, parts: Sequence[str]) -> None:
        """Show the newest training line: written over in a terminal and a notebook, in as many lines as it needs."""
        line = _GAP.join(parts)
        if self._live:
            text = Text("\n".join(pack(parts, self._console.width)), no_wrap=True)
            attempt(self._console, partial(self._live.update, text, refresh=True))
            self._keep(line)
        elif self._notebook:
            self._notebook.show("\n".join(pack(parts, NOTEBOOK_WIDTH)))
            self._keep(line)
        else:
            self.message(line)

    def _keep(self, text: str) -> None:
        if self._history is None:
            return
        line = f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n"
        try:
            if not self._appended and self._history.is_file():
                written = read_bytes(self._history, MOST_TEXT)
                line = line if written.endswith(b"\n") or not written else f"\n{line}"  # a kill tore the last line
            with open_append(self._history) as file:  # one write, so that lines are never mixed
                append_whole(file, line.encode())
            self._appended = True
        except (OSError, ValueError) as error:
            if not self._failed:
                self._failed = True
                print_line(self._console, f"{self._history.name} is not written: {error}", essential=False)


def metric_parts(values: Mapping[str, float]) -> list[str]:
    """Metrics of an update with their short labels, the losses that matter first, such as ``total 0.6175``."""
    return [f"{metric.label} {values[metric.name]:.4g}" for metric in console_order(values)]


def pack(parts: Sequence[str], width: int) -> list[str]:
    """Put parts into as few lines of ``width`` characters as they need; no part is cut or divided."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(_GAP) + len(part) <= width:
            lines[-1] += _GAP + part
        else:
            lines.append(part)
    return lines
