"""An agent learns to plan clearly better than random play within seconds of CPU time."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.envs import task_spec
from tdmpc2.play.collector import collect
from tdmpc2.play.evaluation import evaluate
from tdmpc2.training.online import train_online
from tests.helpers.toy_envs import POINT, POINT_STEPS


def test_train_on_random_play_improves_planning(tmp_path: Path) -> None:
    cfg = Config(
        task="pendulum-spin", model_size=None, enc_dim=64, mlp_dim=64, latent_dim=32, num_samples=32, num_elites=8,
        num_pi_trajs=4, iterations=2, batch_size=64, lr=1e-3, eval_episodes=2, episodes_per_task=15, device="cpu",
    )  # fmt: skip
    returns: list[np.ndarray] = []
    collect(cfg, None, tmp_path, lambda _, r: returns.append(r))
    agent = TDMPC2(cfg)
    before = evaluate(agent, quiet=True).tasks[0].returns
    sampler = SliceSampler(EpisodeDataset.load(tmp_path, cfg.task_specs, cfg.task_ids))
    for step in range(300):
        agent.update(sampler.draw(step, cfg.batch_size, cfg.horizon, cfg.seed))
    after = evaluate(agent, quiet=True).tasks[0].returns
    assert np.mean(after) > 2 * max(np.mean(before), returns[0].mean())
    assert min(after) > max(before)


@pytest.mark.slow
def test_online_learning_of_a_toy_task_ends_far_above_random_play(tmp_path: Path) -> None:
    """The whole loop runs on a task of keeping a point at 0.5: acting, buffer, updates and planning."""
    cfg = Config(
        task=POINT, task_specs=(task_spec(POINT),), model_size=None, enc_dim=32, mlp_dim=32, latent_dim=16, num_q=2,
        num_samples=32, num_elites=8, num_pi_trajs=4, iterations=2, batch_size=32, lr=2e-3, seed_steps=200, steps=500,
        eval_freq=0, compile="false", device="cpu", num_threads=1, work_dir=str(tmp_path / "run"),
    )  # fmt: skip
    train_online(cfg, None)
    with (cfg.run_dir / "episodes.csv").open(newline="") as file:
        returns = [float(row["return"]) for row in csv.DictReader(file)]
    assert len(returns) == 500 // POINT_STEPS
    random, last = np.mean(returns[:10]), np.mean(returns[-5:])
    print(f"random {random:.1f}, last five {last:.1f} of at most {POINT_STEPS}")
    assert last > random + 0.5 * (POINT_STEPS - random)
