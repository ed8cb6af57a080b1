"""Random numbers of a run that may be continued: a pure function of what they are for, or from a saved state."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def numbered_generator(seed: int, step: int, stream: int = 0) -> np.random.Generator:
    """Make the generator of one step of a run.

    It is counter-based, keyed with seed and stream and started at block ``step``: different triples read different,
    non-overlapping parts of its output.

    Args:
        seed: of the run.
        step: number of the step, from 0.
        stream: what the numbers are for; 0: the slices of batches, 1: random actions, 2: whether
            the policy acts alone, 3: pink noise.
    """
    key, counter = np.array([seed, stream], dtype=np.uint64), np.array([0, 0, 0, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def continue_generator(generator: torch.Generator, state: Tensor) -> None:
    """Continue from a saved state; from that of another kind of device with other, but fixed, numbers."""
    state = state.cpu()
    if state.shape == generator.get_state().shape:
        load_generator(generator, state)
    else:
        drawn = hashlib.sha256(state.numpy().tobytes())  # a state begins with its seed, wherever it stands
        generator.manual_seed(int.from_bytes(drawn.digest()[:7], "little"))


def load_generator(generator: torch.Generator, state: Tensor) -> None:
    """Continue a generator from a saved state, uint8 [N].

    Raises:
        RuntimeError: it is not the state of such a generator.
    """
    # A copy: torch reads beyond the end of a view that does not begin where its storage does.
    generator.set_state(torch.clone(state.cpu(), memory_format=torch.contiguous_format))
