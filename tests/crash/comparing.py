"""Comparison of files that are promised to be equal except for the times in them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: Columns and keys that hold times, which no two runs share.
_CLOCK = (
    "seconds", "per_s", "acting", "environment", "updating", "wait", "wall", "eta", "_ms", "speedup", "wandb_id",
    "versions",
)  # fmt: skip


def _bytes(path: Path) -> Any:
    return path.read_bytes()


def _state(path: Path) -> Any:
    """Read the values of a training state; equal values may be pickled differently."""
    return _plain(torch.load(path, weights_only=True))


def _table(path: Path) -> Any:
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    return [{name: text for name, text in row.items() if not _is_clock(name)} for row in rows]


def _json(path: Path) -> Any:
    return _plain(json.loads(path.read_text()))


#: The first pattern that a path matches says how it is read; None: not compared.
_READERS: tuple[tuple[str, Callable[[Path], Any] | None], ...] = (
    ("*.lock", None),
    ("*.log", None),  # with times
    ("*curves.png", None),  # over hours
    ("*_quantization.md", None),  # with milliseconds, as is the figure
    ("*_quantization.png", None),
    ("*state.pt", _state),
    ("*.csv", _table),
    ("*_quantization.json", _json),
    ("*", _bytes),
)


def content(directory: Path) -> dict[str, Any]:
    """Read the files of a directory, by path."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        reader = next(reader for pattern, reader in _READERS if fnmatch(name, pattern))
        if path.is_file() and reader is not None:
            found[name] = reader(path)
    return found


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Name the files that are missing, left over or different."""
    lines = [f"{name} is missing" for name in expected.keys() - found.keys()]
    lines += [f"{name} is left over" for name in found.keys() - expected.keys()]
    lines += [f"{name} differs" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    return sorted(lines)


def _is_clock(name: str) -> bool:
    return any(part in name for part in _CLOCK)


def _plain(value: Any) -> Any:
    """Drop times, and turn tensors into type, shape and bytes, which can be compared."""
    if isinstance(value, torch.Tensor):
        array = np.ascontiguousarray(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return str(value.dtype), tuple(value.shape), array.tobytes()
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items() if not _is_clock(str(key))}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
