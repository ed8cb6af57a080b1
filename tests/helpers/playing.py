"""Episodes step by step, toy collections and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, MixEntry, parse_cfg
from tdmpc2.envs import make_env
from tdmpc2.play.evaluation import Evaluation, TaskResult, evaluate
from tdmpc2.play.mixture import BehaviourPolicy
from tdmpc2.play.rollout import Floats
from tdmpc2.tasks import TaskSpec, lookup
from tests.helpers.toy_envs import STANDS


def by_hand(spec: TaskSpec, seed: int, actions: Sequence[Floats]) -> tuple[np.ndarray, np.ndarray, bool, float]:
    """Play one environment until its episode ends: observations [T+1, obs_dim] and rewards [T]."""
    env = make_env(spec.name, seed)
    observations, rewards, terminated, info = [env.reset()[0]], [], False, {"success": 0.0}
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action[: spec.action_dim])
        observations.append(obs)
        rewards.append(reward)
        if terminated or truncated:
            break
    env.close()
    return np.array(observations), np.array(rewards, np.float64), terminated, info["success"]


SIZES: dict[str, Any] = {
    "model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "task_dim": 8, "num_samples": 16,
    "num_elites": 4, "num_pi_trajs": 4, "iterations": 1, "horizon": 2, "device": "cpu", "num_threads": 1,
}  # fmt: skip
TOY = {**SIZES, "task": STANDS}


def toy(**keys: Any) -> Config:
    return parse_cfg({**TOY, "episodes_per_task": 7, "episodes_per_file": 3, **keys})


def chunks(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("chunk_*"))}


def policies(*shares: float) -> list[BehaviourPolicy]:
    return [BehaviourPolicy(MixEntry(share, "random")) for share in shares]


SMALL_AGENT: dict[str, Any] = {
    "model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "num_samples": 16, "num_elites": 4,
    "num_pi_trajs": 4, "iterations": 1, "device": "cpu",
}  # fmt: skip


def fake(*tasks: tuple[str, list[float], list[float]], seed: int = 100) -> Evaluation:
    """Make results from (task, returns, successes)."""
    return Evaluation(
        tuple(
            TaskResult(
                name, tuple(range(seed, seed + len(returns))), tuple(returns), tuple(successes),
                lookup(name).success_score,
            )
            for name, returns, successes in tasks
        )
    )  # fmt: skip


MIXED = fake(("walker-walk", [500.0, 700.0], [0.0, 0.0]), ("mw-reach", [1234.0, 17.0], [1.0, 0.0]))


def episodes_of(agent: TDMPC2, **changes: Any) -> TaskResult:
    (result,) = evaluate(agent, agent.cfg.replace(**changes), quiet=True).tasks
    return result
