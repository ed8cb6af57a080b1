"""Agents of single tasks for stacks, and the same agents apart."""

from __future__ import annotations

from typing import Any

import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, parse_cfg

SMALL: dict[str, Any] = {
    "model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "num_q": 3, "num_samples": 16, "num_elites": 4,
    "num_pi_trajs": 4, "iterations": 2, "batch_size": 8, "device": "cpu", "compile": "false",
}  # fmt: skip
#: Kinds of stacks: equal sizes, other sizes of observation and action, and models of tasks that share a body.
KINDS: dict[str, list[dict[str, Any]]] = {
    "equal": [{"task": "walker-walk"}, {"task": "walker-run", "seed": 2}],
    "padded": [{"task": "walker-walk"}, {"task": "cup-catch", "seed": 2}, {"task": "pendulum-spin", "seed": 3}],
    "bodies": [
        {"task": "mt30", "tasks": tasks, "mode": "online", "share_body": True, "task_dim": 8, "seed": seed}
        for seed, tasks in enumerate((["walker-walk", "walker-run"], ["cheetah-run", "cheetah-jump"]), 1)
    ],
}


def configs(kind: str, **keys: Any) -> list[Config]:
    return [parse_cfg({**SMALL, **own, **keys}) for own in KINDS[kind]]


def agents(kind: str, **keys: Any) -> list[TDMPC2]:
    made = [TDMPC2(cfg) for cfg in configs(kind, **keys)]
    with torch.no_grad():
        for agent in made:
            if agent.cfg.multitask:  # too long, so that learning shortens them
                agent.model._task_emb.weight.mul_(100)
            last: Any = agent.model._reward[-1]
            last.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(agent.cfg.seed))
    return made
