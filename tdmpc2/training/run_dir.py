"""The directory of one run: what it was started with, its newest weights, and all it needs to continue.

run.json    the resolved configuration and the teacher's checksum
model.pt    newest deployable checkpoint
state.pt    the same weights with optimisers, value scale, random state and step: one file, so always consistent
train.csv, eval.csv, ...
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoint import read_file, save_file
from tdmpc2.config import Config

#: Keys that may change when a run is continued; they change neither what is learned nor in what order.
CHANGEABLE = frozenset(
    """
    steps device precision compile num_threads log_freq save_freq save_agent save_csv save_video eval_freq eval_episodes
    wandb_project wandb_entity wandb_silent disable_wandb data_dir work_dir exp_name
    """.split()
)


def check(cfg: Config, teacher_sha256: str | None) -> dict[str, Any]:
    """Make sure that the run directory is new or belongs to the same run; what its ``run.json`` is to hold.

    Raises:
        ValueError: it holds a run of another configuration; the message lists the differing keys.
    """
    path = cfg.run_dir / "run.json"
    record: dict[str, Any] = json.loads(json.dumps({**cfg.to_dict(), "teacher_sha256": teacher_sha256}))
    if path.exists():
        there: dict[str, Any] = json.loads(path.read_text())
        differing = [
            f"{key}: {there.get(key)} there, {record.get(key)} now"
            for key in sorted(there.keys() | record.keys())
            if there.get(key) != record.get(key) and key not in CHANGEABLE
        ]
        if differing:
            raise ValueError(
                f"{cfg.run_dir} holds a run of another configuration ({'; '.join(differing)}): "
                "set exp_name to start a new run, or move the directory away"
            )
    elif cfg.run_dir.exists() and any(cfg.run_dir.glob("*.pt")):
        raise ValueError(f"{cfg.run_dir} holds checkpoints but no run.json: set exp_name to start a new run beside it")
    return record


def claim(run_dir: Path, record: dict[str, Any]) -> None:
    """Make the run directory and write its ``run.json``."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "run.json"
    temporary = path.with_name(f".run.json.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, path)


def save(agent: TDMPC2, run_dir: Path, step: int, wandb_id: str | None) -> None:
    """Write ``state.pt`` and ``model.pt``, replacing the run's own older ones."""
    state = {
        "weights": agent.model.state_dict(),
        "training": agent.training_state(),
        "step": step,
        "wandb_id": wandb_id,
    }
    save_file(run_dir / "state.pt", state, overwrite=True)
    agent.save(run_dir / "model.pt", step=step, overwrite=True)


def restore(agent: TDMPC2, run_dir: Path) -> tuple[int, str | None]:
    """Load ``state.pt`` into the agent; the step it is from and the W&B run id, or (0, None) if there is none."""
    path = run_dir / "state.pt"
    if not path.exists():
        return 0, None
    state = read_file(path)
    with torch.no_grad():
        agent.model.load_state_dict(state["weights"])
    agent.load_training_state(state["training"])
    return int(state["step"]), state["wandb_id"]
