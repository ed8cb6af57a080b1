"""A thread that hands what a run records to a service, so that the run never waits for it."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

#: Does something with the service's handle.
Action = Callable[[Any], None]

#: The kind of action without which there is no use in the others.
METRICS = "metrics"
#: Calls that may wait to be sent: those of a million steps at the default log_freq. Later ones are dropped.
CAPACITY = 10_000


class Sender:
    """A queue of actions, which a thread of its own takes one by one; an action that fails costs one line.

    After a failure all actions of its kind are left out; after one of :data:`METRICS`, everything is.

    Args:
        service: its name in messages.
        handle: what actions are given.
        show: prints a line; called by the caller's thread only.
        capacity: actions that may wait.
    """

    def __init__(self, service: str, handle: Any, show: Callable[[str], None], capacity: int = CAPACITY) -> None:
        self._service, self._handle, self._show = service, handle, show
        self._failed: set[str] = set()
        self._waiting: queue.Queue[tuple[str, Action] | None] = queue.Queue(capacity)
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()  # the thread's; printed by the caller's
        self._dropped = 0
        self._thread = threading.Thread(target=self._send_all, name=f"{service} sender", daemon=True)
        self._thread.start()

    def takes(self, kind: str) -> bool:
        """Tell whether actions of a kind are still carried out."""
        return self._failed.isdisjoint((kind, METRICS))

    def call(self, kind: str, action: Action) -> None:
        """Hand an action to the thread; with a full queue it is dropped and counted."""
        self._print_notes()
        try:
            self._waiting.put_nowait((kind, action))
        except queue.Full:
            self._dropped += 1

    def fail(self, kind: str, error: Exception) -> None:
        """Leave out a kind of action from here on, with one line."""
        self._failed.add(kind)
        self._show(self._off(kind, error))

    def finish(self, last: Action, timeout: float, grace: float = 0.0) -> bool:
        """Wait until everything is sent; one line says what was not.

        Args:
            last: the last action, which ends the service's own work.
            timeout: seconds to wait.
            grace: seconds more, where ``last`` itself takes up to ``timeout``.

        Returns:
            False if the time was over before.
        """
        end = monotonic() + timeout + grace
        with contextlib.suppress(queue.Full):
            for item in (("finish", last), None):
                self._waiting.put(item, timeout=max(end - monotonic(), 0.001))
        self._thread.join(max(end - monotonic(), 0))
        self._print_notes()
        if late := self._thread.is_alive():
            unsent = self._waiting.qsize()
            self._show(f"{self._service}: gave up after {timeout:g} s, {unsent} records were not sent")
        if self._dropped:
            self._show(f"{self._service}: {self._dropped} records were dropped, it was too slow")
        return not late

    def _send_all(self) -> None:
        while (item := self._waiting.get()) is not None:
            kind, action = item
            if kind == "finish" or self.takes(kind):  # whatever failed before, the service is told of the end
                try:
                    action(self._handle)
                except Exception as error:  # network, disk, a foreign version: none of them is worth a training run
                    self._failed.add(kind)
                    self._notes.put(self._off(kind, error))

    def _print_notes(self) -> None:
        while not self._notes.empty():
            self._show(self._notes.get())

    def _off(self, kind: str, error: Exception) -> str:
        return f"{self._service}: {kind} off after an error ({reason(error)}). Training continues."


def reason(error: Exception) -> str:
    """Say in one line what went wrong."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
