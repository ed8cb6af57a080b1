"""The batches of a training run, drawn ahead of their use where the data is slower than the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import torch

from tdmpc2.data.batch import Batch


class Batches:
    """Batches of consecutive steps on a device.

    A batch is a pure function of its step, so that threads may draw later ones at the same time: with the data on disk
    their page faults overlap. For a GPU a thread also copies the batch into page-locked memory.

    Args:
        draw: step -> batch.
        steps: the steps, in order.
        device: where the batches are to be.
        ahead: batches drawn ahead, each by a thread of its own; 0: in turn, without threads.
    """

    def __init__(self, draw: Callable[[int], Batch], steps: range, device: torch.device, ahead: int = 0) -> None:
        self._draw, self._steps, self._device, self._ahead = draw, steps, device, ahead
        self._waited = 0.0
        self._since = perf_counter()

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yield the batches; an error of a thread is raised here, at the step it belongs to."""
        self._since = perf_counter()
        if not self._ahead:
            for step in self._steps:
                start = perf_counter()
                batch = self._draw(step).to(self._device)
                self._waited += perf_counter() - start
                yield batch
            return
        with ThreadPoolExecutor(self._ahead, "batches") as threads:
            pending = deque(threads.submit(self._prepare, step) for step in self._steps[: self._ahead])
            upcoming = iter(self._steps[self._ahead :])
            try:
                while pending:
                    start = perf_counter()
                    batch = pending.popleft().result().to(self._device)
                    self._waited += perf_counter() - start
                    if (following := next(upcoming, None)) is not None:
                        pending.append(threads.submit(self._prepare, following))
                    yield batch
            finally:
                threads.shutdown(cancel_futures=True)

    def take_wait(self, paused: float = 0.0) -> float:
        """Return the share of the time since the last call (or the beginning) spent waiting for a batch, 0 to 1.

        Args:
            paused: seconds of that time that do not count, such as those of an evaluation.
        """
        now = perf_counter()
        share = self._waited / max(now - self._since - paused, 1e-9)
        self._waited, self._since = 0.0, now
        return min(share, 1.0)

    def _prepare(self, step: int) -> Batch:
        batch = self._draw(step)
        return batch.pin_memory() if self._device.type == "cuda" else batch
