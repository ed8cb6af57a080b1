"""Names of the directories of runs, those of older versions among them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tdmpc2.support.files import read_json
from tdmpc2.support.names import safe_name


def run_directory(task: str, seed: int, exp_name: str | None) -> Path:
    """Choose the directory of a run that names none: ``logs/<task>/<seed>/<exp_name>``.

    Names are made safe for every system; a run that an older version began under the name as it is stays there.
    """
    name = exp_name or "default"
    as_typed = os.path.join("logs", task, str(seed), name)
    if os.path.exists(os.path.join(as_typed, "run.json")):
        return Path(as_typed)
    return Path("logs", safe_name(task), str(seed), safe_name(name))


def holds_run(directory: Path, **keys: Any) -> bool:
    """Tell if a directory holds a run whose record has these values of these keys."""
    path = directory / "run.json"
    if not path.exists():
        return False
    try:
        recorded = read_json(path)
    except ValueError:
        return False  # whose it is cannot be told
    return all(recorded.get(name) == value for name, value in keys.items())
