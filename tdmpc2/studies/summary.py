"""A study in numbers: scores with intervals over random seeds, and their differences to runs without a teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tdmpc2.studies.labels import short_labels
from tdmpc2.studies.runs import Group, Study
from tdmpc2.support.intervals import difference_interval, mean_interval


def rows_of(study: Study) -> list[dict[str, Any]]:
    """Summarise every group of a study as a plain dict.

    Returns:
        For each group, those without a teacher first: ``name``, its short ``label``, ``distilled``, ``values`` (the
        keys in which groups differ), ``runs``, ``seeds``, ``paths``, ``steps``, ``score_label``, ``scores`` (one per
        run), ``score``, ``score_step`` (of the evaluation that they are of), ``interval``, ``best``, ``control`` (name
        of the group it is compared with, or None), ``is_control``, ``minus_control`` with its interval, ``losses``,
        held-out errors, ``returns`` by task and ``hours``.
    """
    labels = short_labels([group.name for group in study.groups])
    controls = {group.name: study.control_of(group) for group in study.groups}
    used = {control.name for group in study.groups if group.distilled and (control := controls[group.name])}
    return [
        {"label": labels[group.name], **_row(group, controls[group.name], group.name in used)} for group in study.groups
    ]


def _row(group: Group, control: Group | None, is_control: bool) -> dict[str, Any]:
    runs, scores = group.runs, group.scores
    heldout = _columns(_heldout(group))
    row: dict[str, Any] = {
        "name": group.name,
        "distilled": group.distilled,
        "values": group.values,
        "runs": len(runs),
        "seeds": [run.seed for run in runs],
        "paths": [str(run.path) for run in runs],
        "steps": runs[0].config["steps"],
        "score_label": runs[0].score_label,
        "scores": scores,
        "score": _mean(scores),
        "score_step": group.score_step if scores else None,
        "interval": mean_interval(scores),
        "best": _mean([max(run.learned.values()) for run in runs if run.learned]) if scores else None,
        "control": None if control is None else control.name,
        "is_control": is_control,
        "minus_control": None,
        "minus_control_interval": None,
        "losses": _means([{k: v for k, v in run.losses.items() if k.endswith("_loss")} for run in runs]),
        "heldout": _means(_heldout(group)),
        "heldout_runs": heldout,
        "heldout_interval": {name: mean_interval(values) for name, values in heldout.items()},
        "heldout_minus_control": {},
        "returns": _means([run.returns for run in runs]),
        "hours": _mean([run.seconds / 3600 for run in runs if run.seconds is not None]),
    }
    if control is None or control is group:
        return row
    if scores and (base := control.scores) and row["score_step"] == control.score_step is not None:
        row["minus_control"] = float(np.mean(scores) - np.mean(base))
        row["minus_control_interval"] = difference_interval(scores, base)
    comparable = bool(heldout) and _protocol(group) == _protocol(control)
    others = _columns(_heldout(control)) if comparable else {}
    for name in heldout.keys() & others.keys():
        difference = float(np.mean(heldout[name]) - np.mean(others[name]))
        row["heldout_minus_control"][name] = (difference, difference_interval(heldout[name], others[name]))
    return row


def _heldout(group: Group) -> list[dict[str, float]]:
    """Held-out errors of the runs in which they are those of the last step, all measured alike."""
    own = [run.heldout for run in group.runs if run.heldout.get("step") == run.step]
    return [found.get("errors", {}) for found in own if found.get("protocol") == own[0].get("protocol")]


def _protocol(group: Group) -> Any:
    return next((run.heldout.get("protocol") for run in group.runs if run.heldout.get("step") == run.step), None)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Average each number over the dicts that have it."""
    return {name: float(np.mean(values)) for name, values in _columns(rows).items()}


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Collect the values of each number."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row[name] for row in rows if name in row and math.isfinite(row[name])] for name in names}
    return {name: values for name, values in columns.items() if values}
