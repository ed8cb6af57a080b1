"""The time of a run that learns online, by what it is spent on, and the outcome of its episodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from tdmpc2.play.rollout import Episode
from tdmpc2.tracking.pace import Activity

_PARTS = ("acting", "environment", "updating")


class Clock:
    """Adds up the time of the parts of a turn between two rows of the log.

    On a GPU an update is only launched, and what waits for it is the next plan: its time then counts as acting.

    Args:
        updates: made in the run when it is started.
        success: the tasks have a notion of it; else it is shown once an episode has been one.

    Attributes:
        updates: made so far.
    """

    def __init__(self, updates: int, success: bool = True) -> None:
        self._success = success
        self.updates = self._counted = updates
        self._seconds = dict.fromkeys(_PARTS, 0.0)
        self._since = perf_counter()
        self._last: tuple[float, float] | None = None  # mean return and success of the episodes that ended last

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count the time of a block: ``acting``, ``environment`` or ``updating``."""
        began = perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += perf_counter() - began

    def played(self, episodes: Sequence[Episode]) -> None:
        """Remember how the episodes went that have just ended."""
        if episodes:
            count = len(episodes)
            self._success = self._success or any(e.success for e in episodes)
            self._last = sum(e.episode_return for e in episodes) / count, sum(e.success for e in episodes) / count

    def activity(self, paused: float) -> Activity:
        """Sum up the time since the last call.

        Args:
            paused: seconds of it that do not count.
        """
        now = perf_counter()
        seconds = max(now - self._since - paused, 1e-9)
        shares = {part: min(spent / seconds, 1.0) for part, spent in self._seconds.items()}
        rate = (self.updates - self._counted) / seconds
        self._counted, self._since, self._seconds = self.updates, now, dict.fromkeys(_PARTS, 0.0)
        episode = [] if self._last is None else [f"return {self._last[0]:.4g}"]
        if self._last is not None and self._success:
            episode.append(f"success {self._last[1]:.2f}")
        rest = max(1 - sum(shares.values()), 0.0)  # drawing batches, saving, logging
        spent = "  ".join(f"{part} {share:.0%}" for part, share in {**shares, "other": rest}.items())
        return Activity({"updates_per_s": rate, **shares}, [*episode, f"{rate:,.1f} updates/s", spent])
