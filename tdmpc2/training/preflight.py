"""Checks and estimates before a run: what is missing, how long it will take, how large it will be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.hub import why_missing
from tdmpc2.checkpoints.run_state import state_path
from tdmpc2.config import Config, check_bins, check_memory, training_parts
from tdmpc2.data.batch import Batch
from tdmpc2.data.chunks import chunk_paths
from tdmpc2.data.placement import column_bytes, data_bytes, data_problems, data_record, data_rows, plan_place
from tdmpc2.data.store.importer import RATE, find_store
from tdmpc2.data.store.teacher_columns import COLUMNS
from tdmpc2.distillation.outputs import teacher_columns
from tdmpc2.distillation.targets import TARGETS, only_cached, only_offline
from tdmpc2.nn.layers import num_parameters
from tdmpc2.play.evaluation import num_steps, side_by_side
from tdmpc2.play.results import check_video
from tdmpc2.play.rollout import check_playable
from tdmpc2.support.files import check_free_disk, free_disk
from tdmpc2.support.runtime import available_memory, resolve_device, set_num_threads
from tdmpc2.tracking.progress import clock_text
from tdmpc2.training import run_record
from tdmpc2.training.demonstrations import demonstrations_problems
from tdmpc2.training.state_file import read_state
from tdmpc2.training.teacher import Teacher, Teachers, asked_live, cached_columns, check_made, find_teacher
from tdmpc2.training.tuning import load_start

_CACHE_BATCH = 4096  # rows a teacher takes at a time


_log = logging.getLogger("tdmpc2")


def preflight(cfg: Config, teacher: Config | None) -> None:
    """Look for everything a run reads before any work is done.

    Raises:
        ValueError: one message that lists all that is missing and how to get it.
    """
    device = resolve_device(cfg.device)
    check_bins(cfg.vmin, cfg.vmax)
    check_memory(cfg, training_parts(cfg), available_memory(device))
    set_num_threads(cfg.num_threads)
    problems = []
    online = cfg.mode == "online"
    try:
        if online:
            problems += demonstrations_problems(cfg)
            check_playable(cfg)
        else:
            data_record(cfg.data_dir, cfg.task)
            problems += [f"data_dir={cfg.data_dir}: {problem}" for problem in data_problems(cfg)]
    except ValueError as error:
        problems.append(f"{'environment' if online else 'data_dir'}: {error}")
    if online and cfg.steps <= cfg.seed_steps:
        _log.warning(
            "steps=%s: all are of the random ones before the first update (seed_steps=%s), so that nothing will be "
            "learned",
            f"{cfg.steps:,}",
            f"{cfg.seed_steps:,}",
        )
    begun_before = state_path(cfg.run_dir).exists()  # with whatever was enough then
    if online and not begun_before and cfg.buffer_size < (rows := _least_rows(cfg)):
        what = f"an episode of each of {len(cfg.task_ids)} tasks" if len(cfg.task_ids) > 1 else "an episode"
        problems.append(f"buffer_size={cfg.buffer_size:,} does not hold {what}: set it to {rows:,} or more")
    if cfg.precision not in ("auto", "fp32") and not begun_before:
        problems.append(
            f"precision={cfg.precision} is that of files that are played, and a run trains in float32: leave it out "
            "(update_precision=bf16 multiplies in bf16)"
        )
    if teacher is not None and (why := why_missing(teacher.checkpoint)):
        problems.append(
            f"teacher: teacher_config.checkpoint={teacher.checkpoint} {why}. Name a file, download the "
            "published mt30-317M.pt (Hugging Face model nicklashansen/tdmpc2, folder multitask, 2.0 GB), train one "
            "with `python train.py teacher_config=null model_size=5 exp_name=teacher` "
            "and add teacher_config.checkpoint=logs/mt30/1/teacher/model.pt, or train without: teacher_config=null"
        )
    problems += [
        f"teacher of {entry.task}: teachers names {entry.checkpoint}, which {why}"
        for entry in cfg.teachers or ()
        if (why := why_missing(entry.checkpoint))
    ]
    taught = teacher is not None or bool(cfg.teachers)
    if taught and cfg.distillation_cache != "full":
        made_before = [name for name in cfg.distillation_terms if not TARGETS[name].live]
        problems += [only_offline(name) if online else only_cached(name) for name in made_before]
    if cfg.checkpoint is not None and (why := why_missing(cfg.checkpoint)):
        problems.append(f"weights to start from: checkpoint={cfg.checkpoint} {why}")
    if cfg.eval_freq and (online or cfg.eval_freq <= cfg.steps):
        try:
            if not online:
                check_playable(cfg)
            if cfg.save_video:
                check_video(cfg)
        except ValueError as error:
            problems.append(f"evaluation: {error} (eval_freq=0 trains without)")
    if problems:
        raise ValueError("\n  ".join(["training cannot start, something is missing", *problems]))


def _least_rows(cfg: Config) -> int:
    """Count the rows with which a buffer has an episode of every task, when those of all environments have ended.

    With fewer the episodes of the last environments would push out those of the first, and a task would never be drawn.
    """
    rows, missing = 0, set(cfg.task_ids)
    for task_id in reversed(cfg.envs):
        if missing:
            rows += len(cfg.stored_for[task_id]) * (cfg.task_specs[task_id].episode_length + 1)
            missing -= {*cfg.stored_for[task_id]}
    return rows


def checkpoint_bytes(agent: TDMPC2, cfg: Config) -> int:
    """Bound the bytes that the checkpoints of a run take, the one that is being written included."""
    model = sum(tensor.nbytes for tensor in agent.model.state_dict().values())
    trained = sum(p.nbytes for p in agent.model.parameters() if p.requires_grad)
    state = model + 2 * trained  # two moments of Adam
    averaged = bool(cfg.ema_decay)
    state += averaged * model
    models = 1 + (cfg.keep_last if cfg.keep_last > 1 else 0) + cfg.save_best + averaged
    return (2 * state + (models + 1) * model) if cfg.save_agent else 0


def check_disk(agent: TDMPC2, cfg: Config) -> None:
    """Raise ``ValueError`` if the disk has no room for the run's checkpoints beside those that are there already."""
    advice = "set work_dir to another disk, or keep_last lower"
    there = sum(path.stat().st_size for path in cfg.run_dir.glob("*.pt"))
    check_free_disk(cfg.run_dir, max(checkpoint_bytes(agent, cfg) - there, 0), advice, free_disk(cfg.run_dir))


def dry_run(cfg: Config, teacher_cfg: Config | None, processes: int = 1) -> list[str]:
    """Estimate time, memory and disk of a run from a few updates and plans, compiled where the run's would be.

    Nothing is written but the compilers' caches.

    Args:
        cfg: the student.
        teacher_cfg: the teacher.
        processes: that will train together, which do not compile; times are those of one alone.

    Returns:
        One line on each subject.

    Raises:
        ValueError: the run would be refused.
    """
    preflight(cfg, teacher_cfg)
    threads = set_num_threads(cfg.num_threads)
    teacher = find_teacher(cfg, teacher_cfg)
    run_record.check(cfg, teacher.sha256 if teacher else None, data_record(cfg.data_dir, cfg.task))
    if teacher and cfg.distillation_cache != "off":
        check_made(cfg, teacher)
    live_teacher = teacher.load(cfg.device) if teacher else None
    agent = TDMPC2(cfg, live_teacher if asked_live(cfg) else None)
    load_start(agent, cfg)
    check_disk(agent, cfg)
    start = begun(agent, cfg)
    steps = max(cfg.steps - start, 0)
    data_line, size, imported = _data(cfg, agent.device, cached_columns(cfg) if teacher else ())
    before, before_s, before_bytes = _preparation(cfg, _agents(live_teacher), imported)
    update_s = _update_seconds(agent, cfg, processes)
    evaluations, evaluations_s = _evaluations(agent, cfg, start)
    return [
        f"run         {cfg.run_dir}, " + (f"continues at step {start:,}" if start else "new"),
        f"student     {num_parameters(agent.model):,} parameters on {agent.device}, {threads} threads",
        "teacher     " + teacher_line(teacher, live_teacher, cfg),
        data_line,
        *before,
        f"updates     {steps:,} x {1e3 * update_s:.1f} ms = {clock_text(steps * update_s)}",
        *evaluations,
        *_room(agent, cfg, 0 if data_line.endswith("disk") else size, before_bytes),
        f"in all      about {clock_text(before_s + steps * update_s + evaluations_s)}",
    ]


def begun(agent: TDMPC2, cfg: Config) -> int:
    """Return the step that the run would go on from, and let the agent train as it did: plainly, fused or compiled."""
    state = state_path(cfg.run_dir)
    if not state.exists():
        return 0
    saved = read_state(state, agent)
    agent.load_training_state(saved.training)
    return saved.step


def _update_seconds(agent: TDMPC2, cfg: Config, processes: int) -> float:
    batch = random_batch(cfg, agent.device)
    fit_pca_at_random(agent)
    if agent.distillation.has_teacher:  # that is asked for what no cache holds alone
        widths = {name: COLUMNS[name](cfg.action_dim) or (1,) for name in cached_columns(cfg)}
        shape = cfg.horizon, cfg.batch_size
        batch = batch._replace(**{f"teacher_{name}": batch.reward.new_zeros(*shape, *w) for name, w in widths.items()})
    if line := agent.compile_update(processes):
        print(line, flush=True)
    return median_seconds(lambda: agent.update(batch), agent.device)


def _evaluations(agent: TDMPC2, cfg: Config, start: int) -> tuple[list[str], float]:
    """Estimate the evaluations after step ``start``: a line if there are any, and seconds."""
    count = cfg.steps // cfg.eval_freq - min(start, cfg.steps) // cfg.eval_freq if cfg.eval_freq else 0
    if not count:
        return [], 0.0
    if line := agent.compile_planner(num_steps(cfg)):
        print(line, flush=True)
    num_envs = side_by_side(cfg, cfg.eval_episodes * len(cfg.task_ids), agent)
    obs, ids = np.zeros((num_envs, cfg.obs_dim), np.float32), np.arange(num_envs) % len(cfg.task_specs)
    plan_s = median_seconds(lambda: agent.act(obs, t0=True, eval_mode=True, task=ids), agent.device) / num_envs
    seconds = count * num_steps(cfg) * plan_s
    return [
        f"evaluation  {count} x {num_steps(cfg):,} plans x {1e3 * plan_s:.1f} ms = "
        f"{clock_text(seconds)} (without simulation)"
    ], seconds


def _room(agent: TDMPC2, cfg: Config, data_in_memory: int, beside_data: int) -> list[str]:
    """Say how many bytes the run takes in memory and on disk, and how many are free."""
    model = sum(tensor.nbytes for tensor in agent.model.state_dict().values())
    memory = num_parameters(agent.model) * 4 * 4 + model
    if agent.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(agent.device)
    averages = 2 * bool(cfg.ema_decay)  # the average, and the weights that it stands in for while it is saved
    memory += data_in_memory + averages * model
    needed, free = checkpoint_bytes(agent, cfg), free_disk(cfg.run_dir)
    beside = f"; {beside_data / 1e9:.2f} GB beside the data, {free_disk(Path(cfg.data_dir)) / 1e9:.1f} GB free"
    return [
        f"memory      about {memory / 1e9:.2f} GB with data and optimisers, "
        f"{available_memory(agent.device) / 1e9:.1f} GB free",
        f"disk        {needed / 1e9:.2f} GB for checkpoints, {free / 1e9:.1f} GB free"
        + (beside if beside_data else ""),
    ]


def _data(cfg: Config, device: torch.device, columns: Collection[str]) -> tuple[str, int, bool]:
    """Describe the data: one line, the bytes that are drawn from, and whether chunk files are imported first."""
    store, size = find_store(cfg.data_dir), data_bytes(cfg, columns)
    place = plan_place(cfg, device, columns)
    imported = store is None and (place == "disk" or cfg.distillation_cache != "off")
    what = "chunk files" if store is None else str(store.path)
    what += f", to be imported into {Path(cfg.data_dir) / 'store'} first" if imported else ""
    return f"data        {what}, {size / 1e9:.2f} GB on {place}", size, imported


def _preparation(cfg: Config, teachers: Sequence[TDMPC2], imported: bool) -> tuple[list[str], float, int]:
    """Import and cached targets: lines, seconds and bytes, at most."""
    lines: list[str] = []
    seconds, disk = 0.0, 0
    if imported:
        disk = sum(path.stat().st_size for path in chunk_paths(cfg.data_dir))
        seconds = disk / RATE
        lines.append(f"import      {disk / 1e9:.2f} GB at {RATE / 1e6:.0f} MB/s = {clock_text(seconds)}")
    names = [name for name in cached_columns(cfg) if TARGETS[name].live]
    if teachers and names:
        rows = data_rows(cfg)
        disk += rows * column_bytes(cfg, names)
        if cfg.distillation_cache == "full":
            once = sum(_column_seconds(teacher, names) for teacher in teachers) / len(teachers)  # each row asks one
            filling = rows / _CACHE_BATCH * once
            seconds += filling
            lines.append(
                f"cache       at most {rows:,} rows x {1e6 * once / _CACHE_BATCH:.1f} us = {clock_text(filling)}"
            )
    return lines, seconds, disk


def _column_seconds(teacher: TDMPC2, names: Collection[str]) -> float:
    """Time the outputs of a teacher for as many rows as it takes at a time."""
    batch = random_batch(teacher.cfg.replace(batch_size=_CACHE_BATCH), teacher.device)
    ids = batch.task if teacher.cfg.multitask else None
    return median_seconds(
        lambda: teacher_columns(teacher.model, names, batch.obs[0], batch.action[0], ids), teacher.device
    )


def _agents(teacher: TDMPC2 | Mapping[str, TDMPC2] | None) -> list[TDMPC2]:
    """List the agents of a teacher, or of teachers of single tasks, each once."""
    if teacher is None:
        return []
    return list(dict.fromkeys(teacher.values())) if isinstance(teacher, Mapping) else [teacher]


def teacher_line(
    teacher: Teacher | Teachers | None, live_teacher: TDMPC2 | Mapping[str, TDMPC2] | None, cfg: Config
) -> str:
    """Say which teacher a run has and when it is asked."""
    if teacher is None or live_teacher is None:
        return "none"
    count = sum(p.numel() for agent in _agents(live_teacher) for p in agent.model.parameters())
    asked = {"off": [], "lazy": ["for rows that are new"], "full": ["once, before"]}[cfg.distillation_cache]
    asked = asked * bool(cached_columns(cfg)) + ["in every update"] * asked_live(cfg)
    return f"{teacher.path}, {count:,} parameters, asked {' and '.join(asked)}"


def no_observations(cfg: Config, num_envs: int) -> np.ndarray:
    """Make observations that are zero, [E, O] or images, to time an action with."""
    return np.zeros((num_envs, *cfg.obs_shape), np.uint8 if cfg.observes_images else np.float32)


def fit_pca_at_random(agent: TDMPC2) -> None:
    """Let an agent that learns from the PCA of its teacher's latents be timed before there are data to fit it to."""
    if agent.distillation.needs_pca:
        batch = random_batch(agent.cfg.replace(batch_size=1000), agent.device)
        agent.distillation.fit_pca([(batch.obs[0], batch.task if agent.cfg.multitask else None)])


def random_batch(cfg: Config, device: torch.device) -> Batch:
    """Draw a batch of the sizes of a run, to time an update with."""
    horizon, size = cfg.horizon, cfg.batch_size
    generator = torch.Generator().manual_seed(cfg.seed)
    shape = (horizon + 1, size, *cfg.obs_shape)
    if cfg.observes_images:
        obs = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        if cfg.observes_state:
            obs[..., : 4 * cfg.obs_dim] = 0  # the bytes of its numbers, which have to be finite
    else:
        obs = torch.randn(shape, dtype=torch.float32, generator=generator)
    batch = Batch(
        obs,
        torch.rand(horizon, size, cfg.action_dim, dtype=torch.float32, generator=generator) * 2 - 1,
        torch.rand(horizon, size, 1, dtype=torch.float32, generator=generator),
        torch.randint(len(cfg.task_specs), (size,), generator=generator),
        terminated=torch.zeros(horizon, size, 1) if cfg.episodic else None,
    )
    return batch.to(device)


def median_seconds(function: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """Median time of a call, the first two left out."""
    seconds = []
    for _ in range(repeats + 2):
        start = perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(perf_counter() - start)
    return median(seconds[2:])
