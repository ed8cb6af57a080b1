"""The demonstrations of a run that learns online: stored episodes that half of each batch is drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.chunks import chunk_paths
from tdmpc2.data.placement import Data, data_bytes, data_problems, data_record, open_data
from tdmpc2.data.ring import ReplayRing
from tdmpc2.data.source import tasks_present
from tdmpc2.data.store.importer import find_store
from tdmpc2.data.unequal import chunk_index
from tdmpc2.distributed import ProcessGroup
from tdmpc2.support.mapped_files import UnchangedFile, name_bus_errors

_OTHER_SEED = 2**32  # beyond the seeds of runs: slices of demonstrations are drawn independently of the buffer's


@dataclass(frozen=True)
class Batches:
    """Batches of a run: all from its buffer, or floor(B/2) slices from demonstrations and the others from the buffer.

    A batch is a function of its number and of what the buffer holds, so that a continued run needs nothing more.

    Attributes:
        cfg: ``batch_size``, ``horizon``, ``seed``.
        replay: the buffer.
        device: where batches are to be.
        demonstrations: open, if there are any.
        notes: lines about them.
        file: watches their file, if they are left on disk.
        group: the processes that share each batch.
    """

    cfg: Config
    replay: ReplayRing
    device: torch.device
    demonstrations: Data | None = None
    notes: tuple[str, ...] = ()
    file: UnchangedFile | None = None
    group: ProcessGroup = ProcessGroup()  # noqa: RUF009

    @classmethod
    def of(
        cls,
        cfg: Config,
        replay: ReplayRing,
        device: torch.device,
        record: Mapping[str, str] | None,
        group: ProcessGroup = ProcessGroup(),  # noqa: B008
    ) -> Batches:
        """Open the demonstrations of a run, if it has any.

        Args:
            cfg: the run's configuration.
            replay: its buffer.
            device: where batches are to be.
            record: identity of the demonstrations when the run was opened.
            group: the processes that share each batch.

        Raises:
            ValueError: damaged data, data of other tasks, or files that were replaced meanwhile.
        """
        if cfg.demonstrations is None:
            return cls(cfg, replay, device, group=group)
        data = open_data(_as_data(cfg), device)
        if demonstrations_record(cfg) != record:
            raise ValueError(f"The files in demonstrations={cfg.demonstrations} were replaced meanwhile: start again")
        file = None
        if data.place == "disk" and data.store is not None:
            path = data.store.path / "rows.npy"
            file = UnchangedFile(data.store.file.fileno(), path)
            name_bus_errors(path)
        line = f"Half of each batch: {len(data.sampler):,} episodes of {cfg.demonstrations}, on {data.place}"
        return cls(cfg, replay, device, data, (line, *filter(None, [data.note])), file, group)

    def draw(self, number: int) -> Batch:
        """Draw this process's share of the batch of update ``number``, counted from 0."""
        cfg, share = self.cfg, self.group.rows(self.cfg.batch_size)
        shown = cfg.batch_size // 2 if self.demonstrations else 0
        rows = self.replay.sampler.rows(number, cfg.batch_size - shown, cfg.horizon, cfg.seed)
        own = rows[:, max(share.start - shown, 0) : max(share.stop - shown, 0)]
        parts = [self.replay.sampler.gather(own).to(self.device)] if own.shape[1] else []
        if self.demonstrations and share.start < shown:
            sampler = self.demonstrations.sampler
            others = sampler.rows(number, shown, cfg.horizon, cfg.seed + _OTHER_SEED)
            parts.insert(0, sampler.gather(others[:, share]).to(self.device))
            if self.file:
                self.file.check()  # what was read from another file is not learned from
        batch = Batch.joined(*parts) if len(parts) > 1 else parts[0]
        if not (self.demonstrations and cfg.bc_coef):
            return batch
        imitated = (torch.arange(cfg.batch_size, device=self.device)[share] < shown).float()
        return batch._replace(demonstrated=imitated[None, :, None])


def demonstrations_record(cfg: Config) -> Mapping[str, str] | None:
    """Identify the demonstrations of a run; None if it has none.

    Raises:
        ValueError: no data.
    """
    return None if cfg.demonstrations is None else data_record(cfg.demonstrations, cfg.task)


def demonstrations_problems(cfg: Config) -> list[str]:
    """Look for what keeps a run from its demonstrations, one line each; nothing if it has none."""
    if cfg.demonstrations is None:
        return []
    try:
        found = data_problems(_as_data(cfg), demonstrations=True)
        data_bytes(_as_data(cfg))
    except ValueError as error:
        found = [str(error)]
    return [f"demonstrations={cfg.demonstrations}: {problem}" for problem in found]


def demonstrations_bytes(cfg: Config) -> int:
    """Count the bytes of the episodes that half of each batch is drawn from."""
    return data_bytes(_as_data(cfg)) if cfg.demonstrations else 0


def _as_data(cfg: Config) -> Config:
    """Describe the demonstrations as the data of a run; those of many tasks may lack some of them."""
    assert cfg.demonstrations is not None
    keys = {"data_dir": cfg.demonstrations, "demonstrations": None, "bc_coef": 0.0}
    keys |= {"share_body": False, "teachers": None}  # of tasks that they may lack
    tasks = cfg.tasks
    if cfg.multitask:
        present = _tasks_present(cfg.demonstrations, cfg)
        tasks = tuple(cfg.task_names[i] for i in cfg.task_ids if cfg.task_names[i] in present)
        if not tasks:
            raise ValueError("it has no episodes of the tasks of this run")
    return cfg.replace(**keys, tasks=tasks)


def _tasks_present(directory: str, cfg: Config) -> set[str]:
    """Find the tasks that demonstrations have; chunk files that no record names are of the run's own task set."""
    if (store := find_store(directory)) is not None:
        return {store.meta.tasks[task_id].name for task_id in store.index.task.unique().tolist()}
    if (Path(directory).expanduser() / "collect.json").exists():
        return set(tasks_present(directory))
    layout = Layout.of(cfg.task_specs)
    ids = [chunk_index(path, layout).task for path in chunk_paths(directory, cfg.task)]
    return {cfg.task_names[task_id] for task_id in torch.cat(ids).unique().tolist()}
