"""The directory of one run: what it was started with, its newest weights, and all it needs to continue.

run.json         the resolved configuration, the teacher's checksum, the data files and their sizes or their checksum
model.pt         newest deployable checkpoint; model_<step>.pt: the newest ``keep_last``, if that is more than one
best.pt          the one with the highest score, evaluations.json the score of every evaluation
state.pt         the newest weights with optimisers, value scale, random state and step: one file, so always consistent
train.csv, eval.csv, ...
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file, read_file, save_file
from tdmpc2.config import CHANGEABLE, ONE_START_KEYS, Config, completed
from tdmpc2.data.placement import data_record
from tdmpc2.support import files
from tdmpc2.support.files import replacing, write_text


@contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """Keep other processes out of a run directory, by a file beside it; a lock ends with its process, even if killed.

    Raises:
        ValueError: another process trains there, or the directory cannot be made.
    """
    path = run_dir.with_name(f".{run_dir.name}.lock")
    busy = f"Another process is training in {run_dir}: wait for it, or set exp_name"
    with files.locked(path, busy, advice="Set work_dir to a directory that can be written"):
        try:
            for left_by_a_kill in run_dir.glob(".*.tmp"):
                left_by_a_kill.unlink()
            yield
        finally:
            if not run_dir.exists():  # refused: nothing to keep others from
                path.unlink(missing_ok=True)


def check(cfg: Config, teacher_sha256: str | None) -> tuple[dict[str, Any], str]:
    """Make sure that the run directory is new or belongs to the same run, and that ``cfg.resume`` allows it.

    Returns:
        What its ``run.json`` is to hold, and one line on settings that differ from those so far but may (or "").

    Raises:
        ValueError: it holds a run of another configuration or data; the message lists what differs. Or it holds
            weights that cannot be continued and would be overwritten.
    """
    directory = cfg.run_dir
    path = directory / "run.json"
    now = {**cfg.to_dict(), "teacher_sha256": teacher_sha256, "data": data_record(cfg.data_dir)}
    record: dict[str, Any] = json.loads(
        json.dumps({key: value for key, value in now.items() if key not in ONE_START_KEYS})
    )
    if cfg.resume == "must" and not (directory / "state.pt").exists():
        raise ValueError(f"resume=must, but {directory} has no state.pt to continue from: resume=auto starts a new run")
    if not path.exists():
        if directory.exists() and any(directory.glob("*.pt")):
            raise ValueError(
                f"{directory} holds checkpoints but no run.json: set exp_name to start a new run beside it"
            )
        return record, ""
    if cfg.resume == "never":
        raise ValueError(f"resume=never, but {directory} holds a run: set exp_name, or move the directory away")
    try:
        there: dict[str, Any] = completed(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): set exp_name to start a new run") from error
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be continued by this version ({error}): set exp_name to start a new run"
        ) from error
    differing = {
        key: f"{key}: {there.get(key)} there, {record.get(key)} now"
        for key in sorted((there.keys() | record.keys()) - ONE_START_KEYS)
        if there.get(key) != record.get(key)
    }
    # These schedules end at ``steps``: with others, the updates so far would have been others.
    fixed = {"steps"} if teacher_sha256 and cfg.distillation_schedule in ("linear", "cosine") else set()
    if refused := [text for key, text in differing.items() if key not in CHANGEABLE - fixed]:
        raise ValueError(
            f"{directory} holds a run of another configuration ({'; '.join(refused)}): "
            "set exp_name to start a new run, or move the directory away"
        )
    if (directory / "model.pt").exists() and not (directory / "state.pt").exists():
        raise ValueError(
            f"{directory} has model.pt but no state.pt to continue from: set exp_name to start a new run, "
            "with checkpoint=<that model.pt> if it is to start from those weights"
        )
    return record, f"Continuing with other settings: {'; '.join(differing.values())}" if differing else ""


def claim(run_dir: Path, record: dict[str, Any]) -> None:
    """Write the ``run.json`` of a run directory.

    Raises:
        ValueError: the disk refused.
    """
    write_text(run_dir / "run.json", json.dumps(record, indent=2) + "\n")


def save(agent: TDMPC2, run_dir: Path, step: int, wandb_id: str | None, keep_last: int = 1) -> None:
    """Write ``state.pt`` and ``model.pt``, replacing the run's own older ones but for the newest ``keep_last``.

    Raises:
        ValueError: a weight is not finite, or the disk refused; the older files are unchanged.
    """
    for name, tensor in agent.model.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"Training diverged: '{name}' has values that are not finite at step {step:,}. "
                f"What {run_dir} holds is from before; a lower lr or grad_clip_norm may help"
            )
    state = {
        "weights": agent.model.state_dict(),
        "training": agent.training_state(),
        "step": step,
        "wandb_id": wandb_id,
    }
    save_file(run_dir / "state.pt", state, overwrite=True)
    agent.save(run_dir / "model.pt", step=step, overwrite=True)
    if keep_last > 1:
        with replacing(run_dir / f"model_{step}.pt") as temporary:
            shutil.copyfile(run_dir / "model.pt", temporary)
    numbered = {int(path.stem[6:]): path for path in run_dir.glob("model_*.pt") if path.stem[6:].isdigit()}
    for old in sorted(numbered, reverse=True)[keep_last if keep_last > 1 else 0 :]:
        numbered[old].unlink()


def restore(agent: TDMPC2, run_dir: Path) -> tuple[int, str | None]:
    """Load ``state.pt`` into the agent, and write ``model.pt`` again if it is missing, damaged or of another step.

    Returns:
        The step it is from and the W&B run id, or (0, None) if there is nothing to continue.

    Raises:
        ValueError: ``state.pt`` cannot be read.
    """
    path, model = run_dir / "state.pt", run_dir / "model.pt"
    if not path.exists():
        return 0, None
    state = read_file(path)
    with torch.no_grad():
        agent.model.load_state_dict(state["weights"])
    agent.load_training_state(state["training"])
    step = int(state["step"])
    if _step_of(model) != step:
        agent.save(model, step=step, overwrite=True)
    return step, state["wandb_id"]


def scores(run_dir: Path, until: int) -> dict[int, float]:
    """Normalised scores of the evaluations up to a step, by step: those a run that continues there has behind it.

    Raises:
        ValueError: the file is damaged.
    """
    path = run_dir / "evaluations.json"
    if not path.exists():
        return {}
    try:
        return {int(step): float(score) for step, score in json.loads(path.read_text()).items() if int(step) <= until}
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it to lose the best score so far, not the run"
        ) from error


def record_score(agent: TDMPC2, run_dir: Path, step: int, score: float, save_best: bool) -> bool:
    """Add an evaluation to ``evaluations.json``; the weights become ``best.pt`` if no score before was as high.

    Returns:
        Whether it is the best so far.
    """
    earlier = scores(run_dir, step - 1)
    best = score > max(earlier.values(), default=float("-inf"))
    if best and save_best:
        agent.save(run_dir / "best.pt", step=step, overwrite=True)
    write_text(run_dir / "evaluations.json", json.dumps({**earlier, step: score}, indent=1) + "\n")
    return best


def _step_of(path: Path) -> int | None:
    try:
        return load_file(path).step
    except ValueError:  # missing or damaged
        return None
