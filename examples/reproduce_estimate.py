"""How long the steps of examples/reproduce.py take on this machine, and how much disk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from reproduce_steps import Scale, Step, Work

from tdmpc2.agent import TDMPC2
from tdmpc2.config import parse_cfg
from tdmpc2.envs import make_env
from tdmpc2.training.preflight import median_seconds, random_batch


def estimate(scale: Scale, steps: Sequence[Step]) -> tuple[dict[str, float], int]:
    """Estimate hours of each step and disk of all by timing an update, two kinds of plans, a simulator's step."""
    if not steps:
        return {}, 0
    typed = f"{scale.model} {scale.planner} {scale.training}".split()
    keys = {key: value for key, _, value in (word.partition("=") for word in typed)}
    cfg = parse_cfg({**{key: _value(text) for key, text in keys.items()}, "task": "mt30", "mode": "offline"})
    cheap = dict(word.removeprefix("collect_").split("=") for word in scale.collecting.split())
    agents = [TDMPC2(cfg), TDMPC2(cfg.replace(**{key: int(text) for key, text in cheap.items()}))]
    for agent in agents:
        agent.compile_planner()  # as the commands do
    batch, obs = random_batch(cfg, agents[0].device), torch.zeros(cfg.obs_dim)
    update = median_seconds(lambda: agents[0].update(batch), agents[0].device)
    plan, cheap_plan = (
        median_seconds(lambda agent=agent: agent.act(obs, t0=True, task=0), agent.device)  # type: ignore[misc]
        for agent in agents
    )
    env = make_env(scale.tasks[0], seed=0)
    env.reset()
    step = median_seconds(lambda: env.step(env.action_space.sample()), agents[0].device)
    env.close()
    seconds = Work(update, plan, cheap_plan, step, 0)
    hours = {s.name: sum(a * b for a, b in zip(s.work, seconds, strict=True)) / 3600 for s in steps}
    row = 4 * (cfg.obs_dim + cfg.action_dim + 1)
    return hours, int(row * sum(s.work.rows for s in steps) * 2)  # the parts, and the data that they are merged into


def _value(text: str) -> object:
    return None if text == "null" else int(text) if text.isdecimal() else text
