"""The replay buffer of a run as an episode store: what was learned online is data for everything else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tdmpc2.checkpoints.reading import read_file
from tdmpc2.checkpoints.run_state import part_of, state_path
from tdmpc2.config import Config, from_record
from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.data_target import find_set, specs_of
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
from tdmpc2.tasks import TaskSpec, nearest, padded_sizes
from tdmpc2.training import run_dir, run_record
from tdmpc2.training.state_file import STATE

_AGAIN = "Name another run, or go on with this one until it has saved"


class NoEpisodes(ValueError):
    """A run whose replay buffer has no whole episode."""


def replay_to_store(
    run: Path,
    out: Path,
    dtype: str = "float32",
    quiet: bool = False,
    alone: bool = False,
    task_set: str | None = None,
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
        task_set: the set that the episodes are stored as part of, with its ids and padding, to be merged with other
            data of it: ``mt30``, ``mt80`` or one of the user's own (``my_set.yaml``); None: that of the run.

    Raises:
        ValueError: ``alone`` and a run of several tasks or a ``task_set``, which lacks a task of the run or has one of
            this name with other sizes or shorter episodes; it is no run that learned online from states, has saved no
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
        return import_selection(_select(run, cfg, dtype, alone, task_set), out, quiet=quiet)


def _select(run: Path, cfg: Config, dtype: str, alone: bool, task_set: str | None) -> Selection:
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
    index.check_lengths(directory, Layout.of(cfg.task_specs).longest, _AGAIN)
    taken = sha256(json.dumps([[file["sha256"] for file in files], kept.tolist()]).encode()).hexdigest()
    task, specs = cfg.task, cfg.task_specs
    if alone and task_set is not None:
        raise ValueError("alone=true makes data of one task, and task_set of a set: leave one of them out")
    if alone:
        if len(cfg.task_ids) > 1:
            raise ValueError(f"alone=true makes data of one task, and {run} plays {len(cfg.task_ids)}: leave it out")
        own = cfg.task_specs[cfg.task_ids[0]].unpadded()
        task, specs = own.name, (own,)
    elif task_set is not None:
        found = find_set(task_set)
        task, specs = found.name, specs_of(found)
    if specs != cfg.task_specs:
        index, parts = _stored_as(specs, task, cfg, index, parts)
        index.check_lengths(directory, Layout.of(specs).longest, f"{task} has shorter episodes: name another task_set")
    rows = None if index.is_equal(Layout.of(specs).rows - 1) else index.num_rows
    meta = StoreMeta(task, specs, len(kept), dtype, selection=taken, rows=rows)
    return Selection(meta, parts, kept, index, [path, *(part.path for part in parts)], str(run))


def _stored_as(
    specs: Sequence[TaskSpec], task_set: str, cfg: Config, index: EpisodeIndex, parts: Sequence[Part]
) -> tuple[EpisodeIndex, list[Part]]:
    """Turn episodes of a run into those of another set that has its tasks, with the ids and padding of this set."""
    names = [spec.name for spec in specs]
    ids = torch.full((len(cfg.task_specs),), -1)
    for number in index.task.unique().tolist():
        own = cfg.task_specs[number]
        if own.name not in names:
            raise ValueError(f"'{own.name}' is not a task of {task_set}.{nearest(own.name, names)}")
        ids[number] = position = names.index(own.name)
        other = specs[position]
        if (own.obs_dim, own.action_dim, own.image) != (other.obs_dim, other.action_dim, other.image):
            raise ValueError(
                f"'{own.name}' has {own.obs_dim} numbers in an observation and {own.action_dim} in an action here, and "
                f"{other.obs_dim} and {other.action_dim} in {task_set}: name another task_set"
            )
    sizes = padded_sizes(specs)
    moved = [
        replace(
            part,
            index=replace(part.index, task=ids[part.index.task]),
            content=replace(cast(_Saved, part.content), sizes=sizes),
        )
        for part in parts
    ]
    return replace(index, task=ids[index.task]), moved


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
    sizes: tuple[int, int] | None = None  # that observation and action are cut or padded to; None: as they are saved
    rows: Tensor | None = None  # [R, W]

    def read(self, index: EpisodeIndex, episodes: Tensor) -> dict[str, Tensor]:
        assert self.rows is not None
        table = padded(self.rows[index.rows_of(episodes)], index.lengths[episodes])
        values = dict(zip(VALUES, self.row_format.split(table), strict=True))
        if self.sizes is None:
            return values
        return values | {
            name: _resized(values[name], size) for name, size in zip(("obs", "action"), self.sizes, strict=True)
        }

    @contextmanager
    def verifying(self, index: EpisodeIndex) -> Iterator[Verify]:
        episodes = read_episodes(self.directory, self.file, self.row_format.words)  # compares the checksum
        self.rows = torch.cat([episode.rows for episode in episodes])
        try:
            yield lambda _: None
        finally:
            self.rows = None


def _resized(value: Tensor, size: int) -> Tensor:
    """Cut off padding, or add some."""
    missing = size - value.shape[-1]
    if missing <= 0:
        return value[..., :size]
    filling = torch.where(value[..., :1].isnan(), torch.nan, 0.0)  # the row without an action has none in the padding
    return torch.cat([value, filling.expand(*value.shape[:-1], missing)], dim=-1)
