"""Print what offline data holds: files, sizes, memory, returns per task, ranges and wrong values."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tdmpc2.data.source import CHUNKS, open_source
from tdmpc2.data.tools.audit import SAMPLE, audit, describe
from tdmpc2.data.tools.figures import return_histograms
from tdmpc2.support.figures import figure_class, was_drawn_here
from tdmpc2.support.text import escaped

_PLACES = {"cuda": "GPU memory", "cpu": "RAM", "disk": "disk"}


def print_overview(
    directory: str, task: str | None, *, quick: bool = False, as_json: bool = False, figure: Path | None = None
) -> None:
    """Measure the data and print the result.

    Args:
        directory: an episode store or a directory of chunk files.
        task: task set of chunk files; None: what they say.
        quick: read a sample of the episodes.
        as_json: print one JSON object instead of text.
        figure: PNG to write histograms of the returns to; None: no histograms.

    Raises:
        ValueError: data that cannot be read.
    """
    if figure is not None and os.path.lexists(figure) and not was_drawn_here(figure):
        raise ValueError(f"figure={figure} exists and was not drawn by this program: name another file")
    if figure is not None and not _can_draw():
        figure = None
    source = open_source(directory, task)
    measured = audit(source, SAMPLE if quick else None)
    facts = describe(source, measured)
    if as_json:
        print(json.dumps({**facts, "figure": figure and str(figure)}, indent=1, allow_nan=False))
    else:
        parts = _header(facts), _table(facts), _findings(facts)
        print("\n\n".join("\n".join(map(escaped, part)) for part in parts))
    if figure:
        returns = {source.specs[index].name: values for index, values in measured.returns.items()}
        return_histograms(figure, returns, _title(facts))
        print(f"\nhistograms of the returns: {figure}", file=sys.stderr if as_json else sys.stdout)


def _can_draw() -> bool:
    try:
        figure_class()
    except ModuleNotFoundError as error:
        print(f"No histograms: {error}", file=sys.stderr)
        return False
    return True


def _title(facts: dict[str, Any]) -> str:
    sample = f", {facts['audited_episodes']:,} of them drawn" * (facts["audited_episodes"] < facts["episodes"])
    return f"{facts['task']}: returns of {facts['episodes']:,} episodes{sample}"


def _header(facts: dict[str, Any]) -> list[str]:
    memory = facts["memory"]
    lines = {
        "directory": facts["path"],
        "form": facts["form"],
        "task set": f"{facts['task']}, {len(facts['tasks'])} tasks",
        "dtype": facts["dtype"],
        "episodes": f"{facts['episodes']:,}",
        "rows": f"{facts['rows']:,}",
        "episode length": _lengths(facts),
        "observation, action": f"{facts['obs_dim']}, {facts['action_dim']}{' (padded)' * (len(facts['tasks']) > 1)}",
        "bytes on disk": f"{facts['bytes']:,}",
        "bytes free there": f"{facts['bytes_free']:,}",
    }
    for file in facts["files"]:
        count = "" if file["episodes"] is None else f", {file['episodes']:,} episodes"
        lines[f"  {file['name']}"] = f"{file['bytes']:,} bytes{count}"
    if facts["store"]:
        lines["store made of them"] = f"{facts['store']}, to be inspected by this name"
    for dtype in ("float32", "float16"):
        fits = [
            f"{'fits' if place in memory[dtype]['fits'] else 'does not fit'} into the {_PLACES[place]} free now "
            f"({free / 1e9:.1f} GB)"
            for place, free in memory["free"].items()
        ]
        lines[f"in memory, {dtype}"] = f"{memory[dtype]['bytes']:,} bytes: {'; '.join(fits)}"
    stored = memory[facts["dtype"]]["auto"]
    importing = " (chunk files are imported into a store for that)" * (stored == "disk" and facts["form"] == CHUNKS)
    lines["data_device=auto"] = (
        f"{_PLACES[stored]}{importing}. The rule: GPU memory if the episodes fit and leave room for training, "
        "else RAM if they do, else read from disk as needed"
    )
    return [f"{label:22}{text}" for label, text in lines.items()]


def _lengths(facts: dict[str, Any]) -> str:
    if facts["shortest"] == facts["episode_length"] and not facts["terminated"]:
        return f"{facts['episode_length']:,} steps"
    mean = facts["rows"] / facts["episodes"] - 1
    return (
        f"{facts['shortest']:,} to {facts['episode_length']:,} steps, {mean:,.1f} on average; {facts['terminated']:,} "
        f"episodes terminated"
    )


def _table(facts: dict[str, Any]) -> list[str]:
    marks = ("mean", "min", "p10", "median", "p90", "max")
    shown = [task for task in facts["tasks"] if task["episodes"]]
    width = max(len(task["name"]) for task in shown)
    head = f"{'id':>3}  {'task':{width}} {'episodes':>9}" + "".join(
        f"{mark:>9}" for mark in ("mean", "min", "10 %", "median", "90 %", "max")
    )
    lines = ["returns"]
    if facts["audited_episodes"] < facts["episodes"]:
        lines = [f"returns of a sample of {facts['audited_episodes']:,} evenly spaced episodes"]
    lines.append(head)
    for task in shown:
        values = task["return"]
        cells = "".join(f"{values[mark]:9.1f}" if values else f"{'-':>9}" for mark in marks)
        lines.append(f"{task['id']:3}  {task['name']:{width}} {task['episodes']:9,}{cells}")
    if absent := len(facts["tasks"]) - len(shown):
        lines.append(f"     {absent} other task{'s' * (absent > 1)} of {facts['task']} without episodes")
    return lines


def _findings(facts: dict[str, Any]) -> list[str]:
    audited = facts["audited_episodes"]
    sample = ", a sample" * (audited < facts["episodes"])
    lines = [f"values of {audited:,} episodes{sample}"]
    for name, bounds in facts["ranges"].items():
        text = f"{bounds[0]:.6g} to {bounds[1]:.6g}" if bounds else "no finite value"
        lines.append(f"{'range of ' + name:26}{text}")
    for kind, finding in facts["findings"].items():
        text = "none"
        if finding["values"]:
            text = f"{finding['values']:,} in {finding['episodes']:,} episodes; first: {finding['first']}"
        lines.append(f"{kind:26}{text}")
    lines.append(
        f"{'row 0 not NaN':26}{facts['filler_not_nan']:,} episodes; harmless, its action and reward are not used"
    )
    return lines + facts["warnings"]
