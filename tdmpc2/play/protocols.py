"""Protocols of evaluations compared: the settings that differ between them, and short distinct names for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tdmpc2.config import KEYS, UNDECISIVE, as_typed

#: Keys that a score depends on once the weights are given; the precision is the protocol's own.
_DECIDING = {
    name
    for name, key in KEYS.items()
    if "evaluate" in key.commands and name not in (UNDECISIVE - {"seed"}) | {"precision", "checkpoint"}
}

#: Entries of a protocol that are no settings, or follow from others.
_FOLLOWING = {"config", "sha256", "plan_iterations"}


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
    """Shorten a path to what tells a checkpoint from others: its stem, or its directory's name for ``model.pt``."""
    file = Path(path)
    return file.absolute().parent.name if file.stem == "model" else file.stem


def _differing(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that have more than one value, without those that follow from another one of them."""
    keys = dict.fromkeys(key for one in found for key in one)
    differing = [key for key in keys if len({as_typed(one.get(key)) for one in found}) > 1]
    return [key for key in differing if key not in KEYS or KEYS[key].follows not in differing]
