"""Random numbers that are a pure function of what they are for, so that a continued run needs no saved generator."""

from __future__ import annotations

import numpy as np


def numbered_generator(seed: int, step: int, stream: int = 0) -> np.random.Generator:
    """Make the generator of one step of a run.

    It is counter-based, keyed with seed and stream and started at block ``step``: different triples read different,
    non-overlapping parts of its output.

    Args:
        seed: of the run.
        step: number of the step, from 0.
        stream: what the numbers are for; 0: the slices of batches, 1: random actions.
    """
    key, counter = np.array([seed, stream], dtype=np.uint64), np.array([0, 0, 0, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
