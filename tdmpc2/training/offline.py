"""Offline training on stored episodes, with or without a teacher: docs/algorithm.md, "Offline training"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.data.placement import Data, data_record, open_data, plan_place
from tdmpc2.data.reward_range import beyond_bins
from tdmpc2.distributed import process_group
from tdmpc2.play.evaluation import evaluate
from tdmpc2.support.mapped_files import UnchangedFile, name_bus_errors
from tdmpc2.training import run_record
from tdmpc2.training.callbacks import Callback
from tdmpc2.training.divergence import Diagnosis, diagnosis_of
from tdmpc2.training.loop import Run
from tdmpc2.training.preflight import dry_run, preflight
from tdmpc2.training.teacher import add_targets, cached_columns, check_made, fit_pca, made_outputs


def train(cfg: Config, teacher_cfg: Config | None, callbacks: Sequence[Callback] = ()) -> Path:
    """Train until ``cfg.steps``, continuing the run in ``cfg.run_dir`` if there is one.

    Started by torchrun, the processes share each batch; how many they are changes nothing but rounding.

    Args:
        cfg: the student.
        teacher_cfg: names the teacher's checkpoint; its architecture is the file's own.
        callbacks: are told what happens, and may end the run (:mod:`tdmpc2.training.callbacks`).

    Returns:
        The deployable checkpoint, ``<run_dir>/model.pt``.

    Raises:
        ValueError: something is missing or does not fit, the directory belongs to another run or process, or the
            training diverged.
        SystemExit: with code :data:`~tdmpc2.training.guards.STOPPED` after SIGTERM or SIGINT, when all is saved.
    """
    with process_group(cfg.device) as group:
        group.rows(cfg.batch_size)  # refused here, before anything is written
        if cfg.dry_run:
            if group.main:
                print(*dry_run(cfg, teacher_cfg, group.world_size), sep="\n")
            return cfg.run_dir / "model.pt"
        preflight(cfg, teacher_cfg)
        with Run.open(cfg, teacher_cfg, group, evaluate, data_record(cfg.data_dir, cfg.task)) as run:
            run.tell(callbacks)
            if not run.finished():
                _learn(run)
            return run.model_path


def _learn(run: Run) -> None:
    cfg, agent, group = run.cfg, run.agent, run.group
    share = group.rows(cfg.batch_size)
    columns = cached_columns(cfg) if run.teacher else ()
    if run.teacher and columns:
        check_made(cfg, run.teacher)  # before chunk files are imported, which takes long
    data_device = group.from_main(lambda: plan_place(cfg, agent.device, columns))
    with group.main_first():
        data, lazy_targets = open_data(cfg, agent.device, data_device), None
        if run.teacher and columns:
            data, lazy_targets = add_targets(data, run.teacher, cfg, agent.device, run.live_teacher)
            if made := made_outputs(data, run.teacher, cfg):
                run.attach("made outputs", made)
                run.resumed.record[run_record.MADE] = made.state()
    if data_record(cfg.data_dir, cfg.task) != run.resumed.record["data"]:
        raise ValueError(f"The files in data_dir={cfg.data_dir} were replaced while they were read: start again")
    sampler = data.sampler
    pca_line = fit_pca(agent, sampler)

    def rows(step: int) -> Tensor:  # [H+1, B], of all processes
        return sampler.rows(step - 1, cfg.batch_size, cfg.horizon, cfg.seed)

    watched = None
    if data.place == "disk" and data.store is not None:
        path = data.store.path / "rows.npy"
        watched = UnchangedFile(data.store.file.fileno(), path)
        name_bus_errors(path)

    def draw(step: int) -> Batch:
        if watched:
            watched.check()
        batch = sampler.gather(rows(step)[:, share])
        if watched:
            watched.check()  # what was read meanwhile is not learned from
        return batch

    def diagnose(step: int) -> Diagnosis:
        batch = sampler.gather(rows(step))  # of all processes: the damage may be in the share of another one
        return diagnosis_of(f"Its batch has {_episodes(data, rows(step))} of {cfg.data_dir}", batch, cfg.data_dir)

    notes = data.note, pca_line, _reward_warning(cfg, draw(run.resumed.step + 1))
    run.start(f"{len(sampler):,} episodes on {data.place}", *notes, diagnose=diagnose)
    for step, batch in run.batches(draw, data.ahead):
        if lazy_targets:
            with run.saved_before_changed_files():
                batch = lazy_targets.fill(batch, rows(step)[:, share])
        run.after_update(step, run.update(batch))


def _reward_warning(cfg: Config, batch: Batch) -> str:
    """Look at the rewards of one batch, as a sample of the data."""
    of_task = {task_id: batch.reward[:, batch.task == task_id] for task_id in batch.task.unique().tolist()}
    return next(filter(None, (beyond_bins(cfg, r, cfg.task_specs[i].name) for i, r in of_task.items())), "")


def _episodes(data: Data, rows: Tensor) -> str:
    """Name the episodes that rows [H+1, B] are of, by their numbers in the files."""
    dataset = data.sampler.dataset
    episodes = dataset.episode_of(rows[0]).unique().cpu()
    numbers = (episodes if dataset.numbers is None else dataset.numbers[episodes]).tolist()
    return f"{len(numbers)} episodes: {', '.join(map(str, numbers[:8]))}{', ...' if len(numbers) > 8 else ''}"
