"""Open the data of a run: which form it has, and where its episodes lie while training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.chunks import chunk_paths, read_chunk
from tdmpc2.data.dataset import EpisodeDataset, select_episodes, select_from_chunks
from tdmpc2.data.index import EpisodeIndex
from tdmpc2.data.rows import RowFormat
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.source import OTHER_TASKS, chunk_tasks
from tdmpc2.data.store.importer import check_replaceable, clean_leftovers, ensure_store, find_store
from tdmpc2.data.store.meta import StoreMeta
from tdmpc2.data.store.selection import check_tasks, chunk_fingerprints
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.store.teacher_columns import COLUMNS
from tdmpc2.data.unequal import chunk_index, is_unequal
from tdmpc2.support.runtime import available_memory
from tdmpc2.tracking.progress import Progress

#: Share of the free memory that data may take: the rest is for the model, its activations and other programs.
_SHARE = {"cuda": 0.8, "cpu": 0.6}
#: Batches drawn ahead. Cold pages of a disk are fetched by that many threads at once.
_AHEAD = {"cuda": 0, "cpu": 2, "disk": 8}


class Data(NamedTuple):
    """Data of a run, open."""

    sampler: SliceSampler[EpisodeDataset]
    place: str  # cuda, cpu or disk
    ahead: int  # batches to draw ahead
    store: EpisodeStore | None  # None: chunk files, read into memory
    episodes: Tensor  # [n] numbers in the store of the episodes of the run
    note: str = ""  # a line on episodes that are too short to be drawn from


def choose_place(
    data_device: str,
    device: torch.device,
    size: int,
    what: str = "the episodes",
    remedy: str = "fewer tasks, or max_episodes_per_task",
) -> str:
    """Choose where ``size`` bytes of episodes are to lie: on the GPU if they fit, else in memory, else on disk.

    Args:
        data_device: ``auto``, ``cuda``, ``cpu`` or ``disk``.
        device: the device that trains.
        size: bytes.
        what: they are of, for the message.
        remedy: what makes them fewer, for the message.

    Returns:
        ``cuda``, ``cpu`` or ``disk``.

    Raises:
        ValueError: the place that was asked for is not there or too small.
    """
    if data_device == "disk":
        return "disk"
    if data_device == "cuda" and device.type != "cuda":
        raise ValueError(f"data_device=cuda, but training is on {device}: use auto, cpu or disk")
    if data_device == "auto":
        wanted = ["cuda", "cpu"] if device.type == "cuda" else ["cpu"]
    else:
        wanted = [data_device]
    for place in wanted:
        free = available_memory(device if place == "cuda" else torch.device("cpu"))
        if size <= _SHARE[place] * free:
            return place
    if data_device != "auto":
        raise ValueError(
            f"data_device={data_device}: {size / 1e9:.1f} GB are needed for {what}, and of {free / 1e9:.1f} GB free "
            f"there {_SHARE[place]:.0%} may be used. Use data_device=disk, {remedy}"
        )
    return "disk"


def plan_place(cfg: Config, device: torch.device, columns: Collection[str] = ()) -> str:
    """Choose where the episodes of a run are to lie, see :func:`choose_place`.

    Args:
        cfg: the run.
        device: that trains.
        columns: of a teacher's outputs, by name, that lie beside the episodes.

    Raises:
        ValueError: no data, damaged data or data of another task set; or no room where they were asked to be.
    """
    what = "the episodes and the teacher's outputs for them" if columns else "the episodes"
    return choose_place(cfg.data_device, device, data_bytes(cfg, columns), what)


def data_bytes(cfg: Config, columns: Collection[str] = ()) -> int:
    """Count the bytes of the episodes that a run draws from, and of columns of a teacher's outputs beside them.

    Raises:
        ValueError: no data, damaged data or data of another task set.
    """
    rows, size = _amount(cfg)
    return size + rows * column_bytes(cfg, columns)


def data_rows(cfg: Config) -> int:
    """Count the rows of the episodes that a run draws from; of chunk files that are not looked into, at most.

    Raises:
        ValueError: no data, damaged data or data of another task set.
    """
    return _amount(cfg)[0]


def column_bytes(cfg: Config, columns: Collection[str]) -> int:
    """Count the bytes that some columns of a teacher's outputs have for each row."""
    action_dim = Layout.of(cfg.task_specs).action_dim
    return 4 * sum(math.prod(COLUMNS[name](action_dim)) for name in columns)


def _amount(cfg: Config) -> tuple[int, int]:
    """Count rows and bytes of the episodes of a run."""
    store = _find(cfg.data_dir)
    if store is not None:
        rows = store.index.take(_select(store, cfg)).num_rows
        return rows, rows * store.meta.row_format.record.itemsize
    if cfg.tasks is None and cfg.max_episodes_per_task is None:
        size = sum(path.stat().st_size for path in chunk_paths(cfg.data_dir))
        layout = Layout.of(cfg.task_specs)
        return size // RowFormat(layout.obs_dim, layout.action_dim).record.itemsize, size
    with _naming_the_subset(cfg):
        _, indices, kept = select_from_chunks(cfg.data_dir, cfg.task_specs, cfg.task_ids, cfg.max_episodes_per_task)
    rows = EpisodeIndex.joined(indices).take(kept).num_rows
    return rows, rows * StoreMeta(cfg.task, cfg.task_specs, len(kept)).row_format.record.itemsize


def open_data(cfg: Config, device: torch.device, place: str | None = None) -> Data:
    """Open the data of a run; chunk files that do not fit into memory are imported into a store first.

    Args:
        cfg: ``data_dir``, ``data_device``, ``tasks``, ``task_balance``, ``max_episodes_per_task``; with a
            ``distillation_cache`` chunk files are always imported, since the cache belongs to a store.
        device: the device that trains.
        place: where the episodes are to lie; by default :func:`plan_place` decides.

    Raises:
        ValueError: no data, damaged data or data of another task set.
    """
    place = place or plan_place(cfg, device)
    store = _find(cfg.data_dir)
    if store is None:
        if place != "disk" and cfg.distillation_cache == "off":
            return _read_chunks(cfg, device, place)
        with _naming_the_subset(cfg):
            store = ensure_store(cfg.data_dir, cfg.task, cfg.task_specs)
    else:
        clean_leftovers(cfg.data_dir)
    episodes, own = _select(store, cfg), None
    if place == "disk":
        dataset, own = EpisodeDataset.map(store, cfg.episodic), episodes
    else:
        with Progress(len(episodes), "Loading", unit="episodes") as bar:
            where = device if place == "cuda" else "cpu"
            dataset = EpisodeDataset.read(store, episodes, where, bar.update, cfg.episodic)
    sampler, note = _sampler(cfg, dataset, own)
    return Data(sampler, place, _ahead(place, device), store, episodes, note)


def data_problems(cfg: Config, demonstrations: bool = False) -> list[str]:
    """Look for what the episodes of ``data_dir`` cannot be used for; only the index of those that need one is read.

    Args:
        cfg: ``episodic``, ``distillation_cache`` and the tasks.
        demonstrations: they are shown to a run that learns online; then it is no matter if none terminated.

    Returns:
        One line for each problem.

    Raises:
        ValueError: damaged data.
    """
    store = _find(cfg.data_dir)
    if store is not None:
        found = [store.index] if store.meta.rows is not None else []
    else:
        layout = Layout.of(cfg.task_specs)
        paths = [path for path in chunk_paths(cfg.data_dir, cfg.task) if is_unequal(read_chunk(path))]
        found = [chunk_index(path, layout) for path in paths]
    ended = sum(int((index.terminated & torch.isin(index.task, torch.tensor(cfg.task_ids))).sum()) for index in found)
    problems = []
    if ended and not cfg.episodic:
        problems.append(f"{ended:,} episodes terminated, which episodic=false does not learn from: set episodic=true")
    if not ended and cfg.episodic and not demonstrations:
        problems.append("episodic=true: none of the stored episodes terminated: set episodic=false")
    if found and cfg.distillation_cache != "off":
        problems.append(
            f"distillation_cache={cfg.distillation_cache} is for episodes of one length, and these have lengths of "
            "their own: use distillation_cache=off"
        )
    return problems


def data_record(data_dir: str, task: str = "mt30") -> dict[str, str]:
    """Identify a data set without reading it: fingerprints of chunk files, or a store's checksum.

    A store that was imported from chunk files counts as those files, unless it holds them in half precision.

    Raises:
        ValueError: no data.
    """
    store = _find(data_dir)
    if store is None:
        return chunk_fingerprints(data_dir, task)
    own = dict(store.meta.source) if store.meta.dtype == "float32" else {}
    return own or {"checksum": store.checksum}


def _find(data_dir: str) -> EpisodeStore | None:
    store = find_store(data_dir)
    if store is None:
        root = Path(data_dir)
        check_replaceable(root / "store", root)  # or its episodes would be left out without a word
    return store


def _select(store: EpisodeStore, cfg: Config) -> Tensor:
    check_tasks(f"task={cfg.task}", cfg.task_specs, str(store.path), store.meta.tasks)
    return select_episodes(
        store.task, cfg.task_specs, cfg.task_ids, cfg.data_dir, max_per_task=cfg.max_episodes_per_task
    )


@contextlib.contextmanager
def _naming_the_subset(cfg: Config) -> Iterator[None]:
    """Say in errors how to train on one task of chunk files of many, where a single task was named."""
    try:
        yield
    except ValueError as error:
        if len(cfg.task_specs) > 1 or OTHER_TASKS not in str(error):
            raise
        task, specs = chunk_tasks(cfg.data_dir)
        if len(specs) == 1 or cfg.task not in [spec.name for spec in specs]:
            raise
        raise ValueError(f"{error} To train on one task of {task}: task={task} tasks=[{cfg.task}]") from error


def _read_chunks(cfg: Config, device: torch.device, place: str) -> Data:
    with _naming_the_subset(cfg), Progress(None, "Loading", unit="episodes") as bar:
        dataset = EpisodeDataset.load(
            cfg.data_dir,
            cfg.task_specs,
            cfg.task_ids,
            device if place == "cuda" else "cpu",
            bar.update,
            cfg.max_episodes_per_task,
            cfg.episodic,
        )
    sampler, note = _sampler(cfg, dataset)
    return Data(sampler, place, _ahead(place, device), None, torch.arange(len(dataset)), note)


def _sampler(
    cfg: Config, dataset: EpisodeDataset, own: Tensor | None = None
) -> tuple[SliceSampler[EpisodeDataset], str]:
    """Sample the run's own episodes that a slice fits into, and say in a line if there are others."""
    lengths = dataset.lengths if own is None else dataset.lengths[own]
    short = int((lengths < cfg.horizon).sum())
    note = ""
    if short == len(lengths):
        raise ValueError(
            f"None of the {short:,} episodes in {cfg.data_dir} has the {cfg.horizon} steps that a slice "
            "takes: set horizon lower"
        )
    if short:
        long = (lengths >= cfg.horizon).nonzero().squeeze(1)
        own = long if own is None else own[long]
        note = f"{short:,} of {len(lengths):,} episodes have less than horizon={cfg.horizon} steps: none is drawn"
    return SliceSampler(dataset, own, cfg.task_balance, horizon=cfg.horizon, seed=cfg.seed), note


def _ahead(place: str, device: torch.device) -> int:
    # On a CPU that trains from memory a batch costs 0.1 % of an update: nothing to gain from threads.
    return 0 if place == "cpu" and device.type == "cpu" else _AHEAD[place]
