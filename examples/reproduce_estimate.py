"""How long the steps of examples/reproduce.py take on this machine, and how much disk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from reproduce_scale import Scale, Work
from reproduce_steps import Step

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, parse_cfg
from tdmpc2.envs import make_env
from tdmpc2.training.plan_labels import planned_actions, plans_at_once
from tdmpc2.training.preflight import median_seconds, random_batch

#: Bytes of a number of a teacher: float32, and its check number.
_CHECKED = 4 + 2


def estimate(scale: Scale, steps: Sequence[Step]) -> tuple[dict[str, float], int]:
    """Estimate hours of each step and disk of all by timing an update, plans, a policy, a step of the simulator.

    Plans that the student imitates are timed as they are made, many side by side and with their own settings.
    """
    if not steps:
        return {}, 0
    typed = _keys(f"{scale.model} {scale.planner} {scale.training}".split())
    cfg = parse_cfg({**typed, "task": "mt30", "mode": "offline"})
    cheap = _keys([word.removeprefix("collect_") for word in scale.collecting.split()])
    agents = [TDMPC2(one) for one in (cfg, cfg.replace(**cheap), cfg.replace(**_keys(scale.labels)))]
    for agent in agents:
        agent.compile_planner()  # as the commands do
    device = agents[0].device
    batch, obs = random_batch(cfg, device), torch.zeros(cfg.obs_dim)
    env = make_env(scale.tasks[0], seed=0)
    env.reset()
    alone = TDMPC2(cfg.replace(mpc=False))
    seconds = Work(
        updates=median_seconds(lambda: agents[0].update(batch), device),
        plans=median_seconds(lambda: agents[0].act(obs, t0=True, task=0), device),
        cheap_plans=median_seconds(lambda: agents[1].act(obs, t0=True, task=0), device),
        labels=_label_seconds(agents[2]),
        acts=median_seconds(lambda: alone.act(obs, t0=True, task=0), device),
        steps=median_seconds(lambda: env.step(env.action_space.sample()), device),
    )
    env.close()
    hours = {s.name: sum(a * b for a, b in zip(s.work, seconds, strict=True)) / 3600 for s in steps}
    return hours, sum(disk_bytes(cfg, step.work) for step in steps)


def disk_bytes(cfg: Config, work: Work) -> int:
    """Count the bytes that a step stores: rows of episodes, and plans, rewards and values of teachers beside them."""
    row = 4 * (cfg.obs_dim + cfg.action_dim + 1)
    return int(row * work.rows + _CHECKED * (cfg.action_dim * work.plan_rows + 2 * work.value_rows))


def _label_seconds(agent: TDMPC2) -> float:
    """Time one of many plans that are made side by side."""
    count = plans_at_once(agent.device)
    obs = torch.zeros(count, agent.cfg.obs_dim, device=agent.device)
    context = agent.model.context(torch.zeros(1, dtype=torch.int64, device=agent.device))
    seeds = list(range(count))
    return median_seconds(lambda: planned_actions(agent, obs, context, seeds, 0), agent.device) / count


def _keys(words: Sequence[str]) -> dict[str, object]:
    pairs = (word.partition("=") for word in words)
    return {key: None if text == "null" else int(text) if text.isdecimal() else text for key, _, text in pairs}
