"""A tiny training run, and reading the files of a run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

from tdmpc2.checkpoints.files import load_file

TASKS = ("pendulum-spin", "cartpole-balance")
TINY: dict[str, Any] = {
    "model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "task_dim": 8, "num_samples": 16,
    "num_elites": 4, "num_pi_trajs": 4, "iterations": 1, "device": "cpu", "num_threads": 1, "tasks": TASKS,
    "batch_size": 16, "steps": 20, "log_freq": 5, "eval_freq": 0,
}  # fmt: skip


def weights(path: Path | str) -> dict[str, torch.Tensor]:
    return load_file(path).model


def equal(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def rows(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
