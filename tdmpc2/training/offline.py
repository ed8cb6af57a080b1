"""Offline training on stored episodes, with or without a teacher (specification section 13)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoint import load_file
from tdmpc2.config import Config
from tdmpc2.data.batches import Batches
from tdmpc2.data.dataset import Batch
from tdmpc2.data.placement import Data, open_data
from tdmpc2.evaluation import evaluate, num_steps
from tdmpc2.logger import Logger
from tdmpc2.results import table_rows, write_video
from tdmpc2.rollout import Frames
from tdmpc2.runtime import set_num_threads
from tdmpc2.training import run_dir
from tdmpc2.training.guards import STOPPED, FiniteGuard, stop_on_signal
from tdmpc2.training.preflight import check_disk, dry_run, preflight
from tdmpc2.training.teacher import Teacher, add_targets


def train(cfg: Config, teacher_cfg: Config | None) -> Path:
    """Train until ``cfg.steps``, continuing the run in ``cfg.run_dir`` if there is one.

    Args:
        cfg: the student.
        teacher_cfg: names the teacher's checkpoint; its architecture is the file's own.

    Returns:
        The deployable checkpoint, ``<run_dir>/model.pt``.

    Raises:
        ValueError: something is missing or does not fit, the directory belongs to another run or process, or the
            training diverged.
        SystemExit: with code :data:`~tdmpc2.training.guards.STOPPED` after SIGTERM or SIGINT, when all is saved.
    """
    if cfg.dry_run:
        print(*dry_run(cfg, teacher_cfg), sep="\n")
        return cfg.run_dir / "model.pt"
    preflight(cfg, teacher_cfg)
    with run_dir.lock(cfg.run_dir):
        return _train(cfg, teacher_cfg)


def _train(cfg: Config, teacher_cfg: Config | None) -> Path:
    threads = set_num_threads(cfg.num_threads)
    teacher = Teacher.of(teacher_cfg)
    alive = teacher.load(cfg.device) if teacher and cfg.distillation_cache == "off" else None
    agent = TDMPC2(cfg, alive)
    if cfg.checkpoint is not None:
        agent.load(load_file(cfg.checkpoint).model)
    check_disk(agent, cfg)
    record, remark = run_dir.check(cfg, teacher.sha256 if teacher else None)
    start, wandb_id = run_dir.restore(agent, cfg.run_dir)
    path = cfg.run_dir / "model.pt"
    # An evaluation that the run was ended before or while it made.
    unevaluated = _due(start, cfg.eval_freq) and start not in run_dir.scores(cfg.run_dir, start)
    if start >= cfg.steps and not unevaluated:
        print(f"{cfg.run_dir} is already trained for {start:,} steps; set student_config.steps higher to go on")
        return path

    data, lazy = open_data(cfg, agent.device), None
    if teacher and not alive:
        data, lazy = add_targets(data, teacher, cfg.distillation_cache, agent.device)
    sampler = data.sampler
    run_dir.claim(cfg.run_dir, record)  # everything has been read and found good
    with (
        stop_on_signal() as stop,
        Logger(
            cfg,
            teacher=alive.cfg if alive else teacher_cfg,
            total_steps=cfg.steps,
            start_step=start,
            run_id=wandb_id,
            evaluate_again=unevaluated,
        ) as logger,
    ):
        logger.message(
            f"{cfg.run_dir}: {sum(p.numel() for p in agent.model.parameters() if p.requires_grad):,} parameters, "
            f"{len(sampler):,} episodes on {data.place}, {f'teacher {teacher.path}' if teacher else 'no teacher'}, "
            f"{agent.device}, {threads} threads" + (f", continuing at step {start:,}" if start else "")
        )
        if remark:
            logger.message(remark)

        def draw(step: int) -> Batch:
            return sampler.sample(step, cfg.batch_size, cfg.horizon, cfg.seed)

        def rows(step: int) -> Tensor:
            return sampler.rows(step, cfg.batch_size, cfg.horizon, cfg.seed)

        batches = Batches(draw, range(start, cfg.steps), agent.device, data.ahead)
        guard = FiniteGuard(agent.device)
        saved = start
        if unevaluated:
            _evaluate(agent, cfg, logger, start)
        for done, batch in enumerate(batches, start + 1):
            if lazy:
                batch = lazy.fill(batch, rows(done - 1))
            metrics = agent.update(batch)
            guard.watch(done, metrics)
            stopping = bool(stop)  # asked once: a signal may come at any moment below
            evaluating = _due(done, cfg.eval_freq)
            saving = done == cfg.steps or _due(done, cfg.save_freq) or evaluating or stopping
            logging = done == cfg.steps or _due(done, cfg.log_freq)
            if logging:
                logger.log(done, metrics, data_wait=batches.take_wait())
            if (logging or saving) and (bad := guard.first_bad_step()) is not None:
                logger.alert("Training diverged", text := _diverged(cfg, bad, rows(bad - 1), data, saved))
                raise ValueError(text)
            if cfg.save_agent and saving:
                run_dir.save(agent, cfg.run_dir, done, logger.run_id, cfg.keep_last)
                saved = done
                if not stopping:
                    logger.save_artifact(path, f"{cfg.task}-{cfg.exp_name or 'default'}", "model")
            if stopping:
                logger.message(
                    f"Stopped by {stop.signal.name if stop.signal else ''} at step {done:,}"
                    + (", everything is saved; the same command goes on" if cfg.save_agent else "")
                )
                raise SystemExit(STOPPED)
            if evaluating:
                _evaluate(agent, cfg, logger, done)
        if cfg.save_agent:
            logger.message(f"Trained for {cfg.steps:,} steps: {path}")
    return path


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _diverged(cfg: Config, step: int, rows: Tensor, data: Data, saved: int) -> str:
    """What is known of the first update with a value that is not finite."""
    episodes = (rows[0] // (data.sampler.dataset.episode_length + 1)).unique()
    numbers = data.episodes[episodes].tolist() if data.place != "disk" else episodes.tolist()
    good = cfg.run_dir / "model.pt"
    return (
        f"Training diverged: a loss or gradient is not finite at step {step:,}. Its batch has {len(numbers)} episodes: "
        f"{', '.join(map(str, numbers[:8]))}{', ...' if len(numbers) > 8 else ''} of {cfg.data_dir}. "
        + (f"{good} is of step {saved:,}, before it. " if saved else "Nothing was saved before. ")
        + "A lower lr or grad_clip_norm may help"
    )


def _evaluate(agent: TDMPC2, cfg: Config, logger: Logger, step: int) -> None:
    def film(task: str, frames: Frames) -> None:
        path = cfg.run_dir / "videos" / f"{task}-{step}.mp4"
        write_video(path, frames)
        logger.log_video(step, f"video/{task}", path)

    if not agent.compiled and (line := agent.compile_planner(num_steps(cfg))):
        logger.message(line)
    result = evaluate(agent, cfg, film=film)
    low, high = result.interval or (result.normalized_score, result.normalized_score)
    logger.log(step, {"normalized_score": result.normalized_score, "low": low, "high": high}, "eval")
    columns = ("task", "episodes", "return", "success")
    logger.log_table(step, "eval/tasks", columns, [row[:4] for row in table_rows(result)])
    if cfg.save_agent:  # last, so that an evaluation that was ended before this is made again
        run_dir.record_score(agent, cfg.run_dir, step, result.normalized_score, cfg.save_best)
