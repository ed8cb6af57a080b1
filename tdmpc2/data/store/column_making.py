"""Records of how a column of a teacher's outputs is made, beside the column: ``plan.json`` beside ``plan.npy``.

A plan depends on more than the teacher's file, such as the number of sequences it chose from. One column holds plans
made in one way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tdmpc2.support.entries import check_entries
from tdmpc2.support.files import json_text, write_text
from tdmpc2.support.reading import load_json
from tdmpc2.support.text import cut, shown

#: Columns that do not follow from the teacher's file alone.
RECORDED = ("plan",)


def write_made(path: Path, name: str, made: Mapping[str, Any]) -> None:
    """Write the record of a column that begins: plain values by their names.

    Raises:
        ValueError: the disk refused.
    """
    write_text(path / f"{name}.json", json_text(made, indent=1) + "\n")


def read_made(path: Path, name: str) -> dict[str, Any]:
    """Read the record of a column; empty for one that follows from the teacher's file alone.

    Raises:
        ValueError: the record is damaged, or missing beside a column that needs one.
    """
    file = path / f"{name}.json"
    again = f"Delete the directory {path}: what it held is computed again"
    if not file.exists():
        if name in RECORDED:
            raise ValueError(
                f"{file} is missing, and nothing else says how {name}.npy was made. Restore it, or delete "
                f"{name}.npy and {name}.check.npy there and make them again with `tdmpc2 targets ... columns={name}`"
            )
        return {}
    try:
        content = load_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged [{cut(str(error))}]. {again}") from error
    return check_entries(str(file), content, {}, again, others=True)


def check_made(path: Path, name: str, made: Mapping[str, Any]) -> None:
    """Require that a column was begun in the way that it is to go on, or its numbers would be of two kinds.

    Raises:
        ValueError: it was begun in another way; the message names what differs.
    """
    if changed := differences(read_made(path, name), made):
        raise ValueError(
            f"{path / name}.npy was begun in another way ({changed}): go on as it was begun, or delete "
            f"{name}.npy and {name}.check.npy there to begin anew"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe up to three differences between two records; empty if they are equal."""
    others = [key for key in dict.fromkeys((*before, *now)) if before.get(key) != now.get(key)]
    return "; ".join(f"{key} was {shown(before.get(key))} and is now {shown(now.get(key))}" for key in others[:3])
