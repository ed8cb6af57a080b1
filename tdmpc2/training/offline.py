"""Offline training on stored episodes, with or without a teacher (specification section 13)."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.data.batches import Batches
from tdmpc2.data.placement import Data, open_data, plan_place
from tdmpc2.distributed import ProcessGroup, process_group
from tdmpc2.play.evaluation import evaluate, num_steps
from tdmpc2.play.results import table_rows, write_video
from tdmpc2.play.rollout import Frames
from tdmpc2.support.runtime import set_num_threads
from tdmpc2.tracking.logger import Logger
from tdmpc2.training import run_dir
from tdmpc2.training.guards import STOPPED, FiniteGuard, StopRequest, stop_on_signal
from tdmpc2.training.preflight import check_disk, dry_run, preflight
from tdmpc2.training.teacher import Teacher, add_targets, fit_pca

#: Updates between two moments at which several processes ask whether one of them was told to stop.
_ASK_EVERY = 10


def train(cfg: Config, teacher_cfg: Config | None) -> Path:
    """Train until ``cfg.steps``, continuing the run in ``cfg.run_dir`` if there is one.

    Started by torchrun, the processes share each batch; how many they are changes nothing but rounding.

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
    with process_group(cfg.device) as group:
        if cfg.dry_run:
            if group.main:
                print(*dry_run(cfg, teacher_cfg, group.world_size), sep="\n")
            return cfg.run_dir / "model.pt"
        preflight(cfg, teacher_cfg)
        with (
            run_dir.lock(cfg.run_dir) if group.main else nullcontext(),
            stop_on_signal(launched=group.world_size > 1) as stop,
        ):
            return _train(cfg, teacher_cfg, group, stop)


def _train(cfg: Config, teacher_cfg: Config | None, group: ProcessGroup, stop: StopRequest) -> Path:
    stop.at_once = True  # whatever is made before the first update survives a kill
    own = group.rows(cfg.batch_size)
    threads = set_num_threads(cfg.num_threads)
    teacher = Teacher.of(teacher_cfg)
    alive = teacher.load(cfg.device) if teacher and cfg.distillation_cache == "off" else None
    agent = TDMPC2(cfg, alive, group)
    if cfg.checkpoint is not None:
        agent.load(load_file(cfg.checkpoint).model)
    record, remark, start, wandb_id, unevaluated = group.from_main(lambda: _restore(agent, cfg, teacher))
    weights, state = group.from_main(lambda: (agent.model.state_dict(), agent.training_state()))
    if not group.main:
        agent.model.load_state_dict(weights)
        agent.load_training_state(state)
    path = cfg.run_dir / "model.pt"
    if start >= cfg.steps and not unevaluated:
        print(f"{cfg.run_dir} is already trained for {start:,} steps; set student_config.steps higher to go on")
        return path

    place = group.from_main(lambda: plan_place(cfg, agent.device))
    with group.main_first():
        data, lazy = open_data(cfg, agent.device, place), None
        if teacher and not alive:
            data, lazy = add_targets(data, teacher, cfg, agent.device)
    sampler = data.sampler
    fitted = fit_pca(agent, sampler)
    stop.at_once = False
    # Where nothing has been saved since, it was killed; where nothing ever is, it may have come to its end.
    begun_before = cfg.save_agent and (cfg.run_dir / "run.json").exists()
    if group.main:
        run_dir.claim(cfg.run_dir, record)  # everything has been read and found good
    with Logger(
        cfg if group.main else cfg.replace(save_csv=False, disable_wandb=True),
        teacher=alive.cfg if alive else teacher_cfg,
        total_steps=cfg.steps,
        start_step=start,
        begun_before=begun_before,
        run_id=wandb_id,
        evaluate_again=unevaluated,
    ) as logger:
        logger.message(
            f"{cfg.run_dir}: {sum(p.numel() for p in agent.model.parameters() if p.requires_grad):,} parameters, "
            f"{len(sampler):,} episodes on {data.place}, {f'teacher {teacher.path}' if teacher else 'no teacher'}, "
            f"{f'{group.world_size} processes on ' if group.world_size > 1 else ''}{agent.device}, {threads} threads"
            + (f", continuing at step {start:,}" if start else "")
        )
        for line in filter(None, (remark, fitted, agent.compile_update())):
            logger.message(line)

        def rows(step: int) -> Tensor:
            return sampler.rows(step, cfg.batch_size, cfg.horizon, cfg.seed)

        def draw(step: int) -> Batch:
            return sampler.gather(rows(step)[:, own])

        batches = Batches(draw, range(start, cfg.steps), agent.device, data.ahead)
        guard = FiniteGuard(agent.device)
        saved = start
        if unevaluated:
            _evaluate(agent, cfg, logger, start)
        for done, batch in enumerate(batches, start + 1):
            if lazy:
                batch = lazy.fill(batch, rows(done - 1)[:, own])
            compiling, began = agent.update_compiled and done == start + 1, time.monotonic()
            stop.at_once = compiling  # minutes in which there is nothing to save
            if compiling and stop:
                raise SystemExit(STOPPED)
            metrics = agent.update(batch)
            stop.at_once = False
            if compiling:
                logger.message(f"Compiled in {time.monotonic() - began:.0f} s")
            guard.watch(done, metrics)
            # Asked once, since a signal may come at any moment below. Several processes ask one another now and then.
            stopping = (group.world_size == 1 or done % _ASK_EVERY == 0) and any(group.collect(bool(stop)))
            evaluating = _due(done, cfg.eval_freq)
            saving = done == cfg.steps or _due(done, cfg.save_freq) or evaluating or stopping
            logging = done == cfg.steps or _due(done, cfg.log_freq)
            if logging:
                logger.log(done, metrics, data_wait=batches.take_wait())
            if (logging or saving) and (bad := guard.first_bad_step()) is not None:
                logger.alert("Training diverged", text := _diverged(cfg, bad, rows(bad - 1), data, saved))
                raise ValueError(text)
            if cfg.save_agent and saving and group.main:
                run_dir.save(agent, cfg.run_dir, done, logger.run_id, cfg.keep_last)
                saved = done
                if not stopping:
                    _upload(cfg, logger, path, f"step-{done}")
            if stopping:
                logger.message(
                    f"Stopped by {stop.signal.name if stop.signal else 'a signal to another process'} at step {done:,}"
                    + (", everything is saved; the same command goes on" if cfg.save_agent else "")
                )
                raise SystemExit(STOPPED)
            if evaluating:
                _evaluate(agent, cfg, logger, done)
        if cfg.save_agent:
            logger.message(f"Trained for {cfg.steps:,} steps: {path}")
    return path


def _restore(agent: TDMPC2, cfg: Config, teacher: Teacher | None) -> tuple[dict[str, Any], str, int, str | None, bool]:
    """Bring the agent to where the run's directory says it is.

    Returns:
        The run's record, a remark, the step, the W&B run, and whether the evaluation of that step is to be made: the
        run was ended before or while it made it.
    """
    check_disk(agent, cfg)
    record, remark = run_dir.check(cfg, teacher.sha256 if teacher else None)
    step, wandb_id = run_dir.restore(agent, cfg.run_dir)
    unevaluated = _due(step, cfg.eval_freq) and step not in run_dir.scores(cfg.run_dir, step)
    return record, remark, step, wandb_id, unevaluated


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _diverged(cfg: Config, step: int, rows: Tensor, data: Data, saved: int) -> str:
    """What is known of the first update with a value that is not finite."""
    episodes = (rows[0] // (data.sampler.dataset.episode_length + 1)).unique()
    numbers = episodes.tolist() if (known := data.sampler.dataset.numbers) is None else known[episodes].tolist()
    good = cfg.run_dir / "model.pt"
    return (
        f"Training diverged: a loss or gradient is not finite at step {step:,}. Its batch has {len(numbers)} episodes: "
        f"{', '.join(map(str, numbers[:8]))}{', ...' if len(numbers) > 8 else ''} of {cfg.data_dir}. "
        + (f"{good} is of step {saved:,}, before it. " if saved else "Nothing was saved before. ")
        + "A lower lr or grad_clip_norm may help"
    )


def _evaluate(agent: TDMPC2, cfg: Config, logger: Logger, step: int) -> None:
    videos = cfg.run_dir / "videos"

    def film(task: str, frames: Frames) -> None:
        write_video(videos / f"{task}-{step}.mp4", frames)

    if line := agent.compile_planner(num_steps(cfg)):
        logger.message(line)
    result = evaluate(agent, cfg, film=film)
    if cfg.save_video:  # each was written by the process that played it
        for name in (task.task for task in result.tasks):
            logger.log_video(step, f"video/{name}", videos / f"{name}-{step}.mp4")
    low, high = result.interval or (result.normalized_score, result.normalized_score)
    logger.log(step, {"normalized_score": result.normalized_score, "low": low, "high": high}, "eval")
    columns = ("task", "episodes", "return", "success")
    logger.log_table(step, "eval/tasks", columns, [row[:4] for row in table_rows(result)], curve="return")
    if cfg.save_agent and agent.group.main:  # last, so that an evaluation that was ended before this is made again
        best = run_dir.record_score(agent, cfg.run_dir, step, result.normalized_score, cfg.save_best)
        if best and cfg.save_best:
            _upload(cfg, logger, cfg.run_dir / "best.pt", f"step-{step}", "best")


def _upload(cfg: Config, logger: Logger, path: Path, *aliases: str) -> None:
    logger.save_artifact(path, f"{cfg.task}-{cfg.exp_name or 'default'}", "model", aliases)
