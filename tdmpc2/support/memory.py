"""Memory that is not there: how libraries say so, and the line that a command ends with."""

from __future__ import annotations

import re

from tdmpc2.support.text import cut

#: How torch and numpy say that something is too large; they have no exception of their own for it on a CPU.
_TOO_LARGE = re.compile(
    r"can't allocate memory|not enough memory|out of memory|Storage size calculation overflowed|Invalid buffer size"
    r"|integer multiplication overflow|bad_alloc|Unable to allocate|array is too big|maximum allowed dimension"
    r"|too large|Overflow when unpacking long|cannot fit 'int' into an index-sized integer|numel.*overflow",
    re.IGNORECASE,
)
_REMEDY = "make batch_size, num_samples, eval_episodes or the model's widths smaller, or free memory"


def is_out_of_memory(error: BaseException) -> bool:
    """True for an allocation that failed, in main memory or on a device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, (RuntimeError, OverflowError)) and _TOO_LARGE.search(str(error)) is not None


def out_of_memory_line(error: BaseException) -> str:
    """Say in one line that memory is not enough, and what makes it less."""
    said = (str(error).strip().splitlines() or [""])[0]
    reason = f" ({cut(said, 160)})" if said else ""
    return f"There is not enough memory for this{reason}: {_REMEDY}"
