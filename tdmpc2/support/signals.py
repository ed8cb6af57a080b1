"""Signals that ask a program to end, in one table: how commands end by them, and which of them training saves for."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

#: Signals that ask a process to end: Ctrl-C, a queue or `kill`, and a terminal or connection that was closed.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class EndedBySignal(SystemExit):
    """The end of a command that was asked to end; its exit code is the one that shells report, 128 and the number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


def listening_to() -> list[signal.Signals]:
    """Ending signals that this process has not been told to ignore, as ``nohup`` does with SIGHUP."""
    return [signal.Signals(number) for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def ended_by_exceptions() -> Iterator[None]:
    """Make ending signals exceptions, so that what is half done is cleaned up: Ctrl-C as usual, others EndedBySignal.

    Signals reach only the main thread, and one that something else handles is left to it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        raise EndedBySignal(number)

    handlers = {number: signal.default_int_handler if number == signal.SIGINT else end for number in ENDING}
    before = {number: signal.getsignal(number) for number in ENDING}
    replaced = [number for number in ENDING if before[number] is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, before[number])
