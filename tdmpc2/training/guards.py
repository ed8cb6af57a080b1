"""Stopping a run in time: values that are not finite, and signals."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from types import FrameType

import torch
from torch import Tensor

from tdmpc2.support.signals import listening_to

#: Exit code of a run that was asked to stop and has saved: "try again later" (EX_TEMPFAIL), for queues that requeue.
STOPPED = 75


class FiniteGuard:
    """Remembers on the device the first step with a loss or gradient norm that is not finite.

    Asking costs one wait for the device, so ask when values are read anyway.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), -1, dtype=torch.int64, device=device)

    def watch(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Look at the 0-d metrics of a step; the device is not waited for."""
        finite = torch.stack([value.detach().float() for value in metrics.values()]).isfinite().all()
        self._first = torch.where(finite | (self._first >= 0), self._first, step)

    def first_bad_step(self) -> int | None:
        """Return the first such step, or None; waits for the device."""
        step = int(self._first)
        return step if step >= 0 else None


class StopRequest:
    """Request of a signal that the run ends after the current step; true once there is one."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        #: While nothing has to be saved: a request ends the process at once, with :data:`STOPPED`.
        self.at_once = False

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def stop_on_signal(launched: bool = False) -> Iterator[StopRequest]:
    """Turn the first SIGTERM, SIGINT or SIGHUP into a request; a second one ends the process as usual.

    A terminal that is closed sends SIGHUP more than once, so that later ones mean nothing; where it is ignored, as
    under ``nohup``, it stays so. SIGUSR2, if something handles it (submitit does, to queue the job again), is a request
    as well and is handed on at the end, when all is saved. Signals reach only the main thread; elsewhere nothing is
    changed.

    Args:
        launched: by torchrun or a queue, which may both send SIGTERM, so that one more means nothing.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handled = listening_to()
    again = getattr(signal, "SIGUSR2", None)  # not on Windows
    handled += [again] if again and callable(signal.getsignal(again)) else []
    before = {number: signal.getsignal(number) for number in handled}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        restore()
        if launched:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if request.signal.name == "SIGHUP":
            signal.signal(number, signal.SIG_IGN)
        if request.at_once:
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(f"Stopped by {request.signal.name} before the first update; the same command goes on", flush=True)
            raise SystemExit(STOPPED)

    for number in handled:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()
        if request.signal and request.signal == again:
            signal.raise_signal(again)
