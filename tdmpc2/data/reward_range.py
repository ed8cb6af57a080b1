"""Rewards that a model's bins cannot tell apart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.nn.math import symexp


def beyond_bins(cfg: Config, reward: Tensor | np.ndarray, task: str) -> str:
    """Say in one line if rewards of a task lie beyond the bins of the model, where all are learned as one value.

    Args:
        cfg: has the ends of the bins in symlog space, ``vmin`` and ``vmax``.
        reward: any shape; what is not finite does not count.
        task: name.

    Returns:
        The line, or nothing.
    """
    rewards = torch.as_tensor(reward).double().flatten()
    rewards = rewards[rewards.isfinite()]
    low, high = symexp(torch.tensor([cfg.vmin, cfg.vmax], dtype=torch.float64)).tolist()
    if not len(rewards) or (rewards.min() >= low and rewards.max() <= high):
        return ""
    worst = max(rewards.min().item(), rewards.max().item(), key=abs)
    return (
        f"Warning: {task} has rewards such as {worst:.4g}, beyond the model's bins, {low:,.0f} to {high:,.0f} "
        f"(vmin={cfg.vmin:g}, vmax={cfg.vmax:g}), which learn them all as one: scale its rewards down"
    )
