"""Entries of the key ``mix``: which share of a data set's episodes is played by whom.

An entry has two forms of one meaning::

    mix=[{share: 0.2, kind: random}, {share: 0.3, kind: policy, checkpoint: early.pt, noise: 0.3}]
    mix=[0.2 random, 0.3 policy early.pt noise 0.3]
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tdmpc2.support.text import cut, shown
from tdmpc2.tasks import nearest

KINDS = ("random", "policy", "planner")
_TEXT = re.compile(
    r"(?P<share>\S+)\s+(?P<kind>\S+)(?:\s+(?!noise\s)(?P<checkpoint>\S.*?))?(?:\s+noise\s+(?P<noise>\S+))?"
)
_FORM = (
    '"SHARE random", "SHARE policy CHECKPOINT" or "SHARE planner CHECKPOINT" (and "noise STD"), '
    "or {share: 0.3, kind: policy, checkpoint: FILE, noise: 0.3}"
)


@dataclass(frozen=True)
class MixEntry:
    """A behaviour and its share of every task's episodes.

    Attributes:
        share: positive; relative to the sum over all entries.
        kind: ``random``, ``policy`` or ``planner``.
        checkpoint: file of the agent; None for random actions, and for an agent that is in memory.
        noise: standard deviation of Gaussian noise added to the noise-free action, which is then clipped to [-1, 1];
            None: the agent's own exploration noise.
    """

    share: float
    kind: str
    checkpoint: str | None = None
    noise: float | None = None

    def __str__(self) -> str:
        name = "" if self.checkpoint is None else f" {self.checkpoint}"
        return f"{self.kind}{name}{'' if self.noise is None else f' noise {self.noise:g}'}"


def parse_mix(value: Any) -> tuple[MixEntry, ...]:
    """Read the entries of a mixture.

    Args:
        value: a list of entries, or text with commas between entries in their text form.

    Raises:
        ValueError: no entry, or one of neither form; the message names it.
    """
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"mix={shown(value)} must be a list of entries: {_FORM}")
    if not value:
        raise ValueError("mix has no entries: give at least one, or null")
    return tuple(_entry(item) for item in value)


def _entry(item: Any) -> MixEntry:
    if isinstance(item, MixEntry):
        return item
    if isinstance(item, str):
        match = _TEXT.fullmatch(item.strip())
        if match is None:
            raise ValueError(f"mix: '{cut(item, 80)}' is not of the form {_FORM}")
        return _checked(match.groupdict(), cut(item.strip(), 80))
    if not isinstance(item, Mapping):
        raise ValueError(f"mix: {shown(item)} must be an entry of the form {_FORM}")
    text = cut("{" + ", ".join(f"{name}: {part}" for name, part in item.items()) + "}", 80)
    names = [field.name for field in fields(MixEntry)]
    if unknown := next((name for name in item if name not in names), None):
        raise ValueError(
            f"mix: '{text}': '{cut(str(unknown), 40)}' is not one of {', '.join(names)}.{nearest(str(unknown), names)}"
        )
    if absent := next((name for name in ("share", "kind") if item.get(name) is None), None):
        raise ValueError(f"mix: '{text}' has no {absent}, as in {{share: 0.3, kind: random}}")
    return _checked(item, text)


def _checked(parts: Mapping[str, Any], text: str) -> MixEntry:
    kind, checkpoint = str(parts["kind"]), parts.get("checkpoint")
    if kind not in KINDS:
        raise ValueError(f"mix: '{text}': '{cut(kind, 40)}' is not one of {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    share = _number(parts["share"])
    if not share:
        raise ValueError(f"mix: the share in '{text}' must be a positive number")
    noise = None if parts.get("noise") is None else _number(parts["noise"])
    if parts.get("noise") is not None and noise is None:
        raise ValueError(f"mix: the noise in '{text}' must be a number, 0 or more")
    if kind == "random" and (checkpoint is not None or noise is not None):
        raise ValueError(f"mix: '{text}': random actions have neither a checkpoint nor noise")
    if kind != "random" and checkpoint is None:
        raise ValueError(f"mix: '{text}' names no checkpoint: {_FORM}")
    return MixEntry(share, kind, None if checkpoint is None else os.path.expanduser(str(checkpoint)), noise)


def _number(value: Any) -> float | None:
    """Read a finite number that is not negative; None if it is not one."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number < math.inf else None
