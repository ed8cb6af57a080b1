"""LeRobotDataset v3, written from our data: Parquet files of frames and episodes, and JSON beside them.

A frame is an observation, the action that was chosen from it, and the reward that followed; the last observation of an
episode, which no action followed, has no place in that format and is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc2.data.exchange.new_folder import new_folder
from tdmpc2.data.exchange.rows import Own, OwnData
from tdmpc2.support.extras import install_hint, missing_packages
from tdmpc2.support.files import json_text, write_text
from tdmpc2.tasks import padded_sizes
from tdmpc2.tracking.progress import Progress

_VERSION = "v3.0"
_CHUNK = 1000  # files in a folder
_FILE_MB = 100
_AT_ONCE = 1000  # episodes that are described in memory
_PATH = "chunk-{:03d}/file-{:03d}.parquet"
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

Columns = dict[str, NDArray[Any]]


def export_lerobot(data: OwnData, out: Path, fps: float, robot: str = "unknown") -> int:
    """Write all episodes as a new data set, with the memory of some of them.

    Tasks of several sizes are padded with zeros to the largest. Beside LeRobot's own columns, ``next.terminated`` says
    whether a step ended its episode for good.

    Args:
        data: opened data.
        out: folder to make.
        fps: frames per second, which times are computed by.
        robot: type of the robot, for the metadata.

    Returns:
        Number of frames.

    Raises:
        ValueError: ``out`` exists, ``fps`` is not positive, data are damaged, or the disk refused.
        ModuleNotFoundError: pyarrow is not installed.
    """
    if missing_packages("lerobot"):
        raise ModuleNotFoundError(f"data sets of LeRobot need pyarrow: {install_hint('lerobot')}")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps={fps:g} must be above 0")
    with new_folder(out) as folder, Progress(len(data.index), "Exporting", unit="episodes") as bar:
        writer = _Writer(folder, data, fps)
        for episode in data.episodes():
            writer.add(episode)
            bar.update()
        writer.finish(robot)
    return writer.frames


class _Writer:
    """A data set that grows by episodes."""

    def __init__(self, folder: Path, data: OwnData, fps: float) -> None:
        self._folder, self._fps = folder, fps
        self._tasks = {spec.name: number for number, spec in enumerate(data.tasks)}
        self._obs_dim, self._action_dim = padded_sizes(data.tasks)
        self.frames = 0
        self.count = 0
        self._episodes: list[dict[str, Any]] = []  # that are not yet written
        self._described: Any = None
        self._stats = _Stats()
        self._file, self._parquet = 0, None

    def add(self, episode: Own) -> None:
        """Append an episode."""
        columns = self._columns(episode)
        stats = {name: _Stats.of(values) for name, values in columns.items()}
        self._stats.add(stats)
        table = _table(columns)
        parquet = self._parquet or self._new_file(table.schema)
        parquet.write_table(table)
        length = len(episode.reward)
        self._episodes.append(
            {
                "episode_index": self.count,
                "tasks": [episode.spec.name],
                "length": length,
                "data/chunk_index": self._file // _CHUNK,
                "data/file_index": self._file % _CHUNK,
                "dataset_from_index": self.frames,
                "dataset_to_index": self.frames + length,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **{f"stats/{name}/{key}": value for name, own in stats.items() for key, value in own.items()},
            }
        )
        self.frames += length
        self.count += 1
        if len(self._episodes) == _AT_ONCE:
            self._describe()
        if self._path().stat().st_size > _FILE_MB << 20:
            self._close_file()
            self._file += 1

    def finish(self, robot: str) -> None:
        """Write what describes the data."""
        import pyarrow
        import pyarrow.parquet

        self._close_file()
        meta = self._folder / "meta"
        self._describe()
        self._described.close()
        pyarrow.parquet.write_table(_tasks_table(self._tasks), meta / "tasks.parquet")
        write_text(meta / "stats.json", json_text(self._stats.joined(), indent=4) + "\n")
        write_text(meta / "info.json", json_text(self._info(robot), indent=4) + "\n")

    def _describe(self) -> None:
        """Write what is known of the last episodes."""
        import pyarrow
        import pyarrow.parquet

        if self._described is None:
            path = self._folder / "meta" / "episodes" / _PATH.format(0, 0)
            path.parent.mkdir(parents=True)
            schema = pyarrow.Table.from_pylist(self._episodes).schema
            self._described = pyarrow.parquet.ParquetWriter(path, schema)
        if self._episodes:
            self._described.write_table(pyarrow.Table.from_pylist(self._episodes, self._described.schema))
            self._episodes.clear()

    def _columns(self, episode: Own) -> Columns:
        steps = len(episode.reward)
        obs = np.zeros((steps, self._obs_dim), np.float32)
        action = np.zeros((steps, self._action_dim), np.float32)
        obs[:, : episode.spec.obs_dim] = episode.obs[:-1]
        action[:, : episode.spec.action_dim] = episode.action
        frame = np.arange(steps, dtype=np.int64)
        last = frame == steps - 1
        return {
            "observation.state": obs,
            "action": action,
            "next.reward": episode.reward,
            "next.done": last,
            "next.terminated": last & episode.terminated,
            "timestamp": (frame / self._fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(steps, self.count, np.int64),
            "index": frame + self.frames,
            "task_index": np.full(steps, self._tasks[episode.spec.name], np.int64),
        }

    def _path(self) -> Path:
        return self._folder / "data" / _PATH.format(self._file // _CHUNK, self._file % _CHUNK)

    def _new_file(self, schema: Any) -> Any:
        import pyarrow.parquet

        self._path().parent.mkdir(parents=True, exist_ok=True)
        # Real numbers hardly ever repeat, and looking for repetitions takes most of the time.
        self._parquet = pyarrow.parquet.ParquetWriter(self._path(), schema, use_dictionary=False)
        return self._parquet

    def _close_file(self) -> None:
        if self._parquet is not None:
            self._parquet.close()
            self._parquet = None

    def _info(self, robot: str) -> dict[str, Any]:
        kinds = {
            "observation.state": ("float32", self._obs_dim), "action": ("float32", self._action_dim),
            "next.reward": ("float32", 1), "next.done": ("bool", 1), "next.terminated": ("bool", 1),
            "timestamp": ("float32", 1), "frame_index": ("int64", 1), "episode_index": ("int64", 1),
            "index": ("int64", 1), "task_index": ("int64", 1),
        }  # fmt: skip
        return {
            "codebase_version": _VERSION,
            "robot_type": robot,
            "total_episodes": self.count,
            "total_frames": self.frames,
            "total_tasks": len(self._tasks),
            "chunks_size": _CHUNK,
            "data_files_size_in_mb": _FILE_MB,
            "video_files_size_in_mb": 200,
            "fps": int(self._fps) if float(self._fps).is_integer() else self._fps,
            "splits": {"train": f"0:{self.count}"},
            "data_path": _DATA,
            "video_path": None,
            "features": {
                name: {"dtype": dtype, "shape": [size], "names": None} for name, (dtype, size) in kinds.items()
            },
        }


class _Stats:
    """Least, largest, mean and standard deviation of columns, over all that is added."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[str, NDArray[np.float64]]] = {}

    @staticmethod
    def of(values: NDArray[Any]) -> dict[str, list[float]]:
        """Describe a column of an episode, [T] or [T, n]; each entry is a list of n numbers, ``count`` of one."""
        table = values.reshape(len(values), -1).astype(np.float64)
        found = {"min": table.min(0), "max": table.max(0), "mean": table.mean(0), "std": table.std(0)}
        return {**{name: numbers.tolist() for name, numbers in found.items()}, "count": [len(table)]}

    def add(self, episode: Mapping[str, Mapping[str, list[float]]]) -> None:
        """Join the numbers of an episode to those of the others."""
        for name, numbers in episode.items():
            new = {key: np.asarray(value, np.float64) for key, value in numbers.items()}
            self._parts[name] = _join(self._parts[name], new) if name in self._parts else new

    def joined(self) -> dict[str, dict[str, list[float]]]:
        """Numbers of all episodes, by column."""
        return {
            name: {key: [int(value[0])] if key == "count" else value.tolist() for key, value in numbers.items()}
            for name, numbers in self._parts.items()
        }


def _join(a: dict[str, NDArray[np.float64]], b: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Join two descriptions: the variance of all is the mean of both and that of their means."""
    count = a["count"] + b["count"]
    mean = (a["count"] * a["mean"] + b["count"] * b["mean"]) / count
    parts = [part["count"] * (part["std"] ** 2 + (part["mean"] - mean) ** 2) for part in (a, b)]
    return {
        "min": np.minimum(a["min"], b["min"]),
        "max": np.maximum(a["max"], b["max"]),
        "mean": mean,
        "std": np.sqrt((parts[0] + parts[1]) / count),
        "count": count,
    }


def _table(columns: Columns) -> Any:
    import pyarrow

    arrays = {}
    for name, values in columns.items():
        flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
        arrays[name] = pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat
    return pyarrow.table(arrays)


def _tasks_table(tasks: Mapping[str, int]) -> Any:
    """Tasks with their numbers; the name is what pandas, which LeRobot reads it with, has as the index."""
    import pyarrow

    table = pyarrow.table({"task_index": pyarrow.array(list(tasks.values()), pyarrow.int64()), "task": list(tasks)})
    text = {"pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    whole = {"pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": "task_index", "field_name": "task_index", **whole},
            {"name": "task", "field_name": "task", **text},
        ],
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
