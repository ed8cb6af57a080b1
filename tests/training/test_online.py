"""Learning online: the order of events, continuing exactly, environments that end early, fail or never repeat."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.config import parse_cfg
from tdmpc2.play.explorer import Explorer
from tdmpc2.training import online
from tdmpc2.training.guards import STOPPED
from tdmpc2.training.online import train_online
from tests.helpers.runs import rows, weights
from tests.helpers.toy_envs import FALLS, STANDS

SMALL: dict[str, Any] = {
    "model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "num_q": 2, "num_samples": 16, "num_elites": 4,
    "num_pi_trajs": 4, "iterations": 1, "device": "cpu", "num_threads": 1, "batch_size": 8, "log_freq": 5,
    "eval_freq": 0, "compile": "false", "seed_steps": 20,
}  # fmt: skip


def config(directory: Path, task: str = STANDS, **keys: Any) -> Config:
    return parse_cfg({**SMALL, "task": task, "work_dir": str(directory / "run"), "steps": 60, **keys})


def same(one: Path, two: Path) -> None:
    """Two runs left the same weights, logs and buffers."""
    first, second = weights(one / "model.pt"), weights(two / "model.pt")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    for name in ("train.csv", "episodes.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_online_run_learns_and_leaves_a_model(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    model = train_online(cfg, None)
    assert model == cfg.run_dir / "model.pt"
    assert [row["step"] for row in rows(cfg.run_dir / "train.csv")] == [25, 30, 35, 40, 45, 50, 55, 60]
    new = TDMPC2(cfg).model.state_dict()
    assert any(not torch.equal(tensor, new[name]) for name, tensor in weights(model).items())
