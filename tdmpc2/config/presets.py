"""Presets of the planner: each is a set of planning keys under one name, ``planner=fast``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tdmpc2.support.text import shown
from tdmpc2.tasks import nearest

#: Keys by preset. Keys that are typed beside a preset win.
PRESETS: dict[str, dict[str, Any]] = {
    "full": {"mpc": True, "num_samples": 512, "iterations": 6, "plan_start": "previous"},
    "fast": {"mpc": True, "num_samples": 128, "iterations": 3, "plan_start": "policy"},
    "policy": {"mpc": False},
}


def with_preset(values: Mapping[str, Any], typed: Collection[str] | None = None) -> dict[str, Any]:
    """Put the keys that ``planner`` stands for in its place.

    Args:
        values: keys and their values.
        typed: the keys that win over the preset; by default all that are there.

    Raises:
        ValueError: there is no such preset.
    """
    name = values.get("planner")
    rest = {key: value for key, value in values.items() if key != "planner"}
    if name is None or (isinstance(name, str) and name.lower() in ("null", "none", "~", "")):
        return rest
    if not isinstance(name, str):
        raise ValueError(f"planner={shown(name)} must be one of {', '.join(PRESETS)}")
    if name not in PRESETS:
        raise ValueError(f"planner={name} is not one of {', '.join(PRESETS)}.{nearest(str(name), PRESETS)}")
    typed = rest.keys() if typed is None else typed
    return rest | {key: value for key, value in PRESETS[name].items() if key not in typed}
