"""The files that held-out errors are left in, beside the checkpoints they are of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tdmpc2.checkpoints.hub import as_typed, is_path
from tdmpc2.support.files import json_text, write_text


def write_errors(results: Mapping[Path, Mapping[str, Any]]) -> None:
    """Leave the errors of each checkpoint beside it, see :func:`error_file`; the report reads ``heldout.json``.

    Raises:
        ValueError: two checkpoints would leave theirs in the same file, or the disk refused.
    """
    check_one_each(results)
    for path, errors in results.items():
        write_text(error_file(path), json_text(errors, indent=1) + "\n")


def error_file(path: Path) -> Path:
    """Name the file that a checkpoint's errors are left in.

    It is ``heldout.json`` beside the ``model.pt`` of a run, which the report reads, and ``heldout_NAME.json`` beside
    another ``NAME.pt``.
    """
    return path.parent / ("heldout.json" if path.name == "model.pt" else f"heldout_{path.stem}.json")


def check_one_each(paths: Iterable[Path]) -> None:
    """Raise ValueError if two checkpoints would leave their errors in the same file, or one is no path."""
    paths = list(paths)
    if remote := [as_typed(path) for path in paths if not is_path(path)]:
        raise ValueError(
            f"write leaves heldout.json beside a checkpoint, and {remote[0]} is no path: copy the file here"
        )
    names = [(path.resolve().parent, path.stem) for path in paths]
    if several := next((name for name in names if names.count(name) > 1), None):
        same = [path for path, name in zip(paths, names, strict=True) if name == several]
        raise ValueError(
            f"{same[0]} and {same[1]} would leave their errors in the same file: write takes "
            "one checkpoint of each name"
        )
