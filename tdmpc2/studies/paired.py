"""Finished evaluations compared in pairs of episodes of the same tasks and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tdmpc2.envs.registry import WHY_MIXED
from tdmpc2.play.evaluation import Evaluation, TaskResult, compare
from tdmpc2.play.protocols import difference
from tdmpc2.studies.blocks import Block, Heading, Paragraph, Table, as_markdown
from tdmpc2.support.csv_files import read_csv
from tdmpc2.support.entries import check_entries, record
from tdmpc2.support.files import directory_locked, json_text, read_json, write_text
from tdmpc2.support.intervals import Interval, bootstrap, format_interval, interquartile_mean, resampled_interval
from tdmpc2.support.text import cut, shown
from tdmpc2.tasks import listed

_COLUMNS = ["task", "seed", "return", "success"]
_RESULTS, _PROTOCOL = {"protocol": record()}, {"config": record().optional}
_AGAIN = "evaluate both with the same tasks, eval_seed and eval_episodes"
_CAPTION = """\
Differences of scores, each episode against the one of the same task and seed; in brackets 95 % bootstrap intervals over
these pairs, resampled within each task. There is none with one episode a task."""


@dataclass(frozen=True)
class Played:
    """A finished evaluation.

    Attributes:
        path: as it was named.
        result: its episodes, in the order of their tasks and seeds in the file.
        protocol: what ``results.json`` beside them says; empty without one.
    """

    path: Path
    result: Evaluation
    protocol: Mapping[str, Any]


class Estimate(NamedTuple):
    """A difference and its interval; None with one episode of a task."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class Pair:
    """An evaluation compared with the one that it is measured against.

    Attributes:
        first: the one that is measured against.
        second: of the same tasks and seeds, in the same order.
        score: second minus first of the score.
        interquartile_mean: the same of the interquartile mean of all episodes' scores.
        tasks: the same of the mean score of each task.
        settings: of the first, where they differ, in words; empty where nothing is known.
    """

    first: Played
    second: Played
    score: Estimate
    interquartile_mean: Estimate
    tasks: dict[str, Estimate]
    settings: str


def read_evaluation(path: Path) -> Played:
    """Read what an evaluation left.

    Args:
        path: its directory, or the ``results.csv`` in it.

    Raises:
        ValueError: there are no episodes, or a file is damaged; the message names it.
    """
    file = path / "results.csv" if path.is_dir() else path
    columns, rows = read_csv(file)
    if columns != _COLUMNS or not rows:
        raise ValueError(f"{path} has no episodes of an evaluation: name a directory with its results.csv")
    protocol: Mapping[str, Any] = {}
    if (about := file.with_name("results.json")).exists():
        protocol = check_entries(str(about), read_json(about), _RESULTS, others=True)["protocol"]
        check_entries(f"the protocol in {about}", protocol, _PROTOCOL, others=True)
    by_success = _scored_by_success(protocol)
    episodes: dict[str, dict[int, tuple[float, float]]] = {}
    for number, row in enumerate(rows, 2):
        of_task = episodes.setdefault(row["task"], {})
        try:
            seed, numbers = int(row["seed"]), (float(row["return"]), float(row["success"] or 0))
        except ValueError:
            raise ValueError(f"{file}, line {number}: {shown(row)} has a cell that is no number") from None
        if not np.isfinite(numbers).all():
            raise ValueError(f"{file}, line {number}: {shown(row)} has a number that is not finite")
        if seed in of_task:
            raise ValueError(f"{file}, line {number}: {cut(row['task'], 40)} has seed {seed} twice")
        of_task[seed] = numbers
    return Played(
        path,
        Evaluation(tuple(_task_result(task, found, task in by_success) for task, found in episodes.items())),
        protocol,
    )


def _scored_by_success(protocol: Mapping[str, Any]) -> set[str]:
    """Name the tasks that say themselves that they are scored by success."""
    config = protocol.get("config")
    specs = config.get("task_specs") if isinstance(config, Mapping) else None
    of_form = isinstance(specs, list) and all(isinstance(spec, Mapping) for spec in specs)
    return {str(spec.get("name")) for spec in specs or () if spec.get("success_score")} if of_form else set()


def _task_result(task: str, found: Mapping[int, tuple[float, float]], success_score: bool) -> TaskResult:
    returns, successes = zip(*found.values(), strict=True)
    return TaskResult(task, tuple(found), returns, successes, success_score)


def paired(first: Played, second: Played) -> Pair:
    """Compare an evaluation with the one that it is measured against.

    Raises:
        ValueError: they have different tasks or seeds; the message names them.
    """
    counts = {len(result.seeds) for result in first.result.tasks}
    if len(counts) > 1:  # the interquartile mean would weigh tasks by their episodes
        raise ValueError(
            f"{first.path} has {min(counts)} to {max(counts)} episodes a task, as an evaluation that was cut off: "
            "evaluate it again"
        )
    second = _in_order_of(first, second)
    score, interval = compare(second.result, first.result)
    scores = [
        np.stack([b.scores, a.scores], -1) for a, b in zip(first.result.tasks, second.result.tasks, strict=True)
    ]  # [episodes, 2] each
    tasks = {
        result.task: Estimate(float((pair[:, 0] - pair[:, 1]).mean()), bootstrap([pair[:, 0] - pair[:, 1]]))
        for result, pair in zip(first.result.tasks, scores, strict=True)
    }
    middle = float(_middle_difference([pair[None] for pair in scores])[0])
    settings = difference(first.protocol, second.protocol) if first.protocol and second.protocol else ""
    return Pair(
        first,
        second,
        Estimate(score, interval),
        Estimate(middle, resampled_interval(scores, _middle_difference)),
        tasks,
        settings,
    )


def _middle_difference(scores: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Difference of interquartile means, from pairs of scores of each task, [resamples, episodes, 2]."""
    means = interquartile_mean(np.moveaxis(np.concatenate(scores, 1), -1, 0))  # [2, resamples]
    return np.asarray(means[0] - means[1])


def _in_order_of(first: Played, second: Played) -> Played:
    """Bring the tasks and seeds of an evaluation into the order of another one.

    Raises:
        ValueError: they are others.
    """
    own = {result.task: result for result in second.result.tasks}
    wanted = [result.task for result in first.result.tasks]
    for absent, without, having in (
        ([task for task in wanted if task not in own], second, first),
        ([task for task in own if task not in wanted], first, second),
    ):
        if absent:
            raise ValueError(
                f"{without.path} has no episodes of {cut(listed(absent), 200)}, which {having.path} has: {_AGAIN}"
            )
    ordered = []
    for result in first.result.tasks:
        other = own[result.task]
        if set(other.seeds) != set(result.seeds):
            raise ValueError(
                f"{result.task} was played with seeds {_seeds(result)} in {first.path}, and with seeds "
                f"{_seeds(other)} in {second.path}: {_AGAIN}"
            )
        episodes = dict(zip(other.seeds, zip(other.returns, other.successes, strict=True), strict=True))
        found = {seed: episodes[seed] for seed in result.seeds}
        ordered.append(_task_result(result.task, found, result.success_score))
    return Played(second.path, Evaluation(tuple(ordered)), second.protocol)


def _seeds(result: TaskResult) -> str:
    return listed([str(seed) for seed in sorted(result.seeds)])


def compare_all(paths: Sequence[Path]) -> list[Pair]:
    """Compare each evaluation with the first one.

    Raises:
        ValueError: only one, or see :func:`read_evaluation` and :func:`paired`.
    """
    if len(paths) < 2:
        raise ValueError(f"paired=true compares at least two evaluations, and {paths[0]} is one: name another")
    first, *others = map(read_evaluation, paths)
    return [paired(first, other) for other in others]


def blocks_of(pair: Pair) -> list[Block]:
    """Compose the text of a comparison."""
    rows = [
        [a.task, str(len(a.seeds)), f"{a.scores.mean():.2f}", f"{b.scores.mean():.2f}", *_cells(pair.tasks[a.task])]
        for a, b in zip(pair.first.result.tasks, pair.second.result.tasks, strict=True)
    ]
    count = str(sum(len(result.seeds) for result in pair.first.result.tasks))
    means = [f"{played.result.normalized_score:.2f}" for played in (pair.first, pair.second)]
    middles = [
        f"{float(interquartile_mean(np.concatenate([task.scores for task in played.result.tasks]))):.2f}"
        for played in (pair.first, pair.second)
    ]
    said = [Paragraph(f"Of the first, where they differ: {pair.settings}.")] if pair.settings else []
    if pair.first.result.mixed:
        said.append(Paragraph(f"There is {WHY_MIXED}."))
    else:
        rows.append([pair.first.result.score_label, count, *means, *_cells(pair.score)])
        rows.append(["interquartile mean", count, *middles, *_cells(pair.interquartile_mean)])
    return [
        Heading(f"{pair.second.path} minus {pair.first.path}"),
        Table(["task", "pairs", "first", "second", "second - first", "95 % interval"], rows),
        *said,
    ]


def _cells(estimate: Estimate) -> list[str]:
    interval = format_interval(estimate.interval)
    if estimate.interval:
        interval = f"[{estimate.interval[0]:+.2f}, {estimate.interval[1]:+.2f}]"
    return [f"{estimate.value:+.2f}", interval]


def write_comparison(paths: Sequence[Path], out: Path | None, force: bool) -> list[str]:
    """Compare evaluations with the first one of them.

    Args:
        paths: directories of evaluations.
        out: directory of ``report.md`` and ``report.json``; None: nothing is written.
        force: replace these files.

    Returns:
        Lines to print: the tables, and what was written.

    Raises:
        ValueError: see :func:`compare_all`; one of the files exists and ``force`` is false, or the disk refused.
    """
    pairs = compare_all(paths)
    text = as_markdown([*(block for pair in pairs for block in blocks_of(pair)), Paragraph(_CAPTION)])
    if out is None:
        return [text]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"Could not write {out}: {error.strerror}. --out DIR writes elsewhere") from error
    files = [out / "report.md", out / "report.json"]
    with directory_locked(out, f"Another report is being written to {out}: wait for it, or --out DIR"):
        if not force and (existing := [str(path) for path in files if path.exists()]):
            raise ValueError(f"There is already {', '.join(existing)}: --force replaces, --out DIR writes elsewhere")
        write_text(files[0], text)
        write_text(files[1], json_text({"pairs": [_plain(pair) for pair in pairs]}, indent=1) + "\n")
    return [text, f"Report: {', '.join(map(str, files))}"]


def _plain(pair: Pair) -> dict[str, Any]:
    return {
        "first": str(pair.first.path),
        "second": str(pair.second.path),
        "settings": pair.settings,
        "score_label": pair.first.result.score_label,
        "score": None if pair.first.result.mixed else pair.score._asdict(),
        "interquartile_mean": None if pair.first.result.mixed else pair.interquartile_mean._asdict(),
        "tasks": {task: estimate._asdict() for task, estimate in pair.tasks.items()},
    }
