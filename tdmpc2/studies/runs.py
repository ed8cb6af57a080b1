"""A study: runs read from their directories, and grouped by what they differ in apart from the seed."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tdmpc2.config import UNDECISIVE, as_typed, distillation_terms, from_record
from tdmpc2.envs.registry import MIXED, SCORE_RULES, score_label
from tdmpc2.studies.error_files import error_file
from tdmpc2.support.csv_files import read_csv
from tdmpc2.support.entries import LARGEST, check_entries, nothing_or, number, record, table_of, whole
from tdmpc2.support.files import read_json
from tdmpc2.support.text import cut
from tdmpc2.tracking.curves import read_curves
from tdmpc2.training.evaluations import factor_between, read_scores
from tdmpc2.training.run_dir import step_of
from tdmpc2.training.run_record import MADE, read_record, tells_content

#: Entries of run.json that neither weights nor scores depend on.
_IGNORED = UNDECISIVE | {"task_specs"}
_TEACHER = "teacher_sha256"
#: Entries of ``heldout.json``.
_HELDOUT = {"errors": table_of(number()), "step": nothing_or(whole()).optional, "protocol": record().optional}


@dataclass(frozen=True)
class Run:
    """A run, as its directory describes it.

    Attributes:
        path: the directory.
        config: its ``run.json``: every key, ``teacher_sha256`` and ``data``.
        step: the newest step on record.
        scores: score by step.
        score_label: name of the score, which tells its scale (:func:`~tdmpc2.envs.registry.score_label`).
        returns: mean return by task, of the last evaluation.
        losses: last row of ``train.csv``.
        heldout: its ``heldout.json``, or empty.
        seconds: time between first and last step, with evaluations; None if unknown.
        remarks: what of it is left out, and why.
    """

    path: Path
    config: dict[str, Any]
    step: int
    scores: dict[int, float]
    score_label: str
    returns: dict[str, float]
    losses: dict[str, float]
    heldout: dict[str, Any]
    seconds: float | None
    remarks: tuple[str, ...] = ()
    unscored: tuple[int, ...] = ()

    @property
    def seed(self) -> int:
        """Its random seed."""
        return int(self.config["seed"])

    @property
    def finished(self) -> bool:
        """True if all steps are taken and an evaluation that is due at the last one has been made.

        Several environments take their steps together, and the last ones may lead beyond ``steps``.
        """
        steps, every = self.config["steps"], self.config["eval_freq"]
        evaluated = max([*self.scores, *self.unscored], default=0)
        return bool(self.step >= steps and (not every or steps % every or evaluated >= steps))

    @property
    def learned(self) -> dict[int, float]:
        """Scores by step, without that of step 0: online, it is of what the run began with."""
        return {step: score for step, score in self.scores.items() if step}

    @property
    def distilled(self) -> bool:
        """True if a teacher had any influence: there was one, and one of its targets has a weight above 0."""
        terms = distillation_terms(self.config["distillation_targets"], self.config["distillation_weight"])
        return self.config[_TEACHER] is not None and any(weight > 0 for weight in terms.values())

    @cached_property
    def budget(self) -> dict[str, Any]:
        """All that the result depends on, but for seed, teacher, distillation and keys that follow from others."""
        ignored = _IGNORED if tells_content(self.config["data"] or {}) else _IGNORED - {"data_dir"}
        ignored |= from_record(self.config).following()
        return {
            key: value
            for key, value in sorted(self.config.items())
            if key not in ignored | {_TEACHER, MADE} and not key.startswith("distillation")
        }

    @cached_property
    def distillation(self) -> dict[str, Any]:
        """Teacher and what is distilled. Without influence of a teacher only whether there was one."""
        if not self.distilled:
            return {_TEACHER: self.config[_TEACHER] and "of weight 0"}
        names = [key for key in sorted(self.config) if key.startswith("distillation") and key not in _IGNORED]
        columns = self.config.get(MADE, {}).items()
        made = {f"{column}.{key}": value for column, settings in columns for key, value in settings.items()}
        return {_TEACHER: self.config[_TEACHER], **{key: self.config[key] for key in names}, **made}


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        name: what tells them from the other groups.
        runs: finished ones, in the order of their seeds.
        values: the keys in which the groups differ, and this group's values.
    """

    name: str
    runs: tuple[Run, ...]
    values: dict[str, Any]

    @property
    def distilled(self) -> bool:
        """See :attr:`Run.distilled`."""
        return self.runs[0].distilled

    @property
    def scores(self) -> list[float]:
        """Score of each run that was evaluated while learning, at :attr:`score_step`, or else the last of each.

        There is none where tasks are on different scales.
        """
        step = self.score_step
        evaluated = [run.learned for run in self.runs if run.learned and run.score_label != MIXED]
        return [scores[max(scores) if step is None else step] for scores in evaluated]

    @property
    def score_step(self) -> int | None:
        """The newest step at which all runs that were evaluated while learning were evaluated; None: there is none."""
        steps = [set(run.learned) for run in self.runs if run.learned]
        return max(set.intersection(*steps), default=None) if steps else None


@dataclass(frozen=True)
class Study:
    """All runs under some paths.

    Attributes:
        groups: the finished runs; those without a teacher first.
        unfinished: runs that have not reached their last step.
        left_out: why a directory is in none of them, a line each.
    """

    groups: tuple[Group, ...]
    unfinished: tuple[Run, ...]
    left_out: tuple[str, ...]

    def control_of(self, group: Group) -> Group | None:
        """Find the group without a teacher and with the same budget; one that never had a teacher is preferred.

        Of groups with scores it must have some, too.
        """
        equal = [
            other
            for other in self.groups
            if not other.distilled
            and other.runs[0].budget == group.runs[0].budget
            and (other.scores or not group.scores)
        ]
        return min(equal, key=lambda other: other.runs[0].config[_TEACHER] is not None, default=None)


def read_study(paths: Iterable[Path]) -> Study:
    """Read every run directory under some paths.

    Raises:
        ValueError: there is no run, or a path does not exist.
    """
    paths = list(paths)
    if missing := [str(path) for path in paths if not path.exists()]:
        raise ValueError(f"{', '.join(missing)} does not exist: name directories of runs, such as logs/mt30")
    found = {file.parent.resolve(): file.parent for path in paths for file in sorted(path.rglob("run.json"))}
    runs: list[Run] = []
    left_out: list[str] = []
    for directory in found.values():
        try:
            run = _checked(read_run(directory))
        except Exception as error:  # whatever is wrong with one run, the others are reported
            named = "" if str(directory) in str(error) else f"{directory}: "
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            left_out.append(f"{named}{kind}{cut(str(error), 480)}")
        else:
            runs.append(run)
            left_out += run.remarks
    if not runs:
        reasons = "".join(f"\n  {line}" for line in left_out)
        raise ValueError(f"No run that can be read under {', '.join(map(str, paths))} (run.json){reasons}")
    unfinished = tuple(run for run in runs if not run.finished)
    unique: dict[str, Run] = {}
    for run in sorted((run for run in runs if run.finished), key=lambda run: (run.seed, str(run.path))):
        first = unique.setdefault(json.dumps([run.budget, run.distillation, run.seed]), run)
        if first is not run:
            left_out.append(f"{run.path} repeats {first.path}: same settings and seed")
    return Study(_groups(list(unique.values())), unfinished, tuple(left_out))


def _checked(run: Run) -> Run:
    """The run, everything that a report derives from its files having been tried."""
    read_curves(run.path)
    json.dumps([run.budget, run.distillation, run.seed, run.finished, run.heldout], allow_nan=True)
    return run


def read_run(path: Path) -> Run:
    """Read one run directory.

    Raises:
        ValueError: a file is damaged; the message names it.
    """
    try:
        config = read_record(path / "run.json")
    except ValueError as error:
        text = str(error).removeprefix(f"{path / 'run.json'} ").removeprefix("is damaged ")
        raise ValueError(f"{path / 'run.json'} is damaged [{text}]") from error
    evaluated = _read_numbers(path / "eval.csv")
    played = from_record(config)
    label = score_label(played.task_specs[task_id] for task_id in played.task_ids)
    scored = read_scores(path, label)
    logged = _logged_scores(evaluated, label) | scored
    known = {step: score for step, score in logged.items() if math.isfinite(score)}
    if logged and max(logged) not in known and max(logged) not in scored:  # where it is, an environment had failed
        file = path / ("evaluations.json" if (path / "evaluations.json").exists() else "eval.csv")
        raise ValueError(f"{file} is damaged [the score of its last evaluation, step {max(logged):,}, is not finite]")
    missing = sorted(logged.keys() - known.keys())
    remarks = tuple(f"{path}: the score of step {step:,}, which is not a finite number" for step in missing)
    train, speed = _read_numbers(path / "train.csv"), _read_numbers(path / "speed.csv")
    tasks = read_csv(path / "eval_tasks.csv")[1]
    try:
        last = max((int(row["step"]) for row in tasks), default=0)
        returns = {row["task"]: float(row["return"]) for row in tasks if int(row["step"]) == last > 0}
        returns = {task: value for task, value in returns.items() if math.isfinite(value)}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path / 'eval_tasks.csv'} is damaged [{type(error).__name__}: {error}]") from error
    return Run(
        path=path,
        config=config,
        step=max([0, *known, *(int(row["step"]) for row in train), step_of(path / "model.pt") or 0]),
        scores=known,
        score_label=label,
        returns=returns,
        losses=train[-1] if train else {},
        heldout=_heldout(path / ("ema.pt" if config.get("eval_weights") == "ema" else "model.pt")),
        seconds=sum(row.get("seconds", 0.0) for row in speed) if speed else None,
        remarks=remarks,
        unscored=tuple(missing),
    )


def _heldout(checkpoint: Path) -> dict[str, Any]:
    """Read the errors of the file whose scores are the run's."""
    path = error_file(checkpoint)
    found = check_entries(str(path), found, _HELDOUT, others=True) if (found := read_json(path, {})) else {}
    name = checkpoint.name
    return found if found.get("checkpoint", name) == name else {}  # older ones may be of another file


def _logged_scores(rows: Iterable[Mapping[str, float]], label: str) -> dict[int, float]:
    """Scores in ``eval.csv`` by step, on the scale of ``label``."""
    scores: dict[int, float] = {}
    for logged in (*(rule.label for rule in SCORE_RULES.values()), MIXED):
        name, factor = logged.replace(" ", "_"), factor_between(logged, label)
        if factor is not None:
            scores |= {int(row["step"]): factor * row[name] for row in rows if name in row}
    return scores


def _read_numbers(path: Path) -> list[dict[str, float]]:
    """Rows of a CSV file, without empty cells; none if it does not exist."""
    rows = []
    for line, row in enumerate(read_csv(path)[1], 2):
        try:
            values = {name: float(text) for name, text in row.items() if text}
            step = int(row["step"]) if row["step"].isdecimal() else values["step"]
            if not 0 <= step < LARGEST:
                raise ValueError(f"step {step} is not a number of updates")
            rows.append(values | {"step": float(step)})
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is damaged [line {line}, {type(error).__name__}: {cut(str(error))}]") from error
    return rows


def _groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(json.dumps([run.budget, run.distillation]), []).append(run)
    firsts = [group[0] for group in members.values()]
    differing = _differing([run.budget for run in firsts]) | _differing(
        [run.distillation for run in firsts if run.distilled]
    )
    groups = []
    for own in members.values():
        settings = {**own[0].budget, **(own[0].distillation if own[0].distilled else {})}
        values = {key: settings[key] for key in sorted(differing & settings.keys())}
        groups.append(Group(_name(own[0], values), tuple(own), values))
    shared = {name for name, count in Counter(group.name for group in groups).items() if count > 1}
    groups = [
        replace(group, name=f"{group.name} ({_digest(group)})") if group.name in shared else group for group in groups
    ]
    return tuple(sorted(groups, key=lambda g: (g.distilled, [_sortable(value) for value in g.values.values()], g.name)))


def _digest(group: Group) -> str:
    """Tell apart groups of the same name: data of one directory, for example, of which there were more later."""
    return hashlib.sha256(json.dumps(group.values, sort_keys=True).encode()).hexdigest()[:6]


def _differing(settings: Sequence[Mapping[str, Any]]) -> set[str]:
    names = {name for one in settings for name in one}
    return {name for name in names if len({json.dumps(one.get(name)) for one in settings}) > 1}


def _name(run: Run, values: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in values.items() if key not in (_TEACHER, "data", "data_dir")}
    if run.distilled and not any(key.startswith("distillation") for key in shown):
        shown["distillation_weight"] = run.config["distillation_weight"]
    parts = [f"{key}={as_typed(value)}" for key, value in shown.items()]
    if _TEACHER in values and run.distilled:
        parts.append(f"teacher {run.config[_TEACHER][:8]}")
    if {"data", "data_dir"} & values.keys():
        parts.append(f"data {run.config.get('demonstrations') or run.config['data_dir']}")
    if not run.distilled:
        parts.insert(0, "no teacher" if run.config[_TEACHER] is None else "no teacher (one of weight 0)")
    return ", ".join(parts)


def _sortable(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, (int, float))
    return not number, float(value) if number else 0.0, "" if number else json.dumps(value)
