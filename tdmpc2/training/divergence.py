"""The message of a run that diverged: where, from what, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tdmpc2.data.batch import Batch

LEARN_SLOWER = "A lower lr or grad_clip_norm may help"


class Diagnosis(NamedTuple):
    """The batch of a step at which training diverged, in words, and the remedy."""

    batch: str = ""
    remedy: str = LEARN_SLOWER


def diverged(step: int, saved: str, diagnosis: Diagnosis) -> str:
    """Put the message together.

    Args:
        step: the first one with a loss or gradient that is not finite.
        saved: says what there is from before it.
        diagnosis: of its batch.
    """
    batch = f"{diagnosis.batch}. " if diagnosis.batch else ""
    return f"Training diverged: a loss or gradient is not finite at step {step:,}. {batch}{saved}. {diagnosis.remedy}"


def diagnose_stored(data_dir: str | None) -> Callable[[int], Diagnosis]:
    """Make the diagnosis of a run whose batches cannot be drawn again; stored episodes are in them if there are any."""
    look = f"; {_verify(data_dir)} tells whether the episodes there are damaged" if data_dir else ""
    return lambda step: Diagnosis(remedy=f"{LEARN_SLOWER}{look}")


def diagnosis_of(origin: str, batch: Batch, data_dir: str) -> Diagnosis:
    """Tell damaged data, which no learning rate mends, from a step that was too large.

    Checksums alone cannot tell: whoever changed an index may have given it a valid new checksum.

    Args:
        origin: says which episodes the batch is of.
        batch: the batch of the step.
        data_dir: where they are stored.
    """
    bad = [name for name in ("obs", "action", "reward") if not getattr(batch, name).isfinite().all()]
    look = _verify(data_dir)
    if bad:
        numbers = " and ".join(bad)
        return Diagnosis(f"{origin}, whose {numbers} has values that are not finite", f"{look} tells what is damaged")
    return Diagnosis(origin, f"{LEARN_SLOWER}; {look} tells whether the data are damaged")


def _verify(data_dir: str) -> str:
    return f"`tdmpc2 data verify {data_dir}`"
