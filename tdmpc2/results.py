"""Evaluation results as a table, as files and as videos."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from tdmpc2.evaluation import Evaluation, Interval, bootstrap
from tdmpc2.files import replacing, write_text


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


def fresh_directory(path: Path) -> Path:
    """``path``, or the first of ``path-2``, ``path-3``, ... that holds no results yet."""
    path = path.absolute()
    candidate, number = path, 1
    while (candidate / "results.json").exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate.relative_to(Path.cwd()) if candidate.is_relative_to(Path.cwd()) else candidate


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
        raise ValueError("save_video needs imageio and ffmpeg: pip install 'tdmpc2-opt[video]'") from error
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
