"""A frozen teacher's outputs for stored episodes, computed once instead of in every update.

``compute_all`` fills columns before training, which then needs no teacher; ``LazyTargets`` fills them as their rows are
used. `tdmpc2 targets DIR TEACHER.pt` does the former.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.data.batch import Batch
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.store.teacher_columns import TeacherTargets, one_process
from tdmpc2.distillation.outputs import teacher_columns
from tdmpc2.nn.world_model import TaskContext
from tdmpc2.tracking.progress import Progress


@torch.no_grad()
def compute_all(
    targets: TeacherTargets | Sequence[TeacherTargets],
    teacher: TDMPC2,
    episodes: Tensor | None = None,
    batch_rows: int = 4096,
) -> None:
    """Compute what is missing, in blocks of episodes, on the teacher's device. It may be interrupted at any moment.

    A block depends on nothing but its episodes, so that the files are in the end the same, however often it was
    interrupted. Nothing is computed, and the teacher may be on any device, if the columns are complete. Several columns
    take one pass of the teacher's encoder.

    Args:
        targets: a column, or several of one store and teacher.
        teacher: the agent whose file they are of, in fp32.
        episodes: [n] int64, ascending; all by default.
        batch_rows: rows the teacher takes at a time, rounded down to whole episodes, at least one.

    Raises:
        ValueError: a teacher of other tasks, an output that is not finite, or a file that cannot be written.
    """
    columns = [targets] if isinstance(targets, TeacherTargets) else list(targets)
    store, length = columns[0].store, columns[0].values.shape[1] - 1
    _check_teacher(teacher, store)
    columns = [column for column in columns if not column.complete(episodes)]
    for column in columns:
        if not column.writable:
            raise ValueError(f"{column.file} is not complete and cannot be written: change its permissions")
    if not columns:
        return
    episodes = torch.arange(len(store.task)) if episodes is None else episodes.cpu()
    count = max(1, batch_rows // length)
    # A look-up rescales an embedding whose norm is above 1, if only by rounding. One look-up serves all blocks, so
    # that all of them see the same embedding.
    tasks = torch.arange(len(store.meta.tasks), device=teacher.device) if teacher.cfg.multitask else None
    context = teacher.model.context(tasks)
    with one_process(columns[0].path):
        missing = torch.stack([column.missing(episodes) for column in columns], 1)  # [n, columns]
        pairs = zip(episodes.split(count), missing.split(count), strict=True)
        blocks = [(own, lacks.any(0).tolist()) for own, lacks in pairs if lacks.any()]
        label = f"Teacher's {' and '.join(column.name for column in columns)}"
        with Progress(sum(len(own) for own, _ in blocks), label, unit="episodes") as bar:
            for own, lacks in blocks:
                lacking = [column for column, lack in zip(columns, lacks, strict=True) if lack]
                outputs = _outputs(teacher, [column.name for column in lacking], store, own, context)
                rows = own[:, None] * (length + 1) + torch.arange(1, length + 1)
                for column in lacking:
                    _write(column, rows, outputs[column.name])
                bar.update(len(own))
        for column in columns:
            for path in (column.file, column.check_file):
                with open(path, "r+b") as file:
                    os.fsync(file.fileno())


class LazyTargets:
    """Columns that are filled as their rows are used, so that the teacher sees every row at most about once.

    Args:
        targets: a column, or several of one store and teacher.
        teacher: the agent whose file they are of, in fp32, on the device of the batches.
        episodes: numbers in the store of the episodes of the data set that batches are drawn from, [n] int64; all by
            default, as in a data set that is left on disk.
        steps: first steps of the slices that are filled, up to H. Most distillation targets use one.

    Raises:
        ValueError: a teacher of other tasks.
    """

    def __init__(
        self,
        targets: TeacherTargets | Sequence[TeacherTargets],
        teacher: TDMPC2,
        episodes: Tensor | None = None,
        steps: int = 1,
    ) -> None:
        self.columns = [targets] if isinstance(targets, TeacherTargets) else list(targets)
        self.teacher, self.steps = teacher, steps
        _check_teacher(teacher, self.columns[0].store)
        self._episodes = None if episodes is None else episodes.cpu()

    @torch.no_grad()
    def fill(self, batch: Batch, rows: Tensor) -> Batch:
        """Add ``teacher_reward`` or ``teacher_value`` [steps, B, 1], or both, to a batch.

        The outputs are read from the files. If any is missing, the teacher computes the whole batch and the new outputs
        are written to the files; only then does the host wait for the device.

        Args:
            batch: on the teacher's device.
            rows: its row numbers in the data set, [H+1, B] int64, in host memory: elsewhere the host would
                have to wait for the device.

        Raises:
            ValueError: an output that is not finite.
        """
        steps, device = self.steps, batch.obs.device
        index = rows[1 : steps + 1].cpu()
        if self._episodes is not None:
            length = self.columns[0].values.shape[1]
            index = self._episodes[index // length] * length + index % length
        found = {column.name: column.take(index) for column in self.columns}
        lacking = [column for column in self.columns if found[column.name].isnan().any()]
        if lacking:
            ids = batch.task if self.teacher.cfg.multitask else None
            names = [column.name for column in lacking]
            outputs = teacher_columns(self.teacher.model, names, batch.obs[:steps], batch.action[:steps], ids)
            for column in lacking:
                numbers, values = outputs[column.name].squeeze(-1).cpu(), found[column.name]
                _write(column, index, numbers)
                found[column.name] = torch.where(values.isnan(), numbers, values)
        filled = {f"teacher_{name}": values.unsqueeze(-1) for name, values in found.items()}
        if device.type == "cuda":
            filled = {name: values.pin_memory() for name, values in filled.items()}
        return batch._replace(
            **{name: values.to(device, non_blocking=device.type == "cuda") for name, values in filled.items()}
        )


def _check_teacher(teacher: TDMPC2, store: EpisodeStore) -> None:
    assert teacher.precision == "fp32"
    if teacher.cfg.task_specs != store.meta.tasks:
        raise ValueError(
            f"{store.path} holds task={store.meta.task} ({len(store.meta.tasks)} tasks), but the teacher plays "
            f"task={teacher.cfg.task} ({len(teacher.cfg.task_specs)} tasks). Use a teacher of the data's task set"
        )


@torch.no_grad()
def _outputs(
    teacher: TDMPC2, names: Collection[str], store: EpisodeStore, episodes: Tensor, context: TaskContext
) -> dict[str, Tensor]:
    """Compute the teacher's outputs for every step of some episodes [n], each [n, L] in main memory."""
    records = torch.cat([store.read(episode, 1) for episode in episodes.tolist()])
    obs, action, _ = store.meta.row_format.split(records)
    before, after = obs[:, :-1].transpose(0, 1), action[:, 1:].transpose(0, 1)  # [L, n, .], what led to a row is in it
    task = store.task[episodes].to(teacher.device)
    outputs = teacher_columns(
        teacher.model,
        names,
        before.to(teacher.device).float(),
        after.to(teacher.device).float(),
        context.for_rows(task) if teacher.cfg.multitask else context,
    )
    return {name: output.squeeze(-1).T.cpu() for name, output in outputs.items()}


def _write(column: TeacherTargets, index: Tensor, numbers: Tensor) -> None:
    """Put numbers into the rows of the store [...] that have none yet."""
    if not (finite := numbers.isfinite()).all():
        row, length = int(index[~finite][0]), column.values.shape[1]
        raise ValueError(
            f"The teacher's {column.name} is {numbers[~finite][0]} in episode {row // length}, row {row % length} of "
            f"{column.store.path}: its weights are damaged or too large. Use another teacher"
        )
    column.put(index, numbers)
