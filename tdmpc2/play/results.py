"""Evaluation results as a table, as files and as videos."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from tdmpc2.config import Config
from tdmpc2.envs.registry import MIXED
from tdmpc2.play.evaluation import Evaluation
from tdmpc2.play.protocols import difference
from tdmpc2.play.rollout import first_frames, rendered_tasks
from tdmpc2.support.extras import install_hint
from tdmpc2.support.files import json_text, locked, read_json, replacing, write_text
from tdmpc2.support.intervals import Interval, bootstrap, format_interval
from tdmpc2.support.tables import Cells, terminal_table

_BUSY = "Another process is evaluating"


class TaskRow(NamedTuple):
    """The results of one task in numbers."""

    task: str
    episodes: int
    mean_return: float
    success: float | None  # mean; None where the task has no notion of success
    interval: Interval | None  # of the mean return; None with one episode


def table_rows(result: Evaluation) -> list[TaskRow]:
    """Summarise every task of an evaluation."""
    return [
        TaskRow(
            t.task,
            len(t.returns),
            float(np.mean(t.returns)),
            float(np.mean(t.successes)) if t.knows_success else None,
            bootstrap([np.array(t.returns)]),
        )
        for t in result.tasks
    ]


def table(result: Evaluation, title: str) -> Table:
    """Arrange the results for the terminal: a row per task and the score below.

    There is a column for success only where one of the tasks has a notion of it.
    """
    rows = table_rows(result)
    succeeds = any(row.success is not None for row in rows)
    headings = ["task", "episodes", "return", "95 % interval", *(["success"] if succeeds else [])]
    cells = [
        [
            row.task,
            str(row.episodes),
            f"{row.mean_return:.1f}",
            format_interval(row.interval),
            *(["-" if row.success is None else f"{row.success:.2f}"] if succeeds else []),
        ]
        for row in rows
    ]
    label = {"return": "mean return", MIXED: "score"}.get(result.score_label, result.score_label)
    score = "-" if result.mixed else f"{result.normalized_score:.2f}"
    total = [label, "", score, format_interval(result.interval), *([""] if succeeds else [])]
    return terminal_table(Cells(title, headings, cells, total))


@contextlib.contextmanager
def fresh_directory(path: Path) -> Iterator[Path]:
    """Take a directory without results: ``path``, or the first free one of ``path-2``, ``path-3``, ...

    A lock file beside it keeps other processes out, and ends with this process even if that is killed. What an
    evaluation leaves that ended before its first episodes is no result, so the next one takes the same directory.

    Raises:
        ValueError: the directory cannot be written to.
    """
    path = path.absolute()
    with contextlib.ExitStack() as stack:
        for number in itertools.count(1):
            directory = path.with_name(f"{path.name}-{number}") if number > 1 else path
            if _has_results(directory):
                continue
            lock = directory.with_name(f".{directory.name}.lock")
            try:
                stack.enter_context(locked(lock, _BUSY))
            except ValueError as error:
                if str(error) != _BUSY:
                    raise
                continue
            if not _has_results(directory):  # while it was not locked
                break
            stack.close()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            yield directory.relative_to(Path.cwd()) if directory.is_relative_to(Path.cwd()) else directory
        finally:
            if not _has_results(directory):
                (directory / "results.csv").unlink(missing_ok=True)  # older versions left an empty one
                with contextlib.suppress(OSError):
                    directory.rmdir()
            with contextlib.suppress(OSError):  # Windows keeps a file that is locked
                lock.unlink()


def _has_results(directory: Path) -> bool:
    file = directory / "results.csv"
    return file.exists() and file.stat().st_size > 0


def write_results(
    directory: Path, result: Evaluation, protocol: dict[str, Any], facts: Mapping[str, Any] | None = None
) -> None:
    """Write ``results.json`` (protocol, versions, scores) and ``results.csv``, see :func:`write_episodes`.

    Args:
        directory: where to.
        result: of the evaluation.
        protocol: what the scores depend on.
        facts: more about the model and the evaluation, on which scores do not depend: parameters, seconds.

    Raises:
        ValueError: the disk refused.
    """
    tasks = [
        {
            "task": row.task,
            "episodes": row.episodes,
            "return": row.mean_return,
            "success": row.success,
            "return_interval": row.interval,
        }
        for row in table_rows(result)
    ]
    summary = {
        "normalized_score": result.normalized_score,
        "score_label": result.score_label,
        "interval": result.interval,
        "aggregates": {a.name: {"value": a.value, "interval": a.interval} for a in result.aggregates},
        **(facts or {}),
        "protocol": protocol,
        "versions": versions(),
        "tasks": tasks,
    }
    write_episodes(directory, result)
    write_text(directory / "results.json", json_text(summary, indent=2) + "\n")


def why_another(directory: Path, wanted: Path, protocol: dict[str, Any]) -> str:
    """Say why results are not in the directory that was wanted.

    Args:
        directory: where they are, as from :func:`fresh_directory`.
        wanted: what it was asked for.
        protocol: of this evaluation.

    Returns:
        In brackets what is there instead, or nothing if this is the directory that was wanted.
    """
    if directory.absolute() == wanted.absolute():
        return ""
    try:
        earlier = read_json(wanted / "results.json")["protocol"]
        changes = difference(earlier, protocol)
    except (ValueError, KeyError, TypeError):
        whole = (wanted / "results.json").exists()
        found = "other results" if whole else "episodes of an evaluation that did not end: delete it to use its name"
        return f" ({wanted.name} holds {found})"
    same = f"the same with {changes}" if changes else "one with the same settings"
    return f" ({wanted.name} holds {same})"


def write_episodes(directory: Path, result: Evaluation) -> None:
    """Write ``results.csv``: every episode's task, seed, return and success, which is empty where it means nothing.

    Raises:
        ValueError: the disk refused.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["task", "seed", "return", "success"])
    for t in result.tasks:
        successes = t.successes if t.knows_success else [""] * len(t.seeds)
        writer.writerows(zip([t.task] * len(t.seeds), t.seeds, t.returns, successes, strict=True))
    write_text(directory / "results.csv", text.getvalue())


def versions() -> dict[str, str]:
    """Look up the versions of everything a score depends on."""
    packages = ("torch", "dm_control", "mujoco", "gymnasium", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def video_writer() -> ModuleType:
    """Import the library that writes videos.

    Raises:
        ValueError: imageio with its ffmpeg plugin is not installed.
    """
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ValueError(f"save_video needs imageio and ffmpeg: {install_hint('video')}") from error
    return imageio_ffmpeg


def check_video(cfg: Config) -> None:
    """Draw and write two frames of one task of each kind, so that what does not work is known before any training.

    Raises:
        ValueError: a library or backend is missing, or an environment draws no pictures; the message says which.
    """
    video_writer()
    for name in rendered_tasks(cfg):
        frames = first_frames(name, cfg.obs)
        with tempfile.TemporaryDirectory() as folder:
            try:
                write_video(Path(folder, "try.mp4"), frames)
            except (OSError, ValueError) as error:
                raise ValueError(f"save_video: no video of '{name}' can be written: {error}") from error


class VideoFile:
    """A video that is being written frame by frame, so that long ones take no memory."""

    def __init__(self, path: Path, fps: float, name: Path) -> None:
        self._library = video_writer()
        self._path, self._name = path, name  # until it is whole, and then
        self.fps = fps  # may be set until the first frame comes
        self._frames: Any = None
        self._size: tuple[int, ...] = ()  # of the first frame

    def append(self, frame: NDArray[np.uint8]) -> None:
        """Write one more frame, [height, width, 3]; smaller ones than the first get a border, larger ones are cut."""
        if frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(
                f"save_video: a picture of shape {list(frame.shape)} is not of height, width and 3 colours"
            )
        with self._writing():
            if self._frames is None:
                self._size = frame.shape
                form = {"fps": self.fps, "codec": "libx264", "macro_block_size": 16}
                form["output_params"] = ["-f", "mp4"]  # not to be told from the temporary name
                self._frames = self._library.write_frames(str(self._path), frame.shape[1::-1], **form)
                self._frames.send(None)
            if frame.shape != self._size:
                frame = _centred(frame, self._size)
            self._frames.send(np.ascontiguousarray(frame))

    def close(self) -> None:
        """Finish the file."""
        with self._writing():
            if self._frames is not None:
                self._frames.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(f"Could not write {self._name}: {error}") from error


def _centred(frame: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Put the middle of a frame into the middle of a black one of another size."""
    whole = np.zeros(size, np.uint8)
    for axis in (0, 1):
        start = max(frame.shape[axis] - size[axis], 0) // 2
        frame = frame.take(range(start, start + min(frame.shape[axis], size[axis])), axis)
    top, left = ((size[axis] - frame.shape[axis]) // 2 for axis in (0, 1))
    whole[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return whole


@contextlib.contextmanager
def video_file(path: Path, fps: float = 25, *, overwrite: bool = True) -> Iterator[VideoFile]:
    """Write an mp4 file, which has its name at the end of the block.

    Raises:
        ValueError: see :func:`video_writer`, there was no frame, or the file exists and ``overwrite`` is false.
    """
    video_writer()
    try:
        with (
            replacing(path, overwrite=overwrite, errors=(OSError,)) as temporary,
            contextlib.closing(VideoFile(temporary, fps, path)) as video,
        ):
            try:
                yield video
            except OSError as error:
                raise _OfPlaying(error) from error
    except _OfPlaying as wrapped:
        raise wrapped.args[0] from None


class _OfPlaying(Exception):
    """An error of the disk or a pipe in the block of a video that is none of writing it."""


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: float = 25) -> None:
    """Write rendered frames as an mp4 file, so many a second.

    Raises:
        ValueError: see :func:`video_writer`.
    """
    with video_file(path, fps) as video:
        for frame in frames:
            video.append(frame)
