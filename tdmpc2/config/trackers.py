"""Entries of the key ``tracker``: what shows the curves of a run besides its files."""

from __future__ import annotations

from typing import Any

from tdmpc2.config.values import is_nothing
from tdmpc2.support.text import shown
from tdmpc2.tasks import nearest

#: Names that may be typed; ``none`` stands alone.
TRACKERS = ("wandb", "tensorboard", "none")


def parse_trackers(value: Any) -> tuple[str, ...]:
    """Read one name, several as ``[wandb,tensorboard]``, or ``none``; the result has no ``none``.

    Raises:
        ValueError: an unknown name, or ``none`` beside others.
    """
    if isinstance(value, str):
        value = value.strip().removeprefix("[").removesuffix("]").split(",")
    elif value is None:
        value = ()
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"tracker={shown(value)} must be {', '.join(TRACKERS)}, or a list such as {_LIST}")
    names = ["none" if is_nothing(item) else str(item).strip() for item in value]
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"tracker={shown(name)} is not one of {', '.join(TRACKERS)}.{nearest(name, TRACKERS)}")
    if "none" in names and len(names) > 1:
        raise ValueError(f"tracker: none stands alone, not beside others; a list is written {_LIST}")
    return tuple(dict.fromkeys(name for name in names if name != "none"))


_LIST = f"[{','.join(TRACKERS[:2])}]"
