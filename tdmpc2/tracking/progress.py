"""Progress of long work, and the console that it shares with the logger."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import timedelta
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TextIO, TypeVar

import rich.progress as bars
from rich import get_console
from rich.console import Console

from tdmpc2.support.output import discard, printable, say
from tdmpc2.tracking.notebook import NotebookLine

T = TypeVar("T")

_SECONDS_BETWEEN_LINES, _SECONDS_OF_SILENCE = 10, 30
_SECONDS_BETWEEN_UPDATES = 0.5  # in a notebook, where each is sent to a browser


class Progress:
    """Rate and remaining time of long work: a bar on a terminal, one changing line in a notebook, lines elsewhere.

    There is a line every 10 %, but never sooner than 10 s after the last one, and one every 30 s: work of seconds is
    one line, long work does not fill a log file. tqdm has no such rule, and rich's bar alone prints nothing there.
    Rate and remaining time leave out the first update, in which torch may compile for a minute; the last
    line is of all the time.

    Args:
        total: amount of work in ``unit``; None if unknown.
        description: what is going on, such as "Evaluating".
        unit: what is counted, in the plural.
        stream: where it is shown; standard output by default.
    """

    def __init__(
        self, total: int | None, description: str, *, unit: str = "steps", stream: TextIO | None = None
    ) -> None:
        self._total, self._description, self._unit = total, description, unit
        self._console = open_console(stream)
        self._bar: bars.Progress | None = None
        self._notebook: NotebookLine | None = None
        self._done = 0
        self._first: tuple[float, int] | None = None  # when the first update ended, and how much it did
        self._tenths = 0  # of the work since the last line

    def __enter__(self) -> Progress:
        self._began = self._shown = monotonic()
        if is_terminal(self._console):
            self._bar = bars.Progress(
                bars.TextColumn("{task.description}", markup=False),
                bars.BarColumn(bar_width=16),
                bars.TextColumn("{task.fields[status]}", markup=False),
                console=self._console,
                transient=True,
                auto_refresh=False,  # no thread: work may fork
            )
            attempt(self._console, self._bar.start)
            self._task = self._bar.add_task(self._description, total=self._total, status="")
        elif self._console.is_jupyter:
            self._notebook = NotebookLine()
        return self

    def shorten(self, n: int) -> None:
        """Leave out ``n`` units of the total that turned out not to be needed."""
        assert self._total is not None
        self._total -= n
        if self._bar:
            attempt(self._console, partial(self._bar.update, self._task, total=self._total))

    def update(self, n: int = 1, text: str = "") -> None:
        """Count ``n`` more units as done; ``text`` says what was done last, such as a task and its return."""
        tenth = self._tenth()
        self._done += n
        now = monotonic()
        if self._first is None:
            self._first = now, self._done
        if self._bar:
            if now - self._shown >= 0.1:
                self._shown = now
                status = self._status(now, text)
                show = partial(self._bar.update, self._task, completed=self._done, status=status, refresh=True)
                attempt(self._console, show)
        elif self._notebook:
            if now - self._shown >= _SECONDS_BETWEEN_UPDATES:
                self._shown = now
                self._notebook.show(f"{self._description}: {printable(self._status(now, text))}")
        elif self._done != self._total:
            self._tenths += self._tenth() - tenth
            silent = now - self._shown
            if silent < _SECONDS_BETWEEN_LINES or (not self._tenths and silent < _SECONDS_OF_SILENCE):
                return
            self._shown, self._tenths = now, 0
            print_line(self._console, f"{self._description}: {self._status(now, text)}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            # A display around this one draws it once more.
            attempt(self._console, partial(self._bar.update, self._task, visible=False, refresh=True))
            attempt(self._console, self._bar.stop)
        elapsed = monotonic() - self._began
        rate = self._done / max(elapsed, 1e-9)
        ending = "done" if kind is None else "stopped"
        amount = f"{self._done:,} {self._unit} in {clock_text(elapsed)} ({rate:,.1f}/s)"
        line = f"{self._description}: {ending}, {amount}"
        if self._notebook:
            self._notebook.show(line)
        else:
            print_line(self._console, line)

    def _tenth(self) -> int:
        return 10 * self._done // self._total if self._total else 0

    def _status(self, now: float, text: str) -> str:
        amount = f"{self._done:,}"
        if self._total:
            amount += f"/{self._total:,}"
        parts = [f"{amount} {self._unit}"]
        if self._total:
            parts[0] += f" ({self._done / self._total:.0%})"
        began, before = self._first or (self._began, 0)
        if done := self._done - before:
            parts.append(f"{done / max(now - began, 1e-9):,.1f}/s")
            if self._total:
                parts.append(f"ETA {remaining(done, self._total - before, now - began)}")
        return ", ".join([*parts, text] if text else parts)


def progress(items: Iterable[T], description: str, *, unit: str = "items", stream: TextIO | None = None) -> Iterator[T]:
    """Yield the items one by one, with a :class:`Progress` around the loop that takes them."""
    total = len(items) if isinstance(items, Sized) else None
    with Progress(total, description, unit=unit, stream=stream) as bar:
        for item in items:
            yield item
            bar.update()


def open_console(stream: TextIO | None) -> Console:
    """Open a console on ``stream``; on standard output the one shared console, so that live displays nest."""
    return get_console() if stream is None else Console(file=stream)


def is_terminal(console: Console) -> bool:
    """Tell whether lines can be redrawn; FORCE_COLOR alone makes rich say yes for a log file."""
    return console.is_interactive and console.file.isatty()


def print_line(console: Console, text: str, *, essential: bool = True) -> None:
    """Print ``text`` as it is: unstyled, unwrapped, brackets kept; what is not printable is escaped.

    Args:
        console: where.
        text: the line.
        essential: False: whoever prints goes on where a reader has left, too (:func:`attempt`).

    Raises:
        BrokenPipeError: the reader has left.
    """
    safe = printable(text)

    def show() -> None:
        if console.is_jupyter:  # rich would make an element of HTML of each line
            print(safe, file=console.file)
        else:
            console.print(safe, markup=False, highlight=False, soft_wrap=True)

    attempt(console, show, leave_with_reader=essential)


def attempt(console: Console, show: Callable[[], object], *, leave_with_reader: bool = False) -> None:
    """Show something; where the output cannot be written any more, say so once and show nothing from then on.

    Args:
        console: where it is shown.
        show: does so.
        leave_with_reader: a pipe that nobody reads is an error.

    Raises:
        BrokenPipeError: the reader has left, and ``leave_with_reader``.
    """
    if console.quiet:
        return
    try:
        show()
        return
    except OSError as error:
        reason, broken = str(error.strerror or error), isinstance(error, BrokenPipeError)
    except SystemExit:  # rich ends the program where a pipe is closed
        if not console.quiet:
            raise
        reason, broken = "its reader has left", True
    console.quiet = True
    if console.file is sys.stdout:
        discard()
    if broken and leave_with_reader:
        raise BrokenPipeError(reason)
    say(f"warning: The output cannot be written any more ({reason}): the work goes on without it")


def remaining(done: int, total: int, elapsed: float) -> str:
    """Estimate the time left at the mean pace so far, as h:mm:ss."""
    return clock_text(max(total - done, 0) * elapsed / done) if done > 0 else "?"


def clock_text(seconds: float) -> str:
    """Write seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
