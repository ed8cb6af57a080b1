"""Public results on MT30: a row for each file that others publish, where it is and how it is read.

The short files in ``public/`` are what licences allow us to give on; a downloaded file, which has more, comes first.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmpc2.support.files import read_json
from tdmpc2.support.reading import read_text
from tdmpc2.support.text import shown
from tdmpc2.tasks import MT30

#: Folder of the short files that come with the package.
SHORT = Path(__file__).resolve().parent / "public"
#: Where the files of repositories are; ``{owner/name}/{branch}/{path}`` follows.
SITE = "https://raw.githubusercontent.com/"
Returns = dict[str, list[float]]
_STEPS = (100_000, 200_000, 500_000, 1_000_000)


@dataclass(frozen=True)
class Reading:
    """One way to get a row's numbers.

    Attributes:
        file: its name below the folder of results; ``{task}`` stands for every task of MT30.
        parse: from the text of each file, by name, to the returns of each task.
        values: of what a task's several values are: ``episodes`` or ``seeds``; empty where there is one mean alone.
        url: where it can be fetched, below :data:`SITE`; empty for one that cannot.
    """

    file: str
    parse: Callable[[Mapping[str, Path]], Returns]
    values: str
    url: str = ""

    def files(self) -> dict[str, str]:
        """Name of each file -> its address below :data:`SITE`."""
        tasks = MT30 if "{task}" in self.file else ("",)
        return {self.file.format(task=task): self.url.format(task=task) for task in tasks}


@dataclass(frozen=True)
class Source:
    """A row of the leaderboard that others measured.

    Attributes:
        method: name of the method.
        planned: true if the agent plans, false if its policy acts.
        protocol: data and steps that it learned from.
        parameters: trainable ones of the model; None if the source does not say.
        origin: repository, ``owner/name``.
        licence: of the repository.
        readings: ways to get the numbers, the most detailed first.
    """

    method: str
    planned: bool
    protocol: str
    parameters: float | None
    origin: str
    licence: str
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Found:
    """The numbers of a source: returns of each task, of what they are several, and the files that had them."""

    returns: Returns
    values: str
    files: tuple[Path, ...]


def find(source: Source, folders: Sequence[Path]) -> Found | None:
    """Read a source's numbers from the first folder that has all files of a reading; None if none has.

    Args:
        source: the row.
        folders: of results, the preferred first.

    Raises:
        ValueError: a file cannot be read or is not of its form; the message names it.
    """
    for reading in source.readings:
        for folder in folders:
            files = {name: folder / name for name in reading.files()}
            if all(path.is_file() for path in files.values()):
                returns = reading.parse(files)
                _check(returns, next(iter(files.values())))
                return Found(returns, reading.values, tuple(files.values()))
    return None


def _check(returns: Returns, file: Path) -> None:
    if not returns:
        raise ValueError(f"{file} has no returns of a task of MT30 at the step that is asked for")
    for task, values in returns.items():
        if wrong := [value for value in values if not -1.0 <= value <= 1001.0]:
            raise ValueError(f"{file}: a return of {wrong[0]:g} for '{task}'; DMControl's are from 0 to 1,000")


def curves(method: str, step: int) -> Callable[[Mapping[str, Path]], Returns]:
    """Read one file of all curves: ``method,task,metric,env_step,seed,value``; a value for each seed."""

    def parse(files: Mapping[str, Path]) -> Returns:
        (path,) = files.values()
        found: Returns = defaultdict(list)
        for row in _rows(path, ("method", "task", "metric", "env_step", "value")):
            wanted = row["method"] == method and row["metric"] == "return" and row["task"] in MT30
            if wanted and _number(path, row["env_step"]) == step:
                found[row["task"]].append(_number(path, row["value"]))
        return dict(found)

    return parse


def returns_by_step(method: str, task: str, path: Path) -> dict[int, list[float]]:
    """Read a method's returns of one task from such a file: control step -> a value for each seed."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in _rows(path, ("method", "task", "metric", "env_step", "value")):
        if (row["method"], row["task"], row["metric"]) == (method, task, "return"):
            found[int(_number(path, row["env_step"]))].append(_number(path, row["value"]))
    return dict(found)


def curve_files(step: int) -> Callable[[Mapping[str, Path]], Returns]:
    """Read a file for each task, ``step,reward,seed``; a value for each seed."""

    def parse(files: Mapping[str, Path]) -> Returns:
        found: Returns = defaultdict(list)
        for name, path in files.items():
            for row in _rows(path, ("step", "reward", "seed")):
                if _number(path, row["step"]) == step:
                    found[Path(name).stem].append(_number(path, row["reward"]))
        return dict(found)

    return parse


def column(name: str) -> Callable[[Mapping[str, Path]], Returns]:
    """Read one column of a file that also has a column ``task``; rows of one task are its several values."""

    def parse(files: Mapping[str, Path]) -> Returns:
        (path,) = files.values()
        found: Returns = defaultdict(list)
        for row in _rows(path, ("task", name)):
            if row["task"] in MT30 and row[name].strip():
                found[row["task"]].append(_number(path, row[name]))
        return dict(found)

    return parse


def means_by_step(method: str, step: int) -> Callable[[Mapping[str, Path]], Returns]:
    """Read JSON, ``{method: {task: {"steps": [...], "values": [...]}}}``; one mean for each task."""

    def parse(files: Mapping[str, Path]) -> Returns:
        (path,) = files.values()
        tasks = read_json(path).get(method)
        found: Returns = {}
        for task, curve in tasks.items() if isinstance(tasks, dict) else ():
            try:
                if task in MT30 and step in curve["steps"]:
                    found[task] = [_number(path, curve["values"][curve["steps"].index(step)])]
            except (TypeError, KeyError, IndexError) as error:
                raise ValueError(f"{path}: the curve of '{shown(task)}' has no steps and values") from error
        return found

    return parse


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV file with at least these columns; a row that is too short is an error."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} has no column '{missing[0]}', so it is no file of this source")
        for row in reader:
            if any(row[name] is None for name in columns):
                raise ValueError(f"{path}, line {reader.line_num}: fewer cells than columns")
            yield row
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV file [{error}]") from error


def _number(path: Path, cell: Any) -> float:
    try:
        number = float(cell)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{path}: {shown(cell)} is no number")
    return number


def _single(method: str, name: str, parameters: float | None, planned: bool, step: int) -> Source:
    repository = "nicklashansen/tdmpc2"
    file = f"{repository}/results/{name}/{{task}}.csv"
    url = f"{repository}/main/results/{name}/{{task}}.csv"
    readings = (
        Reading(file, curve_files(step), "seeds", url),
        Reading("single_task_curves.csv", curves(name, step), "seeds"),
    )
    protocol = f"a model a task, {step:,} control steps"
    return Source(method, planned, protocol, parameters, repository, "MIT", readings)


def _bmpc(step: int) -> Source:
    repository, path = "wertyuilife2/bmpc", "results/data_dmc_all_1M.json"
    reading = Reading(f"{repository}/{path}", means_by_step("BMPC", step), "", f"{repository}/main/{path}")
    return Source("BMPC", True, f"a model a task, {step:,} control steps", None, repository, "MIT", (reading,))


def _pwm(method: str, planned: bool, parameters: float, file: str, values: str, own: str) -> Source:
    repository, path = "imgeorgiev/PWM", f"results/data/{file}"
    readings = (
        Reading(f"{repository}/{path}", column("episode_reward"), values, f"{repository}/main/{path}"),
        Reading("mt30_per_task.csv", column(own), ""),
    )
    protocol = "one model, offline" if planned else "one model, offline; then a policy a task"
    return Source(method, planned, protocol, parameters, repository, "MIT", readings)


#: Every source that is known; a new one is a row here.
SOURCES: tuple[Source, ...] = (
    _pwm("TD-MPC2 48M", True, 48e6, "tdmpc2_mt30_scores.csv", "episodes", "tdmpc2_48M_planned"),
    _pwm("PWM", False, 48e6, "mt30_results.csv", "", "pwm_policy"),
    *(_single("TD-MPC2 5M", "tdmpc2", 5e6, True, step) for step in _STEPS),
    *(_single("TD-MPC", "tdmpc", None, True, step) for step in _STEPS),
    *(_single("DreamerV3", "dreamerv3", None, False, step) for step in _STEPS),
    *(_single("SAC", "sac", None, False, step) for step in _STEPS),
    *(_bmpc(step) for step in _STEPS),
)
