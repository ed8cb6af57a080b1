"""The replay buffer of a run as an episode store: what was learned online is data for everything else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc2.checkpoints.reading import read_file
from tdmpc2.checkpoints.run_state import part_of, state_path
from tdmpc2.config import Config, from_record
from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.index import EpisodeIndex, padded
from tdmpc2.data.ring_files import listed_files, read_episodes
from tdmpc2.data.rows import RowFormat
from tdmpc2.data.store.importer import import_selection
from tdmpc2.data.store.meta import StoreMeta
from tdmpc2.data.store.parts import Part, Verify
from tdmpc2.data.store.selection import Selection
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.unequal import VALUES
from tdmpc2.support.entries import check_entries
from tdmpc2.tasks import TaskSpec
from tdmpc2.training import run_dir, run_record
from tdmpc2.training.state_file import STATE

_AGAIN = "Name another run, or go on with this one until it has saved"


class NoEpisodes(ValueError):
    """A run whose replay buffer has no whole episode."""


def replay_to_store(
    run: Path, out: Path, dtype: str = "float32", quiet: bool = False, alone: bool = False
) -> EpisodeStore:
    """Write the episodes in the replay buffer that a run last saved into a new store, oldest first.

    The run must not be going on meanwhile; it is not changed. A kill is continued as that of other imports.

    Args:
        run: the run's directory.
        out: directory of the store, which must not exist.
        dtype: of observation and action, ``float32`` or ``float16``.
        quiet: print nothing.
        alone: of a run that plays one task of a set, as one that fine-tunes does, the store is of this task, without
            the padding of the set; by default it is of the set, as demonstrations of such runs are.

    Raises:
        ValueError: ``alone`` and a run of several tasks, it is no run that learned online from states, has saved no
            episode yet, or is going on; a file of it is damaged; or see
            :func:`~tdmpc2.data.store.importer.import_episodes`.
    """
    if not (run / "run.json").exists():
        raise ValueError(f"{run} has no run.json: name the directory of a run, such as logs/<task>/<seed>/<exp_name>")
    cfg = from_record(run_record.read_record(run / "run.json"))
    if cfg.mode != "online":
        raise ValueError(f"{run} learned offline and has no replay buffer: its data are in {cfg.data_dir}")
    if cfg.observes_images:
        raise ValueError(
            f"{run} learned from images (obs={cfg.obs}), which episode stores do not hold: keep the run itself"
        )
    with run_dir.lock(run):
        return import_selection(_select(run, cfg, dtype, alone), out, quiet=quiet)


def _select(run: Path, cfg: Config, dtype: str, alone: bool) -> Selection:
    path, directory = state_path(run), run / "replay"
    parts_of_run = check_entries(str(path), read_file(path), STATE, _AGAIN).get("parts", {})
    if "replay" not in parts_of_run:
        raise ValueError(f"{path} holds no replay buffer. {_AGAIN}")
    files, dropped = listed_files(part_of(run, "replay"), parts_of_run["replay"])
    row_format = RowFormat(cfg.obs_dim, cfg.action_dim)
    parts = [_part(directory, file, row_format) for file in files]
    numbers = torch.cat([torch.arange(file["first"], file["last"]) for file in files] or [torch.zeros(0).long()])
    kept = (numbers >= dropped).nonzero().squeeze(1)
    if not len(kept):
        raise NoEpisodes(f"{run} has saved no whole episode yet. {_AGAIN}")
    index = EpisodeIndex.joined([part.index for part in parts]).take(kept)
    if (index.task < 0).any() or (index.task >= len(cfg.task_specs)).any():
        raise ValueError(f"{directory} has an episode of a task that the run does not know. {_AGAIN}")
    layout = Layout.of(cfg.task_specs)
    index.check_lengths(directory, layout.longest, _AGAIN)
    taken = sha256(json.dumps([[file["sha256"] for file in files], kept.tolist()]).encode()).hexdigest()
    task, specs = cfg.task, cfg.task_specs
    if alone:
        if len(cfg.task_ids) > 1:
            raise ValueError(f"alone=true makes data of one task, and {run} plays {len(cfg.task_ids)}: leave it out")
        own = cfg.task_specs[cfg.task_ids[0]].unpadded()
        task, specs = own.name, (own,)
        index = replace(index, task=torch.zeros_like(index.task))
        parts = [_of_one_task(part, own) for part in parts]
    rows = None if index.is_equal(Layout.of(specs).rows - 1) else index.num_rows
    meta = StoreMeta(task, specs, len(kept), dtype, selection=taken, rows=rows)
    return Selection(meta, parts, kept, index, [path, *(part.path for part in parts)], str(run))


def _of_one_task(part: Part, spec: TaskSpec) -> Part:
    """Turn episodes of a padded task into those of a set of this task alone."""
    assert isinstance(part.content, _Saved)
    own = replace(part.content, sizes=(spec.obs_dim, spec.action_dim))
    return replace(part, index=replace(part.index, task=torch.zeros_like(part.index.task)), content=own)


def _part(directory: Path, file: Mapping[str, Any], row_format: RowFormat) -> Part:
    episodes = read_episodes(directory, file, row_format.words)
    index = EpisodeIndex(
        torch.tensor([episode.task for episode in episodes]),
        torch.tensor([len(episode.rows) - 1 for episode in episodes]),
        torch.tensor([episode.terminated for episode in episodes]),
    )
    return Part(directory / file["name"], index, _Saved(directory, file, row_format))


@dataclass
class _Saved:
    """Episodes of one file, in memory while they are compared with its checksum and read."""

    directory: Path
    file: Mapping[str, Any]
    row_format: RowFormat
    sizes: tuple[int, int] | None = None  # of observation and action without padding; None: as they are saved
    rows: Tensor | None = None  # [R, W]

    def read(self, index: EpisodeIndex, episodes: Tensor) -> dict[str, Tensor]:
        assert self.rows is not None
        table = padded(self.rows[index.rows_of(episodes)], index.lengths[episodes])
        values = dict(zip(VALUES, self.row_format.split(table), strict=True))
        if self.sizes is None:
            return values
        widths = dict(zip(("obs", "action"), self.sizes, strict=True))
        return {name: value[..., : widths[name]] if name in widths else value for name, value in values.items()}

    @contextmanager
    def verifying(self, index: EpisodeIndex) -> Iterator[Verify]:
        episodes = read_episodes(self.directory, self.file, self.row_format.words)  # compares the checksum
        self.rows = torch.cat([episode.rows for episode in episodes])
        try:
            yield lambda _: None
        finally:
            self.rows = None
