"""Evaluation results as a table, as files and as videos."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from tdmpc2.play.evaluation import Evaluation, Interval, bootstrap
from tdmpc2.support.extras import install_hint
from tdmpc2.support.files import replacing, write_text


def table_rows(result: Evaluation) -> list[tuple[str, int, float, float, Interval | None]]:
    """Per task: name, episodes, mean return, mean success, 95 % interval of the mean return."""
    return [
        (
            t.task,
            len(t.returns),
            float(np.mean(t.returns)),
            float(np.mean(t.successes)),
            bootstrap([np.array(t.returns)]),
        )
        for t in result.tasks
    ]


def format_interval(interval: Interval | None) -> str:
    """``[low, high]`` with one decimal; ``-`` if unknown."""
    return f"[{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "-"


def table(result: Evaluation, title: str) -> Table:
    """One row per task and the normalised score below."""
    view = Table("task", "episodes", "return", "95 % interval", "success", title=title, box=box.SIMPLE)
    for column in view.columns[1:]:
        column.justify = "right"
    for name, count, mean, success, interval in table_rows(result):
        view.add_row(name, str(count), f"{mean:.1f}", format_interval(interval), f"{success:.2f}")
    view.add_section()
    view.add_row("normalized score", "", f"{result.normalized_score:.2f}", format_interval(result.interval), "")
    return view


@contextlib.contextmanager
def fresh_directory(path: Path) -> Iterator[Path]:
    """``path``, or the first of ``path-2``, ``path-3``, ... without results, which no other process will be given.

    It is taken by an empty ``results.csv``. If that is still empty in the end, it is left as it was found.
    """
    path = path.absolute()
    for number in itertools.count(1):
        directory = path.with_name(f"{path.name}-{number}") if number > 1 else path
        directory.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (directory / "results.csv").touch(exist_ok=False)
            break
    try:
        yield directory.relative_to(Path.cwd()) if directory.is_relative_to(Path.cwd()) else directory
    finally:
        if not (directory / "results.csv").stat().st_size:
            (directory / "results.csv").unlink()
            with contextlib.suppress(OSError):
                directory.rmdir()


def write_results(directory: Path, result: Evaluation, protocol: dict[str, Any]) -> None:
    """``results.json`` (protocol, versions, scores), and :func:`write_episodes`."""
    tasks = [
        {"task": name, "episodes": n, "return": mean, "success": success, "return_interval": interval}
        for name, n, mean, success, interval in table_rows(result)
    ]
    summary = {
        "normalized_score": result.normalized_score,
        "interval": result.interval,
        "protocol": protocol,
        "versions": versions(),
        "tasks": tasks,
    }
    write_episodes(directory, result)
    write_text(directory / "results.json", json.dumps(summary, indent=2) + "\n")


def write_episodes(directory: Path, result: Evaluation) -> None:
    """``results.csv``: every episode's task, seed, return and success."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["task", "seed", "return", "success"])
    for t in result.tasks:
        writer.writerows(zip([t.task] * len(t.seeds), t.seeds, t.returns, t.successes, strict=True))
    write_text(directory / "results.csv", text.getvalue())


def versions() -> dict[str, str]:
    """Versions of everything a score depends on."""
    packages = ("torch", "dm_control", "mujoco", "gymnasium", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def video_writer() -> ModuleType:
    """The library that writes videos.

    Raises:
        ValueError: imageio with its ffmpeg plugin is not installed.
    """
    try:
        import imageio.v3
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise ValueError(f"save_video needs imageio and ffmpeg: {install_hint('video')}") from error
    return imageio.v3


def write_video(path: Path, frames: Sequence[NDArray[np.uint8]], fps: int = 25) -> None:
    """An mp4 of rendered frames, written atomically.

    Raises:
        ValueError: see :func:`video_writer`.
    """
    write = video_writer().imwrite
    form = {"extension": ".mp4", "plugin": "FFMPEG", "codec": "libx264", "macro_block_size": 16}
    form["output_params"] = ["-f", "mp4"]  # not to be told from the temporary name
    with replacing(path) as temporary:
        write(temporary, np.stack(frames), fps=fps, **form)
