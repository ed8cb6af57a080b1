"""Teachers and random batches."""

from __future__ import annotations

from typing import Any

import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.dataset import Batch


def small_config(**keys: Any) -> Config:
    """Configure a model that trains and plans in milliseconds, with the padding and ids of MT30."""
    small: dict[str, Any] = {
        "task": "mt30", "model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "task_dim": 8, "num_q": 3,
        "num_samples": 16, "num_elites": 4, "num_pi_trajs": 4, "iterations": 2, "batch_size": 8, "device": "cpu",
    }  # fmt: skip
    return Config(**{**small, **keys})


def random_batch(cfg: Config, seed: int, batch: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randn(cfg.horizon + 1, batch, cfg.obs_dim, generator=generator)
    action = torch.rand(cfg.horizon, batch, cfg.action_dim, generator=generator) * 2 - 1
    reward = torch.rand(cfg.horizon, batch, 1, generator=generator) * 2
    return Batch(obs, action, reward, torch.randint(len(cfg.task_specs), (batch,), generator=generator))


def make_teacher(cfg: Config) -> TDMPC2:
    """Make an agent of another width whose rewards, 0.2 to 1, depend on all inputs (a new agent's are zero)."""
    teacher = TDMPC2(cfg.replace(seed=7, model_size=None, latent_dim=24))
    model, generator = teacher.model, torch.Generator().manual_seed(3)
    last: Any = model._reward[-1]
    with torch.no_grad():
        last.weight.normal_(0, 0.5, generator=generator)
        last.bias.copy_(-4 * (model.bins - 0.5).square())  # few bins with weight, as after training
        if cfg.multitask:
            model._task_emb.weight.normal_(0, 0.5, generator=generator)
    return teacher
