"""Protocols of evaluations compared: the settings that differ between them, and short distinct names for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tdmpc2.config import KEYS, PLANNER_KEYS, UNDECISIVE, as_typed
from tdmpc2.config.sizes import budget
from tdmpc2.support.entries import text, whole

#: Keys that a score depends on once the weights are given; the precision is the protocol's own.
_DECIDING = {
    name
    for name, key in KEYS.items()
    if "evaluate" in key.commands and name not in (UNDECISIVE - {"seed"}) | {"precision", "checkpoint"}
}

#: Entries of a protocol that are no settings, or follow from others.
_FOLLOWING = {"config", "sha256", "plan_iterations"}
#: Entries of ``config`` that :func:`plan_text` reads.
PLAN = {
    "num_samples": whole(2),
    "iterations": whole(1),
    "horizon": whole(1),
    "plan_action": text().optional,
    "plan_start": text().optional,
}
#: Keys of the planner that every description of a plan has, or whose default depends on the task.
_IN_PLAN_TEXT = {"num_samples", "iterations", "horizon", "plan_action", "plan_start"}
#: Names of a run's other files.
_OF_RUNS = re.compile(r"ema|best|model_\d+")


def difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the settings of an earlier evaluation that are others now, such as ``precision=bf16, num_samples=512``."""
    first, second = settings(earlier), settings(now)
    changes = [f"{key}={as_typed(first.get(key))}" for key in _differing([first, second])]
    if earlier.get("sha256") != now.get("sha256"):
        changes.insert(0, "other weights")
    return ", ".join(changes)


def labels(protocols: Sequence[Mapping[str, Any]], fallbacks: Sequence[str]) -> list[str]:
    """Name evaluations by their checkpoints and by the settings in which they differ; every name is another one.

    Args:
        protocols: as in ``results.json``.
        fallbacks: names of their directories, for those that nothing else tells apart.
    """
    found = [settings(protocol) for protocol in protocols]
    differing = [key for key in _differing(found) if key != "checkpoint"]
    names = [
        ", ".join([str(one["checkpoint"]), *(f"{key}={as_typed(one.get(key))}" for key in differing)]) for one in found
    ]
    unique = [
        name if names.count(name) == 1 else f"{name} ({fallback})"
        for name, fallback in zip(names, fallbacks, strict=True)
    ]
    return [
        name if unique.count(name) == 1 else f"{name} {unique[: index + 1].count(name)}"
        for index, name in enumerate(unique)
    ]


def settings(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Everything a score depends on, flat; the checkpoint by its short name."""
    config = {key: value for key, value in protocol.get("config", {}).items() if key in _DECIDING}
    whole = {key: value for key, value in protocol.items() if key not in _FOLLOWING}
    return {**config, **whole, "checkpoint": checkpoint_name(str(protocol.get("checkpoint", "?")))}


def checkpoint_name(path: str) -> str:
    """Shorten a path to what tells a checkpoint from others.

    It is the file's stem; the directory's name for a run's ``model.pt``; and both for its other files, such as
    ``ema.pt``, which are called alike in every run.
    """
    file = Path(path)
    directory = file.absolute().parent.name
    if file.stem == "model":
        return directory
    return f"{directory}-{file.stem}" if directory and _OF_RUNS.fullmatch(file.stem) else file.stem


def budget_text(protocol: Mapping[str, Any]) -> str:
    """Say how many action sequences a plan tries, as in ``6 x 512 samples``."""
    config = protocol["config"]
    return f"{protocol.get('plan_iterations', config['iterations'])} x {config['num_samples']} samples"


def plan_text(protocol: Mapping[str, Any]) -> str:
    """Describe a planner's budget and all of its settings that are not the usual ones.

    Args:
        protocol: as in ``results.json``, with ``num_samples``, ``iterations`` and ``horizon`` in its ``config``.
    """
    config = protocol["config"]
    text = f"{budget_text(protocol)}, horizon {config['horizon']}"
    if (executed := config.get("plan_action", "sample")) != "sample":
        text += f", {executed} of the plan"
    if (start := config.get("plan_start", "previous")) != "previous":
        text += f", begun by the {start}"
    usual = {name: KEYS[name].default for name in PLANNER_KEYS} | budget(config["num_samples"])
    own = [key for key in PLANNER_KEYS if key not in _IN_PLAN_TEXT]
    others = [key for key in own if config.get(key) not in (None, usual[key])]  # null follows from another key
    return ", ".join([text, *(f"{key}={as_typed(config[key])}" for key in others)])


def _differing(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that have more than one value, without those that follow from another one of them."""
    keys = dict.fromkeys(key for one in found for key in one)
    differing = [key for key in keys if len({as_typed(one.get(key)) for one in found}) > 1]
    return [key for key in differing if key not in KEYS or KEYS[key].follows not in differing]
