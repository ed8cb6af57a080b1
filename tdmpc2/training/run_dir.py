"""The directory of one run: what it was started with, its newest weights, and all it needs to continue.

run.json    the resolved configuration, the teacher's checksum, the data files and their sizes or their checksum
model.pt    newest deployable checkpoint
state.pt    the same weights with optimisers, value scale, random state and step: one file, so always consistent
train.csv, eval.csv, ...
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoint import load_file, read_file, save_file
from tdmpc2.config import Config, defaults
from tdmpc2.data.placement import data_record
from tdmpc2.files import write_text

#: Keys that may change when a run is continued: none of them is read by an update or by the choice of its batch.
CHANGEABLE = frozenset(
    """
    steps data_dir work_dir exp_name device num_threads log_freq save_freq save_agent save_csv save_video
    mpc iterations num_samples num_elites num_pi_trajs min_std max_std temperature precision compile
    eval_freq eval_episodes eval_noise eval_seed compare buffer_size
    data_device episodes_per_task episodes_per_file mix
    wandb_project wandb_entity wandb_silent disable_wandb
    """.split()
)


def check(cfg: Config, teacher_sha256: str | None) -> dict[str, Any]:
    """Make sure that the run directory is new or belongs to the same run; what its ``run.json`` is to hold.

    Raises:
        ValueError: it holds a run of another configuration or data; the message lists what differs. Or it holds
            weights that cannot be continued and would be overwritten.
    """
    path = cfg.run_dir / "run.json"
    now = {**cfg.to_dict(), "teacher_sha256": teacher_sha256, "data": data_record(cfg.data_dir)}
    record: dict[str, Any] = json.loads(json.dumps(now))
    if path.exists():
        try:
            there: dict[str, Any] = {**defaults(), **json.loads(path.read_text())}  # keys may be newer than the run
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged ({error}): set exp_name to start a new run") from error
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
        if (cfg.run_dir / "model.pt").exists() and not (cfg.run_dir / "state.pt").exists():
            raise ValueError(
                f"{cfg.run_dir} has model.pt but no state.pt to continue from: set exp_name to start a new run, "
                "with checkpoint=<that model.pt> if it is to start from those weights"
            )
    elif cfg.run_dir.exists() and any(cfg.run_dir.glob("*.pt")):
        raise ValueError(f"{cfg.run_dir} holds checkpoints but no run.json: set exp_name to start a new run beside it")
    return record


def claim(run_dir: Path, record: dict[str, Any]) -> None:
    """Make the run directory and write its ``run.json``.

    Raises:
        ValueError: the disk refused.
    """
    write_text(run_dir / "run.json", json.dumps(record, indent=2) + "\n")


def save(agent: TDMPC2, run_dir: Path, step: int, wandb_id: str | None) -> None:
    """Write ``state.pt`` and ``model.pt``, replacing the run's own older ones.

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


def _step_of(path: Path) -> int | None:
    try:
        return load_file(path).step
    except ValueError:  # missing or damaged
        return None
