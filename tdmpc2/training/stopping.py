"""The early end of a run, which a signal or a callback asks for and all of its processes take together."""

from __future__ import annotations

from collections.abc import Sequence

from tdmpc2.distributed import ProcessGroup
from tdmpc2.training.callbacks import Callback, Callbacks
from tdmpc2.training.guards import StopRequest
from tdmpc2.training.resuming import Every

_ASK_OTHERS = 10  # steps, or updates, between two questions of several processes whether one was asked to stop


class Stopping:
    """Requests to stop, as far as the processes of a run know of them.

    Args:
        group: the processes.
        request: that of a signal to this one.
        stride: steps that the loop takes at a time.

    Attributes:
        callbacks: those of this process.
        by_signal: one of the processes had a signal, and all know it.
    """

    def __init__(self, group: ProcessGroup, request: StopRequest, stride: int) -> None:
        self._group, self._request = group, request
        self._ask_others = Every(_ASK_OTHERS, stride)
        self.callbacks = Callbacks(())
        self.by_signal = self._agreed = False

    def listen(self, callbacks: Sequence[Callback]) -> None:
        """Take the run's callbacks.

        Raises:
            ValueError: one lacks a method.
        """
        self.callbacks = Callbacks(callbacks)

    def after_update(self, number: int) -> bool:
        """Tell whether to stop, after an update by its number; several processes ask one another at every tenth."""
        return self._agreed if self._group.world_size > 1 and number % _ASK_OTHERS else self.ask()

    def after_step(self, step: int) -> bool:
        """Tell whether to stop, after a step of the loop."""
        return self._agreed if self._group.world_size > 1 and not self._ask_others.due(step) else self.ask()

    def ask(self) -> bool:
        """Tell whether to stop; all processes call this at the same moment."""
        if not self._agreed:
            asked = self._group.collect((bool(self._request), self.callbacks.stopped_by is not None))
            self.by_signal = any(signal for signal, _ in asked)
            self._agreed = self.by_signal or any(by_callback for _, by_callback in asked)
        return self._agreed

    def leave(self) -> bool:
        """Tell whether a signal came to this process, the only one of its run, which then ends at once."""
        self.by_signal = self.by_signal or bool(self._request)
        return self.by_signal

    def by(self) -> str:
        """Say who asked."""
        if self.by_signal:
            return self._request.signal.name if self._request.signal else "a signal to another process"
        return self.callbacks.stopped_by or "a callback in another process"
