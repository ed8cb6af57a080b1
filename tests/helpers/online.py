"""Tiny runs that learn online, stopped in a certain step and compared by what they left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.config import Config, parse_cfg
from tdmpc2.play.explorer import Explorer
from tests.helpers.toy_envs import STANDS

SMALL: dict[str, Any] = {
    "model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "num_q": 2, "num_samples": 16, "num_elites": 4,
    "num_pi_trajs": 4, "iterations": 1, "device": "cpu", "num_threads": 1, "batch_size": 8, "log_freq": 5,
    "eval_freq": 0, "compile": "false", "seed_steps": 20, "steps": 45,
}  # fmt: skip


def config(directory: Path, task: str = STANDS, **keys: Any) -> Config:
    return parse_cfg({**SMALL, "task": task, "work_dir": str(directory / "run"), **keys})


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, how: Callable[[], None]) -> None:
    """Call a function in the turn of a given step."""
    original = Explorer.act

    def act(self: Explorer, number: int, **kwargs: Any) -> Any:
        if number in (step, step + 1) and not self.__dict__.get("interrupted"):
            self.__dict__["interrupted"] = True
            how()
        return original(self, number, **kwargs)

    monkeypatch.setattr(Explorer, "act", act)


def assert_same(one: Path, two: Path) -> None:
    """Check that two runs left the same weights, logs and buffers."""
    first, second = (torch.load(run / "state.pt", weights_only=True) for run in (one, two))
    assert all(torch.equal(tensor, second["weights"][name]) for name, tensor in first["weights"].items())
    assert first["parts"]["learner"] == second["parts"]["learner"]
    one_player, two_player = (state["parts"]["explorer"] for state in (first, second))
    for name in ("begun", "running", "ended", "player"):
        assert str(one_player[name]) == str(two_player[name]), name
    for name in ("train.csv", "episodes.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
