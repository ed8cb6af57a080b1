"""Scores of a run's evaluations, ``evaluations.json`` in its directory: score by step, and the scale they are on.

The scale is the score's name (:func:`tdmpc2.envs.registry.score_label`), under the key ``score``. A file without that
key has normalised scores: version 0.1.0 wrote none, and recorded a tenth of the return where a score now is the return.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tdmpc2.envs.registry import MIXED, SCORE_RULES
from tdmpc2.support.csv_files import read_csv, write_csv
from tdmpc2.support.entries import LARGEST, whole
from tdmpc2.support.files import json_text, read_json, write_text
from tdmpc2.support.text import cut, shown

NAME = "evaluations.json"
_STEP = re.compile(r"[0-9]{1,15}")
_LABEL = "score"  # key of the file
_NORMALIZED, _RETURN = SCORE_RULES["return/10"].label, SCORE_RULES["return"].label
_OLD_COLUMN, _COLUMN = _NORMALIZED.replace(" ", "_"), _RETURN.replace(" ", "_")
_PER_SCORE = 10  # returns in a normalised score


def read_scores(run_dir: Path, label: str) -> dict[int, float]:
    """Read all scores of a run by step, on the scale of ``label``; scores that cannot be brought to it are left out.

    An evaluation that had no finite score is NaN here and null in the file.

    Raises:
        ValueError: the file is damaged.
    """
    path = run_dir / NAME
    advice = "delete it to lose the best score so far, not the run"
    try:
        content: dict[str, Any] = dict(read_json(path, {}))
    except ValueError as error:
        raise ValueError(f"{error}: {advice}") from error
    recorded = content.pop(_LABEL, _NORMALIZED)
    if not isinstance(recorded, str):
        raise ValueError(f"{path} is damaged [{_LABEL}: {shown(recorded)}]: {advice}")
    factor = factor_between(recorded, label)
    for step, score in content.items():
        if not _STEP.fullmatch(step) or not (score is None or type(score) is float or whole(-LARGEST).allows(score)):
            raise ValueError(f"{path} is damaged [{cut(step, 40)}: {shown(score)}]: {advice}")
    if factor is None:
        return {}
    return {int(step): math.nan if score is None else factor * float(score) for step, score in content.items()}


def write_scores(run_dir: Path, scores: Mapping[int, float], label: str) -> None:
    """Replace the file.

    Raises:
        ValueError: the disk refused.
    """
    scale = {} if label == _NORMALIZED else {_LABEL: label}
    write_text(run_dir / NAME, json_text({**scale, **scores}, indent=1) + "\n")


def factor_between(recorded: str, wanted: str) -> float | None:
    """Return the factor that converts scores of one scale into another; None if there is no such factor."""
    if recorded == wanted:
        return 1
    if (recorded, wanted) == (_RETURN, MIXED):
        return 1  # as it was called before it had a name of its own
    return _PER_SCORE if (recorded, wanted) == (_NORMALIZED, _RETURN) else None


def rename_score(run_dir: Path, label: str) -> None:
    """Bring ``eval.csv`` of a run that version 0.1.0 began to the score of today, so that its curve is one curve.

    Raises:
        ValueError: the file is damaged, or the disk refused.
    """
    path = run_dir / "eval.csv"
    columns, rows = read_csv(path)
    if label != _RETURN or _OLD_COLUMN not in columns:
        return
    try:
        renamed = [_renamed(row) for row in rows]
    except ValueError as error:
        raise ValueError(f"{path} is damaged [{error}]") from error
    names = dict.fromkeys(_COLUMN if name == _OLD_COLUMN else name for name in columns)
    write_csv(path, list(names), renamed)


def _renamed(row: Mapping[str, str]) -> dict[str, str]:
    """Multiply the normalised score and its interval; a row that has none is of today."""
    rest = {name: text for name, text in row.items() if name != _OLD_COLUMN}
    if not row[_OLD_COLUMN]:
        return rest
    scaled = {name: rest[name] for name in ("low", "high") if rest.get(name)} | {_COLUMN: row[_OLD_COLUMN]}
    return rest | {name: f"{_PER_SCORE * float(text):.12g}" for name, text in scaled.items()}
