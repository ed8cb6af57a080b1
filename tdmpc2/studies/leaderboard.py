"""A leaderboard of MT30: public results and our own evaluations in one table, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc2.play.evaluation import Aggregate, aggregates
from tdmpc2.play.protocols import PLAN, budget_text, checkpoint_name, labels
from tdmpc2.studies.sources import SHORT, SOURCES, Source, column, find
from tdmpc2.support.entries import check_entries, record, text
from tdmpc2.support.files import read_json
from tdmpc2.support.intervals import Interval, bootstrap
from tdmpc2.support.text import shown
from tdmpc2.tasks import MT30

#: Tasks of MT30 that TD-MPC2 added to DMControl's; most methods report only the others.
ADDED = frozenset(
    ("walker-walk-backwards", "walker-run-backwards", "cheetah-run-backwards", "cheetah-run-front", "cheetah-run-back",
     "cheetah-jump", "hopper-hop-backwards", "reacher-three-easy", "reacher-three-hard", "cup-spin", "pendulum-spin")
)  # fmt: skip
#: Title -> tasks of each table.
TABLES: dict[str, tuple[str, ...]] = {
    "All 30 tasks": MT30,
    "The 19 tasks of DMControl itself": tuple(task for task in MT30 if task not in ADDED),
}


_PROTOCOL = {"config": record().optional, "checkpoint": text().optional}


@dataclass(frozen=True)
class Entry:
    """One row of the leaderboard: the scores of each of its tasks (return / 10) and how they came about.

    Attributes:
        name: method, or checkpoint of our own.
        planned: true if it plans, false if its policy acts.
        protocol: what it learned from, or what was played.
        parameters: of the model, if known.
        seconds: of an action in the evaluation, if known.
        scores: task -> scores [n] of its episodes, of its training seeds, or their mean alone.
        values: what the n scores are: ``episodes``, ``seeds``, or empty for a mean.
        own: true if it was measured here.
    """

    name: str
    planned: bool
    protocol: str
    parameters: float | None
    seconds: float | None
    scores: Mapping[str, NDArray[np.float64]]
    values: str
    own: bool = False

    def has(self, tasks: Sequence[str]) -> bool:
        """True if none of the tasks is missing."""
        return all(task in self.scores for task in tasks)


@dataclass(frozen=True)
class Summary:
    """An entry's numbers over some tasks: mean with its interval, interquartile mean, mean of the worst five."""

    entry: Entry
    mean: float
    interval: Interval | None
    others: tuple[Aggregate, ...]


@dataclass(frozen=True)
class Gathered:
    """All entries, the sources that were not there, and the files that each source was read from."""

    entries: tuple[Entry, ...]
    absent: tuple[Source, ...]
    files: Mapping[Source, tuple[Path, ...]]


def gather(evaluations: Sequence[Path], folders: Sequence[Path] = ()) -> Gathered:
    """Read our own evaluations and every public source that one of the folders has.

    Args:
        evaluations: directories that ``tdmpc2 evaluate`` left, with ``results.csv`` and ``results.json``.
        folders: of public results, the preferred first; the short files of the package come last.

    Raises:
        ValueError: a file cannot be read or is not of its form; the message names it.
    """
    entries, absent, files = _told_apart([own_entry(path) for path in evaluations], evaluations), [], {}
    for source in SOURCES:
        if (found := find(source, [*folders, SHORT])) is None:
            absent.append(source)
            continue
        scores = {task: np.array(values) / 10 for task, values in found.returns.items()}
        about = (source.method, source.planned, source.protocol, source.parameters, None)
        entries.append(Entry(*about, scores, found.values))
        files[source] = found.files
    return Gathered(tuple(entries), tuple(absent), files)


def _told_apart(entries: Sequence[Entry], directories: Sequence[Path]) -> list[Entry]:
    """Name evaluations of the same name and kind by what they differ in, such as the budget of their plans."""
    rows = [(entry.name, entry.planned) for entry in entries]
    found = list(entries)
    for row in {row for row in rows if rows.count(row) > 1}:
        own = [number for number, other in enumerate(rows) if other == row]
        protocols = [read_json(directories[number] / "results.json")["protocol"] for number in own]
        names = labels(protocols, [directories[number].name for number in own])
        for number, name in zip(own, names, strict=True):
            found[number] = replace(entries[number], name=name)
    return found


def own_entry(directory: Path) -> Entry:
    """Read an evaluation of our own, every episode of it.

    Raises:
        ValueError: it is no directory of one, or a file is damaged.
    """
    file, about = directory / "results.csv", read_json(directory / "results.json")
    protocol = about.get("protocol")
    if not isinstance(protocol, dict) or protocol.get("action") not in ("planner", "policy"):
        raise ValueError(f"{directory / 'results.json'} has no protocol of an evaluation: make it by `tdmpc2 evaluate`")
    origin = f"{directory / 'results.json'}: protocol"
    check_entries(origin, protocol, _PROTOCOL, others=True)
    if planned := protocol["action"] == "planner":
        check_entries(f"{origin}, config", _config(protocol), PLAN, others=True)
    returns = column("return")({"results.csv": file})
    if not returns:
        raise ValueError(f"{file} has no episodes of a task of MT30")
    counts = sorted({len(values) for values in returns.values()})
    few = "1 episode" if counts[0] == 1 else f"{counts[0]} episodes"
    episodes = f"{counts[0]} to {counts[-1]} episodes" if len(counts) > 1 else few
    noise = ", with exploration noise" if _config(protocol).get("eval_noise") is True else ""
    precision = protocol.get("precision")
    return Entry(
        name=checkpoint_name(str(protocol.get("checkpoint", directory.name))),
        planned=planned,
        protocol=f"here, {budget_text(protocol) + ', ' if planned else ''}{episodes} a task, {precision}{noise}",
        parameters=_positive(directory, about, "parameters"),
        seconds=_positive(directory, about, "seconds_per_action"),
        scores={task: np.array(values) / 10 for task, values in returns.items()},
        values="episodes",
        own=True,
    )


def _config(protocol: Mapping[str, Any]) -> Mapping[str, Any]:
    config = protocol.get("config")
    return config if isinstance(config, dict) else {}


def _positive(directory: Path, about: Mapping[str, Any], key: str) -> float | None:
    value = about.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{directory / 'results.json'}: {key}={shown(value)} must be a number above 0")
    return float(value)


def summaries(entries: Sequence[Entry], tasks: Sequence[str]) -> list[Summary]:
    """Summarise the entries that have all of some tasks, the best mean first."""
    found = []
    for entry in entries:
        if entry.has(tasks):
            scores = [entry.scores[task] for task in tasks]
            mean = float(np.mean([values.mean() for values in scores]))
            of_tasks = [values.mean(keepdims=True) for values in scores]  # sources have episodes, seeds or only these
            found.append(Summary(entry, mean, bootstrap(scores), aggregates(of_tasks)))
    return sorted(found, key=lambda summary: -summary.mean)


def last_of_each(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Every entry of our own, and of each other method the one that learned longest, which its sources list last."""
    last = {(entry.name, entry.planned): entry for entry in entries if not entry.own}
    yield from (entry for entry in entries if entry.own or last[entry.name, entry.planned] is entry)
