"""Estimates before a run that learns online: how long it will take, how large it will be."""

from __future__ import annotations

import numpy as np

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.nn.layers import num_parameters
from tdmpc2.play.evaluation import num_steps
from tdmpc2.play.explorer import Explorer
from tdmpc2.support.files import free_disk
from tdmpc2.support.runtime import available_memory, set_num_threads
from tdmpc2.tracking.progress import clock_text
from tdmpc2.training import run_record
from tdmpc2.training.demonstrations import demonstrations_bytes, demonstrations_record
from tdmpc2.training.preflight import (
    begun,
    check_disk,
    checkpoint_bytes,
    fit_pca_at_random,
    median_seconds,
    no_observations,
    preflight,
    random_batch,
    teacher_line,
)
from tdmpc2.training.ring import plan_ring, sharing_in_words
from tdmpc2.training.teacher import find_teacher
from tdmpc2.training.tuning import load_start


def dry_run_online(cfg: Config, teacher_cfg: Config | None) -> list[str]:
    """Estimate time, memory and disk of a run from a few updates, plans and steps; nothing is written.

    Args:
        cfg: the student.
        teacher_cfg: the teacher.

    Returns:
        One line on each subject.

    Raises:
        ValueError: the run would be refused.
    """
    preflight(cfg, teacher_cfg)
    threads = set_num_threads(cfg.num_threads)
    teacher = find_teacher(cfg, teacher_cfg)
    run_record.check(cfg, teacher.sha256 if teacher else None, demonstrations_record(cfg))
    live_teacher = teacher.load(cfg.device) if teacher else None
    agent = TDMPC2(cfg, live_teacher)
    load_start(agent, cfg)
    check_disk(agent, cfg)
    start = begun(agent, cfg)
    ring = plan_ring(cfg, agent.device)
    wanted = "false" if cfg.compile == "false" else "auto"  # kernels if there are some: they need no minute to compile
    agent.planner.speed_up(wanted, 0)
    with Explorer(cfg, agent) as explorer:
        explorer.compile_planner(wanted, 0)
        explorer.begin()
        actions = explorer.act(0, random=True)
        step_s = median_seconds(lambda: _step(explorer, actions), agent.device)
        explorer.begin()
        plan_s = median_seconds(lambda: explorer.act(0, random=False), agent.device)
    batch = random_batch(cfg, agent.device)
    fit_pca_at_random(agent)
    update_s = median_seconds(lambda: agent.update(batch), agent.device)
    planned_by = "by the CPU kernels" if agent.planner.kind == "kernels" else "plainly"
    turns, parameters = max(cfg.steps - start, 0) // len(cfg.envs), num_parameters(agent.model)
    planned = round((1 - cfg.collect_policy) * max(cfg.steps - max(start, cfg.seed_steps), 0)) // len(cfg.envs)
    done = int(cfg.utd * start) * (start > cfg.seed_steps)
    due = cfg.num_updates if cfg.steps > cfg.seed_steps else 0
    parts = {
        "updates": (max(due - done, 0), update_s),
        "plans": (planned, plan_s),
        "steps": (turns, step_s),
    }
    lines = [
        f"run         {cfg.run_dir}, " + (f"continues at step {start:,}" if start else "new"),
        f"student     {parameters:,} parameters on {agent.device}, {threads} threads",
        "teacher     " + teacher_line(teacher, live_teacher, cfg),
        f"acting      {cfg.steps:,} steps in {len(cfg.envs)} environment{'s' * (len(cfg.envs) > 1)}"
        + sharing_in_words(cfg),
        *(f"{name:<11} {n:,} x {1e3 * s:.1f} ms = {clock_text(n * s)}" for name, (n, s) in parts.items()),
    ]
    total = sum(count * seconds for count, seconds in parts.values())
    if cfg.eval_freq:
        evaluations = (start == 0) + cfg.steps // cfg.eval_freq - min(start, cfg.steps) // cfg.eval_freq
        obs = no_observations(cfg, 1)
        task = int(cfg.task_ids[0]) if cfg.multitask else None
        once = num_steps(cfg) * median_seconds(lambda: agent.act(obs, t0=True, eval_mode=True, task=task), agent.device)
        total += evaluations * once
        lines.append(f"evaluation  {evaluations} x {num_steps(cfg):,} plans, at most {clock_text(evaluations * once)}")
    if cfg.demonstrations:
        size = demonstrations_bytes(cfg) / 1e9
        lines.append(f"shown       {cfg.demonstrations}, {size:.2f} GB beside the buffer, half of each batch")
    mapped = ring.place == "disk"
    model = parameters * 4 * 4 + sum(tensor.nbytes for tensor in agent.model.state_dict().values())
    needed = checkpoint_bytes(agent, cfg) + ring.file_bytes * cfg.save_agent + ring.bytes * mapped
    return [
        *lines,
        f"buffer      {ring.capacity:,} rows, {ring.bytes / 1e9:.2f} GB "
        + ("on disk, read from there and saved a second time" if mapped else "in memory, saved on disk"),
        f"memory      about {(model + ring.bytes * (not mapped)) / 1e9:.2f} GB, "
        f"{available_memory(agent.device) / 1e9:.1f} GB free",
        f"disk        {needed / 1e9:.2f} GB for checkpoints and buffer, {free_disk(cfg.run_dir) / 1e9:.1f} GB free",
        f"in all      about {clock_text(total)} (planned {planned_by}, without compilation)",
    ]


def _step(explorer: Explorer, actions: np.ndarray) -> None:
    explorer.begin()
    explorer.step(actions)
