"""Speed of a run: what its updates take, without the evaluations and checkpoints between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tdmpc2.tracking.progress import remaining


class Interval(NamedTuple):
    """The time between two rows of the log."""

    seconds: float  # all of it
    it_per_s: float  # steps per second, pauses left out
    wall_seconds: float  # since the run first started, pauses included, breaks between starts not


class Activity(NamedTuple):
    """The activity of a run between two rows of the log, besides its steps."""

    columns: Mapping[str, float]  # of speed.csv
    parts: Sequence[str]  # of the training line


_ROWS = 20  # rows of the log whose pace tells what is left: a burst of updates at the beginning does not


class Pace:
    """Clock of a run, told the time by its caller.

    Args:
        step: step the run starts from.
        total: its last step.
        now: seconds on any clock.
        before: seconds that earlier starts of the run took.

    Attributes:
        paused: seconds of pauses since the last row.
    """

    def __init__(self, step: int, total: int, now: float, before: float = 0.0) -> None:
        self._total, self._began, self._before = total, now, before
        self._rows, self.paused = deque([(step, now)], _ROWS + 1), 0.0

    def pause(self, seconds: float) -> None:
        """Leave time out of the speed: what an evaluation or a checkpoint took."""
        self.paused += seconds

    def wall_seconds(self, now: float) -> float:
        """Seconds since the run first started, without the breaks between its starts."""
        return self._before + now - self._began

    def row(self, step: int, now: float) -> Interval:
        """Close the interval since the last row."""
        last_step, last_time = self._rows[-1]
        seconds = now - last_time
        working = max(seconds - self.paused, 0.0)
        speed = (step - last_step) / max(working, 1e-9)
        self._rows.append((step, now))
        self.paused = 0.0
        return Interval(seconds, speed, self.wall_seconds(now))

    def remaining(self, step: int, now: float) -> str:
        """Time left at the mean pace of this start's latest rows, pauses included, as h:mm:ss."""
        first_step, first_time = self._rows[0]
        return remaining(step - first_step, self._total - first_step, now - first_time)
