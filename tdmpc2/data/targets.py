"""A frozen teacher's outputs for stored episodes, computed once instead of in every update.

``compute_all`` fills a column before training, which then needs no teacher; ``LazyTargets`` fills it as its rows are
used. `python -m tdmpc2.data.targets DIR TEACHER.pt` does the former.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor

from tdmpc2 import cli, distill
from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoint import file_sha256
from tdmpc2.data.columns import TeacherTargets, one_process, open_targets
from tdmpc2.data.columns import verify_targets as verify_targets
from tdmpc2.data.dataset import Batch
from tdmpc2.data.importer import ensure_store
from tdmpc2.data.store import EpisodeStore
from tdmpc2.loading import load_agent
from tdmpc2.nn.world_model import TaskContext
from tdmpc2.progress import Progress
from tdmpc2.runtime import set_num_threads


@torch.no_grad()
def compute_all(
    targets: TeacherTargets, teacher: TDMPC2, episodes: Tensor | None = None, batch_rows: int = 4096
) -> None:
    """Compute what is missing, in blocks of episodes, on the teacher's device. It may be interrupted at any moment.

    A block depends on nothing but its episodes, so that the file is in the end the same, however often it was
    interrupted. Nothing is computed, and the teacher may be on any device, if the column is complete.

    Args:
        targets: the column.
        teacher: the agent whose file it is of, in fp32.
        episodes: [n] int64, ascending; all by default.
        batch_rows: rows the teacher takes at a time, rounded down to whole episodes, at least one.

    Raises:
        ValueError: a teacher of other tasks, an output that is not finite, or a file that cannot be written.
    """
    store, length = targets.store, targets.values.shape[1] - 1
    _check_teacher(teacher, store)
    if targets.complete(episodes):
        return
    if not targets.writable:
        raise ValueError(f"{targets.path / 'reward.npy'} is not complete and cannot be written: change its permissions")
    episodes = torch.arange(len(store.task)) if episodes is None else episodes.cpu()
    count = max(1, batch_rows // length)
    # Looking up a task rescales its embedding again where rounding left the norm above 1: one look-up for all blocks.
    tasks = torch.arange(len(store.meta.tasks), device=teacher.device) if teacher.cfg.multitask else None
    context = teacher.model.context(tasks)
    with one_process(targets.path):
        missing = targets.missing(episodes)
        blocks = [own for own, lacks in zip(episodes.split(count), missing.split(count), strict=True) if lacks.any()]
        with Progress(sum(map(len, blocks)), "Teacher's rewards", unit="episodes") as bar:
            for own in blocks:
                rewards = _rewards(teacher, store, own, context)
                rows = own[:, None] * (length + 1) + torch.arange(1, length + 1)
                _write(targets, rows, rewards)
                bar.update(len(own))
        with open(targets.path / "reward.npy", "rb") as file:
            os.fsync(file.fileno())


class LazyTargets:
    """A column that is filled as its rows are used, so that the teacher sees every row at most about once.

    Args:
        targets: the column.
        teacher: the agent whose file it is of, in fp32, on the device of the batches.
        episodes: numbers in the store of the episodes of the data set that batches are drawn from, [n] int64; all by
            default, as in a data set that is left on disk.

    Raises:
        ValueError: a teacher of other tasks.
    """

    def __init__(self, targets: TeacherTargets, teacher: TDMPC2, episodes: Tensor | None = None) -> None:
        _check_teacher(teacher, targets.store)
        self.targets, self.teacher = targets, teacher
        self._episodes = None if episodes is None else episodes.cpu()

    @torch.no_grad()
    def fill(self, batch: Batch, rows: Tensor, steps: int = 1) -> Batch:
        """The batch with ``teacher_reward`` [steps, B, 1].

        What is missing is asked of the file, in the host's memory; only when it is, the device is waited for: the
        teacher takes the whole batch and the new numbers are written.

        Args:
            batch: on the teacher's device.
            rows: its row numbers in the data set, [H+1, B] int64; in host memory, or the device is waited for.
            steps: first steps of the slices, up to H. The reward target uses one, so that the others cost nothing.

        Raises:
            ValueError: an output that is not finite.
        """
        index = rows[1 : steps + 1].cpu()
        if self._episodes is not None:
            length = self.targets.values.shape[1]
            index = self._episodes[index // length] * length + index % length
        values = self.targets.values.view(-1)[index]
        if (missing := values.isnan()).any():
            ids = batch.task if self.teacher.cfg.multitask else None
            output = distill.teacher_reward(self.teacher, batch.obs[:steps], batch.action[:steps], ids)
            rewards = output.squeeze(-1).cpu()
            _write(self.targets, index, rewards)
            values = torch.where(missing, rewards, values)
        values, device = values.unsqueeze(-1), batch.obs.device
        if device.type == "cuda":
            return batch._replace(teacher_reward=values.pin_memory().to(device, non_blocking=True))
        return batch._replace(teacher_reward=values.to(device))


def _check_teacher(teacher: TDMPC2, store: EpisodeStore) -> None:
    assert teacher.precision == "fp32"
    if teacher.cfg.task_specs != store.meta.tasks:
        raise ValueError(
            f"{store.path} holds task={store.meta.task} ({len(store.meta.tasks)} tasks), but the teacher plays "
            f"task={teacher.cfg.task} ({len(teacher.cfg.task_specs)} tasks). Use a teacher of the data's task set"
        )


@torch.no_grad()
def _rewards(teacher: TDMPC2, store: EpisodeStore, episodes: Tensor, context: TaskContext) -> Tensor:
    """The teacher's reward of every step of some episodes [n], on the processor, [n, L]."""
    records = torch.cat([store.read(episode, 1) for episode in episodes.tolist()])
    obs, action, _ = store.meta.row_format.split(records)
    before, after = obs[:, :-1].transpose(0, 1), action[:, 1:].transpose(0, 1)  # [L, n, .], what led to a row is in it
    task = store.task[episodes].to(teacher.device)
    output = distill.teacher_reward(
        teacher,
        before.to(teacher.device).float(),
        after.to(teacher.device).float(),
        TaskContext(*(None if x is None else x[task] for x in context)),
    )
    return output.squeeze(-1).T.cpu()


def _write(targets: TeacherTargets, index: Tensor, rewards: Tensor) -> None:
    """Put rewards into the rows of the store [...] that have none yet."""
    if not (finite := rewards.isfinite()).all():
        row, length = int(index[~finite][0]), targets.values.shape[1]
        raise ValueError(
            f"The teacher's reward is {rewards[~finite][0]} in episode {row // length}, row {row % length} of "
            f"{targets.store.path}: its weights are damaged or too large. Use another teacher"
        )
    flat = targets.values.view(-1)
    missing = flat[index].isnan()
    flat[index[missing]] = rewards[missing]


@cli.one_line_errors
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tdmpc2.data.targets",
        description="Compute a teacher's rewards for all episodes. Training with student_config.distillation_cache="
        "full then needs no teacher. Interrupt it at any moment and start it again to go on.",
    )
    parser.add_argument("data_dir", help="an episode store, or a directory of chunk files, which are imported first")
    parser.add_argument("teacher", help="the teacher's checkpoint")
    parser.add_argument("--task", help="the task of a single-task file that does not name it")
    parser.add_argument("--device", default="auto", help="where the teacher computes (default: auto)")
    parser.add_argument("--batch-rows", type=int, default=4096, help="rows it takes at a time (default: 4096)")
    args = parser.parse_args(argv)
    set_num_threads(None)
    teacher = load_agent(args.teacher, device=args.device, precision="fp32", task=args.task)
    store = ensure_store(args.data_dir, teacher.cfg.task, teacher.cfg.task_specs)
    targets = open_targets(store, file_sha256(args.teacher), Path(args.teacher).name)
    compute_all(targets, teacher, batch_rows=args.batch_rows)
    print(f"{targets.path} is complete")


if __name__ == "__main__":
    main()
