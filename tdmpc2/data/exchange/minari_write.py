"""Data sets of Minari, written from our data: one for each task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tdmpc2.data.exchange.new_folder import new_folder
from tdmpc2.data.exchange.rows import Own, OwnData
from tdmpc2.support.extras import install_hint, missing_packages
from tdmpc2.support.text import shown
from tdmpc2.support.version import version
from tdmpc2.tasks import TaskSpec
from tdmpc2.tracking.progress import Progress

FORMATS = ("hdf5", "arrow", "parquet")
_NAME = re.compile(r"[A-Za-z0-9_]{1,60}")


def export_minari(data: OwnData, out: Path, name: str = "episodes", form: str = "hdf5") -> list[str]:
    """Write a data set for each task, in a new folder that Minari reads as its own (``MINARI_DATASETS_PATH``).

    Observations, actions in [-1, 1] and rewards are stored in float32 as they are here. An episode that did not
    terminate is marked as truncated. The memory it takes is that of an episode.

    Args:
        data: opened data.
        out: folder to make.
        name: of the data sets: their ids are ``TASK/NAME-v0``.
        form: ``hdf5``, ``arrow`` or ``parquet``.

    Returns:
        The ids.

    Raises:
        ValueError: ``out`` exists, a name has another form, data are damaged, or the disk refused.
        ModuleNotFoundError: Minari is not installed.
    """
    if missing := missing_packages("minari"):
        raise ModuleNotFoundError(f"data sets of Minari need {missing[0]}: {install_hint('minari')}")
    if not _NAME.fullmatch(name):
        raise ValueError(f"name={shown(name)} must be of letters, digits and _, such as expert")
    ids = {spec: f"{_slug(spec.name)}/{name}-v0" for spec in data.tasks}
    if len(set(ids.values())) < len(ids):
        raise ValueError(
            f"two tasks would both be {min(ids.values())}: keep some of them, `tdmpc2 data convert tasks=...`"
        )
    with new_folder(out) as folder, Progress(len(data.index), "Exporting", unit="episodes") as bar:
        for spec, dataset_id in ids.items():
            storage = _new_storage(folder / dataset_id / "data", dataset_id, spec, form)
            storage.update_episodes(_buffers(data, spec, bar))  # which takes one after the other
    return list(ids.values())


def _slug(task: str) -> str:
    """Name a task as ids can: letters, digits, ``_`` and ``-``."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", task).strip("-")
    return slug if len(slug) > 1 else f"task-{slug}"


def _new_storage(path: Path, dataset_id: str, spec: TaskSpec, form: str) -> Any:
    from gymnasium.spaces import Box
    from minari import __version__
    from minari.dataset.minari_storage import MinariStorage

    path.mkdir(parents=True)
    storage = MinariStorage.new(
        path.absolute(),  # of a relative one it cannot tell the size
        Box(-np.inf, np.inf, (spec.obs_dim,), np.float32),
        Box(-1.0, 1.0, (spec.action_dim,), np.float32),
        data_format=form,
    )
    storage.update_metadata(
        {
            "dataset_id": dataset_id,
            "minari_version": __version__,
            "tdmpc2_task": spec.name,
            "description": f"Episodes of {spec.name}, exported by TD-MPC-Opt {version()}; actions are in [-1, 1].",
        }
    )
    return storage


def _buffers(data: OwnData, spec: TaskSpec, bar: Progress) -> Iterator[Any]:
    for episode in data.episodes(spec):
        yield _buffer(episode)
        bar.update()


def _buffer(episode: Own) -> Any:
    from minari.data_collector.episode_buffer import EpisodeBuffer

    ends = {"terminations": episode.terminated, "truncations": not episode.terminated}
    marks = {name: np.zeros(len(episode.reward), bool) for name in ends}
    for name, end in ends.items():
        marks[name][-1] = end
    return EpisodeBuffer(
        observations=np.ascontiguousarray(episode.obs),
        actions=np.ascontiguousarray(episode.action),
        rewards=np.ascontiguousarray(episode.reward),
        infos={},
        **marks,
    )
