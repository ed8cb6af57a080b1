"""An agent learns: from random play of a real task to clearly better planning, in under a minute of CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.play.collector import collect
from tdmpc2.play.evaluation import evaluate


def test_train_on_random_play_improves_planning(tmp_path: Path) -> None:
    cfg = Config(
        task="pendulum-spin", model_size=None, enc_dim=64, mlp_dim=64, latent_dim=32, num_samples=64, num_elites=16,
        num_pi_trajs=8, iterations=3, batch_size=64, lr=1e-3, eval_episodes=3, episodes_per_task=30, device="cpu",
    )  # fmt: skip
    returns: list[np.ndarray] = []
    collect(cfg, None, tmp_path, lambda _, r: returns.append(r))
    agent = TDMPC2(cfg)
    before = evaluate(agent, quiet=True).tasks[0].returns
    sampler = SliceSampler(EpisodeDataset.load(tmp_path, cfg.task_specs, cfg.task_ids))
    for step in range(600):
        agent.update(sampler.draw(step, cfg.batch_size, cfg.horizon, cfg.seed))
    after = evaluate(agent, quiet=True).tasks[0].returns
    assert np.mean(after) > 2 * max(np.mean(before), returns[0].mean())
    assert min(after) > max(before)
