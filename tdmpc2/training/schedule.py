"""Schedule of learning online, of random actions and of updates: docs/algorithm.md, "Learning online"."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tdmpc2.config import Config


@dataclass(frozen=True)
class Schedule:
    """The order of events of a run, as a function of the number of steps taken.

    Steps count the environments' steps, from 1; those that are stepped together have consecutive numbers, and a turn of
    the loop is named by the last of them.

    Attributes:
        seed_steps: S. The steps 1 to S + 1 are random, and the first updates follow step S + 1.
        stride: E, environments that are stepped together.
        utd: updates per step.
    """

    seed_steps: int
    stride: int = 1
    utd: float = 1.0

    @classmethod
    def of(cls, cfg: Config) -> Schedule:
        """Read the schedule of a run."""
        return cls(cfg.seed_steps, len(cfg.envs), cfg.utd)

    def is_random(self, step: int) -> bool:
        """Tell whether the actions of the turn that ends with ``step`` are random."""
        return step - self.stride <= self.seed_steps

    def updates_due(self, step: int) -> int:
        """Count the updates that follow the turn that ends with ``step``.

        The first ones make up for the seed steps, in one burst.
        """
        return self._updates(step) - self._updates(step - self.stride)

    def _updates(self, step: int) -> int:
        """Count the updates of all steps up to ``step``."""
        return math.floor(self.utd * (step - 1)) if step > self.seed_steps else 0
