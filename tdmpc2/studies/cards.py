"""Cards of checkpoints, gathered from what runs, evaluations and held-out measurements left behind."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tdmpc2.checkpoints.card import FORMAT, NAME, check_card
from tdmpc2.checkpoints.files import Checkpoint, file_sha256, load_file
from tdmpc2.config import KEYS, UNDECISIVE, Config, as_typed, from_record
from tdmpc2.data.placement import data_record
from tdmpc2.data.source import CHUNKS, find_form, open_source
from tdmpc2.play.protocols import PLAN, plan_text
from tdmpc2.studies.runs import Run, read_run
from tdmpc2.support.entries import (
    SHA256,
    check_entries,
    flag,
    list_of,
    nothing_or,
    number,
    one_of,
    record,
    text,
    whole,
)
from tdmpc2.support.files import json_text, read_json
from tdmpc2.support.text import cut
from tdmpc2.support.version import version
from tdmpc2.tracking.curves import wall_seconds
from tdmpc2.training.run_record import share_episodes

_PAIR = nothing_or(list_of(number(), least=2))
#: Entries of ``results.json`` that a card is made of, and of its parts.
_RESULTS = {
    "normalized_score": nothing_or(number()),
    "score_label": text(),
    "interval": _PAIR,
    "protocol": record(),
    "tasks": list_of(record(), least=1),
}
_PROTOCOL = {
    "sha256": SHA256,
    "action": one_of(("planner", "policy")),
    "precision": text(),
    "config": record(),
}
_SETTINGS = {
    "eval_episodes": whole(1),
    "eval_seed": whole(),
    "eval_noise": flag(),
    **PLAN,
}
_TASK = {"task": text(), "return": nothing_or(number()), "return_interval": _PAIR}
#: Entries of ``heldout.json``.
_HELDOUT = {"sha256": SHA256, "protocol": record(), "trust": record()}


def new_card(
    checkpoint: Checkpoint,
    *,
    runs: Sequence[Path] = (),
    evaluations: Sequence[Path] = (),
    data: Sequence[str] = (),
    heldout: Path | None = None,
    said: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Make the card of a file: the one it has, with new parts in place of older ones of their kind.

    Args:
        checkpoint: read with its checksum.
        runs: directories of the runs that trained it, each from the weights of the one before: commands, steps and
            hours of all, the last one's teachers, and where the weights of the first one came from.
        evaluations: directories with the ``results.json`` of evaluations of just this file.
        data: episodes that it was trained on.
        heldout: the ``heldout.json`` of this file.
        said: what no file of ours records: ``command``, ``commit``, ``processor``, ``license``, ``start``.

    Raises:
        ValueError: a record is damaged, or of another file, run or data.
    """
    before = checkpoint.card or {}
    card: dict[str, Any] = {**before, "format": FORMAT, "written_by": f"tdmpc2 {version()}"}
    files = [*before.get("files", ()), *([checkpoint.sha256] if checkpoint.sha256 else [])]
    card["files"] = list(dict.fromkeys(files))[-20:]
    trained = [read_run(run) for run in runs]
    if trained:
        _check_trained(checkpoint, card["files"], trained[-1])
        card = {key: value for key, value in card.items() if key not in ("hours", "teachers")}
        card |= _of_runs(trained, checkpoint.step)
    if data:
        card["data"] = [_of_data(name, checkpoint, trained) for name in data]
    scores = [_of_evaluation(directory, card["files"]) for directory in evaluations]
    own = set(card["files"])  # writing a card changes a file's checksum, and not what it scores
    kept = [old for old in before.get("scores", ()) if all(_kind(old, own) != _kind(new, own) for new in scores)]
    if kept or scores:
        card["scores"] = [*kept, *scores]
    if heldout is not None:
        card["trust"] = _of_heldout(heldout, card["files"])
    return check_card(f"What {checkpoint.origin} would hold", {**card, **(said or {})})


def _check_trained(checkpoint: Checkpoint, files: Sequence[str], run: Run) -> None:
    """Raise ``ValueError`` unless a run left just these weights, in whatever form they are by now."""
    left = [path for path in sorted(run.path.glob("*.pt")) if not path.name.startswith("state")]
    if any(file_sha256(path) in files for path in left):
        return
    for path in left:
        with contextlib.suppress(ValueError):  # no checkpoint
            if _are_of(checkpoint.model, load_file(path).model):
                return
    raise ValueError(
        f"run={run.path}: none of its checkpoints has the weights of {checkpoint.origin}: name the run that trained "
        "it, of several the last one last"
    )


def _are_of(own: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell if weights are those of a float32 file, perhaps rounded to fewer bits."""
    common = [name for name, tensor in own.items() if isinstance(tensor, torch.Tensor) and name in other]
    return bool(common) and all(_is_of(own[name], other[name], own.get(f"{name}.scale")) for name in common)


def _is_of(own: torch.Tensor, other: torch.Tensor, scale: torch.Tensor | None) -> bool:
    if own.shape != other.shape:
        return False
    if scale is None:
        return torch.equal(own, other.to(own.dtype))
    return bool(((own * scale - other).abs() <= scale * 0.501).all())  # half a step of int8


def with_card(checkpoint: Checkpoint, card: Mapping[str, Any]) -> Checkpoint:
    """Give a file, in memory, a card in place of the one it has."""
    return replace(checkpoint, extra={**checkpoint.extra, NAME: dict(card)})


def _kind(score: Mapping[str, Any], own: Collection[str]) -> tuple[Any, ...]:
    """Tell which scores stand for one another: those of other tasks do not.

    Args:
        score: of the card.
        own: checksums that stand for the file itself.
    """
    file = "" if score["sha256"] in own else score["sha256"]
    return file, *(score[key] for key in ("action", "plan", "precision", "noise")), *sorted(score["tasks"])


def _of_runs(runs: Sequence[Run], step: int | None = None) -> dict[str, Any]:
    """Tell how runs that go on from each other were made, the last one until a step; None: until its end."""
    until = runs[-1].step if step is None else step
    configs = [from_record(run.config) for run in runs]
    first, last = configs[0], configs[-1]
    card: dict[str, Any] = {
        "command": "; ".join(_command(cfg, run.config) for cfg, run in zip(configs, runs, strict=True)),
        "steps": sum(run.step for run in runs[:-1]) + until,
        "start": "random weights" if first.checkpoint is None else _short(first.checkpoint),
    }
    seconds = [run.seconds for run in runs if run.seconds is not None]
    if len(seconds) == len(runs):  # or it would be the time of some of them
        left = wall_seconds(runs[-1].path, until) if until < runs[-1].step else seconds[-1]
        card["hours"] = (sum(seconds[:-1]) + left) / 3600
    teachers = {entry.task: _short(entry.checkpoint) for entry in last.teachers or ()}
    if not teachers and (sha256 := runs[-1].config.get("teacher_sha256")):
        teachers = {"all": f"sha256 {sha256}"}
    return card | ({"teachers": teachers} if teachers else {})


def _command(cfg: Config, record: Mapping[str, Any]) -> str:
    """Write the line of a run, with the keys that its weights depend on and that are not the usual ones."""
    left_out = (UNDECISIVE - {"seed"}) | cfg.following() - {"mode"}
    if cfg.mode == ("offline" if cfg.multitask else "online"):  # without data_dir, which is of one machine
        left_out |= {"mode"}
    typed = {
        key: _short(value) if KEYS[key].path and isinstance(value, str) else value
        for key, value in ((key, getattr(cfg, key)) for key in KEYS if key not in left_out)
        if value != KEYS[key].default
    }
    words = [f"{key}={as_typed(value)}" for key, value in typed.items()]
    if cfg.teachers:
        words.append(f"teachers={{{', '.join(f'{one.task}: {_short(one.checkpoint)}' for one in cfg.teachers)}}}")
    elif cfg.mode == "offline" and not record.get("teacher_sha256"):
        words.append("teacher_config=null")  # as the configuration files name one
    return " ".join(["tdmpc2 train", *(f"'{word}'" if " " in word else word for word in words)])


def _short(file: str) -> str:
    """Name a file by itself and its directory: where that lies is of one machine, and many are called model.pt."""
    return "/".join(Path(file).parts[-2:]).lstrip("/")


def _of_data(name: str, checkpoint: Checkpoint, runs: Sequence[Run]) -> dict[str, Any]:
    task = str((checkpoint.config or {}).get("task", "mt30"))
    identity = data_record(name, task)
    recorded = [run.config["data"] for run in runs if run.config.get("data")]
    if recorded and not any(share_episodes(data, identity) for data in recorded):
        raise ValueError(f"data={name} has no episodes that {runs[-1].path} was trained on: name its data")
    _, form = find_form(name)
    index = open_source(name, task if form == CHUNKS else None).index
    return {
        "name": Path(name).resolve().name,
        "episodes": len(index),
        "tasks": len(index.task.unique()),
        "sha256": _sha256(identity),
    }


def _sha256(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_text(dict(sorted(identity.items()))).encode()).hexdigest()


def _of_evaluation(directory: Path, files: Sequence[str]) -> dict[str, Any]:
    path = directory / "results.json" if directory.is_dir() else directory
    found = check_entries(str(path), read_json(path), _RESULTS, others=True)
    protocol = check_entries(f"{path}: protocol", found["protocol"], _PROTOCOL, others=True)
    settings = check_entries(f"{path}: protocol, config", protocol["config"], _SETTINGS, others=True)
    _check_same(str(path), protocol["sha256"], files)
    tasks = [check_entries(f"{path}: tasks", task, _TASK, others=True) for task in found["tasks"]]
    return {
        "action": protocol["action"],
        "plan": plan_text(protocol) if protocol["action"] == "planner" else "no planning",
        "precision": protocol["precision"],
        "score": found["normalized_score"],
        "label": found["score_label"],
        "interval": found["interval"],
        "episodes": settings["eval_episodes"],
        "seed": settings["eval_seed"],
        "noise": settings["eval_noise"],
        "sha256": protocol["sha256"],
        "tasks": {task["task"]: {"return": task["return"], "interval": task["return_interval"]} for task in tasks},
    }


def _of_heldout(path: Path, files: Sequence[str]) -> dict[str, Any]:
    found = check_entries(str(path), read_json(path), _HELDOUT, "Measure again with `tdmpc2 heldout`", others=True)
    _check_same(str(path), found["sha256"], files)
    data = found["protocol"].get("data")
    if not isinstance(data, Mapping):
        raise ValueError(f"{path}: protocol does not say which data it is of: measure again with `tdmpc2 heldout`")
    return {**found["trust"], "data_sha256": _sha256(data), "sha256": found["sha256"]}


def _check_same(origin: str, sha256: str, files: Sequence[str]) -> None:
    if sha256 not in files:
        raise ValueError(
            f"{origin} is of the file with sha256 {cut(sha256, 16)}, not of this one "
            f"({', '.join(known[:16] for known in files)}): measure this file"
        )
