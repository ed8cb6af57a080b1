"""A frozen teacher's outputs for stored episodes, computed once instead of in every update.

``compute_all`` fills columns before training, which then asks for none of them; ``LazyTargets`` fills them as their
rows are used. `tdmpc2 targets DIR TEACHER.pt` does the former. Plans are made elsewhere
(:mod:`tdmpc2.training.plan_labels`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.data.batch import Batch
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.store.teacher_columns import TeacherTargets, episodes_at_once, one_process
from tdmpc2.distillation.outputs import teacher_columns
from tdmpc2.tracking.progress import Progress
from tdmpc2.training.cache_shares import Share, shares, untaught


@torch.no_grad()
def compute_all(
    targets: TeacherTargets | Sequence[TeacherTargets],
    teacher: TDMPC2 | Mapping[str, TDMPC2],
    episodes: Tensor | None = None,
    batch_rows: int = 4096,
) -> None:
    """Compute what is missing, in blocks of episodes, on the teacher's device. It may be interrupted at any moment.

    A block depends on nothing but its episodes, so that the files are in the end the same, however often it was
    interrupted. Nothing is computed, and the teacher may be on any device, if the columns are complete. Several columns
    take one pass of the teacher's encoder. Episodes of tasks without a teacher get zeros.

    Args:
        targets: a column, or several of one store and teacher; no plans.
        teacher: the agent whose file they are of, in fp32; or the teacher of each task.
        episodes: [n] int64, ascending; all by default.
        batch_rows: rows the teacher takes at a time, rounded down to whole episodes, at least one.

    Raises:
        ValueError: a teacher of other tasks, an output that is not finite, or a file that cannot be written.
    """
    columns = [targets] if isinstance(targets, TeacherTargets) else list(targets)
    store, length = columns[0].store, columns[0].values.shape[1] - 1
    of_tasks = shares(teacher, store)
    assert all(share.teacher.precision == "fp32" for share in of_tasks)
    columns = [column for column in columns if not column.complete(episodes)]
    if not columns:
        return
    require_writable(columns)
    episodes = torch.arange(len(store.task)) if episodes is None else episodes.cpu()
    count = max(1, batch_rows // length)
    with one_process(columns[0].path):
        fill_untaught(columns, of_tasks, episodes)
        blocks = [
            (share, own, lacks.any(0).tolist())
            for share in of_tasks
            for own, lacks in _blocks(columns, share.episodes(store, episodes), count)
            if lacks.any()
        ]
        label = f"Teacher's {' and '.join(column.name for column in columns)}"
        verify = store.verifier()
        with Progress(sum(len(own) for _, own, _ in blocks), label, unit="episodes") as bar:
            for share, own, lacks in blocks:
                lacking = [column for column, lack in zip(columns, lacks, strict=True) if lack]
                verify(own)  # outputs of damaged rows would stay after the rows are repaired
                outputs = _outputs(share, [column.name for column in lacking], store, own)
                for column in lacking:
                    write(column, rows_of(own, length), outputs[column.name])
                bar.update(len(own))
        for column in columns:
            column.flush()


def _blocks(columns: Sequence[TeacherTargets], episodes: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of episodes [n], and which of them lack a number of which column, [n, columns]."""
    missing = torch.stack([column.missing(episodes) for column in columns], 1)
    return zip(episodes.split(count), missing.split(count), strict=True)


def rows_of(episodes: Tensor, length: int) -> Tensor:
    """Number the rows of a store that the steps of episodes [n] lead to, [n, L]."""
    return episodes[:, None] * (length + 1) + torch.arange(1, length + 1)


def require_writable(columns: Sequence[TeacherTargets]) -> None:
    """Raise ``ValueError`` for a column whose file cannot be written."""
    for column in columns:
        if not column.writable:
            raise ValueError(f"{column.file} is not complete and cannot be written: change its permissions")


def fill_untaught(columns: Sequence[TeacherTargets], of_tasks: list[Share], episodes: Tensor) -> None:
    """Write zeros for those of the episodes [n] whose tasks have no teacher: their losses do not count."""
    for column in columns:
        own = untaught(of_tasks, column.store, episodes)
        for block in own[column.missing(own)].split(episodes_at_once(column.values.shape)):
            rows = rows_of(block, column.values.shape[1] - 1)
            column.put(rows, torch.zeros(()).expand(*rows.shape, *column.values.shape[2:]))


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
        assert teacher.precision == "fp32"
        shares(teacher, self.columns[0].store)  # refuses a teacher of other tasks
        self._episodes = None if episodes is None else episodes.cpu()

    @torch.no_grad()
    def fill(self, batch: Batch, rows: Tensor) -> Batch:
        """Add ``teacher_reward``, ``teacher_value`` [steps, B, 1] or ``teacher_policy`` [steps, B, 2A] to a batch.

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
                values = found[column.name]
                numbers = outputs[column.name].cpu().view(values.shape)
                write(column, index, numbers)
                found[column.name] = torch.where(values.isnan(), numbers, values)
        filled = {f"teacher_{name}": values.view(*index.shape, -1) for name, values in found.items()}
        if device.type == "cuda":
            filled = {name: values.pin_memory() for name, values in filled.items()}
        return batch._replace(
            **{name: values.to(device, non_blocking=device.type == "cuda") for name, values in filled.items()}
        )


@torch.no_grad()
def _outputs(share: Share, names: Collection[str], store: EpisodeStore, episodes: Tensor) -> dict[str, Tensor]:
    """Compute a teacher's outputs for every step of some episodes [n], each [n, L] or [n, L, W] in main memory."""
    records = torch.cat([store.read(episode, 1) for episode in episodes.tolist()])
    obs, action, _ = store.meta.row_format.split(records)
    before, after = obs[:, :-1].transpose(0, 1), action[:, 1:].transpose(0, 1)  # [L, n, .], what led to a row is in it
    before, after = share.observations(before), share.actions(after)
    outputs = teacher_columns(share.teacher.model, names, before, after, share.context(store, episodes))
    of_rows = {name: share.of_store(name, output, store).transpose(0, 1).cpu() for name, output in outputs.items()}
    return {name: rows if name == "policy" else rows.squeeze(-1) for name, rows in of_rows.items()}


def write(column: TeacherTargets, index: Tensor, numbers: Tensor) -> None:
    """Put numbers into the rows of the store [...] that have none yet.

    Args:
        column: the column.
        index: numbers of the rows, [...].
        numbers: [...] or [..., W].

    Raises:
        ValueError: one is not finite.
    """
    if not (finite := numbers.isfinite()).all():
        where = tuple((~finite).nonzero()[0].tolist())
        row, length = int(index[where[: index.ndim]]), column.values.shape[1]
        raise ValueError(
            f"The teacher's {column.name} is {numbers[where]} in episode {row // length}, row {row % length} of "
            f"{column.store.path}: its weights are damaged or too large. Use another teacher"
        )
    column.put(index, numbers)
