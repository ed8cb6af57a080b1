"""Cards of checkpoints, and the files of evaluations and held-out measurements that cards are made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHA256 = "ab" * 32


def card(**changes: Any) -> dict[str, Any]:
    """Make a card with every entry."""
    return {
        "format": 1,
        "written_by": "tdmpc2 0.2.0",
        "license": "mit",
        "command": "tdmpc2 train steps=10",
        "commit": "0123456789ab",
        "hours": 1.25,
        "processor": "two cores",
        "start": "random weights",
        "steps": 10,
        "teachers": {"walker-walk": "model.pt"},
        "data": [{"name": "store", "episodes": 3, "tasks": 2, "sha256": SHA256}],
        "scores": [score()],
        "trust": trust(),
        "files": [SHA256],
    } | changes


def score(**changes: Any) -> dict[str, Any]:
    return {
        "action": "planner",
        "plan": "6 x 512 samples, horizon 3",
        "precision": "fp32",
        "score": 45.5,
        "label": "normalized score",
        "interval": [44.0, 47.0],
        "episodes": 10,
        "seed": 100,
        "noise": False,
        "sha256": SHA256,
        "tasks": {"walker-walk": {"return": 455.0, "interval": None}},
    } | changes


def trust(**changes: Any) -> dict[str, Any]:
    one = {"starts": 8, "rollout_worse": 0.25, "reward_rmse": 0.1, "value_rmse": 2.0}
    figures = {"steps": 3, "starts": 8, "rollout_worse": 0.25, "tasks": {"walker-walk": one}}
    return {**figures, "data_sha256": SHA256, "sha256": SHA256} | changes


def write_results(directory: Path, sha256: str, action: str = "planner", score: float = 40.0) -> Path:
    """Write the files that an evaluation leaves, as far as a card needs them."""
    settings = {"eval_episodes": 2, "eval_seed": 100, "eval_noise": False, "num_samples": 64, "iterations": 3}
    settings |= {"horizon": 3, "plan_action": "mean"}
    protocol = {"sha256": sha256, "action": action, "precision": "fp32", "config": settings}
    tasks = [{"task": "pendulum-spin", "episodes": 2, "return": 10 * score, "success": None, "return_interval": None}]
    content = {"normalized_score": score, "score_label": "normalized score", "interval": None, "tasks": tasks}
    directory.mkdir(parents=True)
    (directory / "results.json").write_text(json.dumps({**content, "protocol": protocol}))
    return directory
