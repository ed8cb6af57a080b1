"""Train for hours, watch memory and open files, and say whether either grows.

    python -m tests.soak offline --minutes 120 --figure memory.png
    python -m tests.soak own --minutes 120 -- task=walker-walk mode=online work_dir=run

The training evaluates, saves, logs a CSV and an offline W&B run all the while, as users' runs do. With ``own`` it is
that of the arguments of train.py after ``--``: its run stays where they put it, and the same arguments go on with it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from tdmpc2.training.guards import STOPPED
from tests.helpers.reference import REPO

TASKS = "tasks=[cartpole-balance,pendulum-swingup]"
SMALL = (
    "model_size=1", "batch_size=64", "num_samples=64", "iterations=2", "eval_episodes=1", "save_freq=250",
    "log_freq=50", "steps=100000000", "num_threads=1", "wandb_project=soak", "compile=false",
)  # fmt: skip
#: Arguments of train.py by kind of training. The ring of the online one is full before the warm-up ends.
KINDS = {
    "offline": (TASKS, "teacher_config=null", "mode=offline", "data_dir=data", "eval_freq=500", *SMALL),
    "online": (
        TASKS, "mode=online", "seed_steps=1000", "buffer_size=4000", "collect_num_samples=16", "collect_iterations=1",
        "eval_freq=1000", *SMALL,
    ),
}  # fmt: skip
WARM_UP = 0.25  # share of the time for caches and pools to fill
#: Growth from the second quarter to the last one, as shares, that is still the noise of an allocator.
MOST_GROWTH = {"memory_mb": 0.03, "open_files": 0.0, "threads": 0.0}


class Sample(NamedTuple):
    """The state of the training and of all processes that it started.

    Attributes:
        minutes: since the start.
        memory_mb: memory of their own (not shared with others), in MB.
        open_files: descriptors.
        threads: of all of them.
    """

    minutes: float
    memory_mb: float
    open_files: float
    threads: float


def watch(process: subprocess.Popen[bytes], minutes: float, every: float) -> list[Sample]:
    """Take samples of a process and its children until the time is over or it ends."""
    start, samples = time.monotonic(), []
    root = psutil.Process(process.pid)
    while (elapsed := time.monotonic() - start) < 60 * minutes:
        try:
            process.wait(every)
            break
        except subprocess.TimeoutExpired:
            samples.append(_sample([root, *root.children(recursive=True)], elapsed / 60))
    return samples


def _sample(processes: Sequence[psutil.Process], minutes: float) -> Sample:
    memory = files = threads = 0
    for process in processes:
        try:
            memory += process.memory_full_info().uss
            files += process.num_fds()
            threads += process.num_threads()
        except psutil.NoSuchProcess:  # a helper process has ended meanwhile
            continue
    return Sample(minutes, memory / 1e6, files, threads)


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """Compare the medians of the last quarter of the samples with those of the second quarter, as shares."""
    values = np.array(samples)  # [samples, 4]
    warm = int(WARM_UP * len(values))
    before, after = (np.median(part, axis=0) for part in (values[warm : 2 * warm], values[-warm:]))
    return dict(zip(Sample._fields[1:], (after / before - 1)[1:].tolist(), strict=True))


def grown(samples: Sequence[Sample]) -> list[str]:
    """Name in words what has grown by more than noise."""
    return [
        f"{name} grew by {share:.1%} (allowed: {MOST_GROWTH[name]:.0%})"
        for name, share in growth(samples).items()
        if share > MOST_GROWTH[name]
    ]


def draw(samples: Sequence[Sample], title: str, path: Path) -> None:
    """Draw memory and descriptors over the minutes."""
    from tdmpc2.support.figures import figure_class, save_figure

    figure = figure_class()(figsize=(8, 4), layout="constrained")
    memory = figure.add_subplot()
    files = memory.twinx()
    minutes = [sample.minutes for sample in samples]
    memory.plot(minutes, [sample.memory_mb for sample in samples], color="C0")
    files.plot(minutes, [sample.open_files for sample in samples], color="C1", linewidth=1)
    memory.set(xlabel="minutes", ylabel="memory, MB", title=title, ylim=(0, None))
    memory.yaxis.label.set_color("C0")
    files.set(ylabel="open files", ylim=(0, None))
    files.yaxis.label.set_color("C1")
    save_figure(figure, path)


def _collected(directory: Path) -> None:
    """Make the data of the offline training: ten random episodes a task."""
    command = [sys.executable, str(REPO / "collect.py"), TASKS, "episodes_per_task=10", "data_dir=data"]
    subprocess.run(command, cwd=directory, check=True, env=_environment(), stdout=subprocess.DEVNULL)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def soak(kind: str, minutes: float, every: float, directory: Path, own: Sequence[str] = ()) -> tuple[list[Sample], str]:
    """Train for some minutes, then ask it to end.

    Args:
        kind: of :data:`KINDS`, or ``own``.
        minutes: after which it is asked.
        every: seconds between two samples.
        directory: in which one of :data:`KINDS` is trained, and the output is kept.
        own: arguments of train.py, run in the current directory.

    Returns:
        The samples, and what is wrong with its end: it ended before, or not with the exit code of a run that can go
        on. Nothing if it is as it should be.
    """
    if kind == "offline":
        _collected(directory)
    with (directory / "output.txt").open("wb") as output:
        command = [sys.executable, str(REPO / "train.py"), *(own if kind == "own" else (*KINDS[kind], "work_dir=run"))]
        place = None if kind == "own" else directory
        process = subprocess.Popen(command, cwd=place, env=_environment(), stdout=output, stderr=subprocess.STDOUT)
        try:
            samples = watch(process, minutes, every)
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(300)
        finally:
            process.kill()
            process.wait()
    lines = (directory / "output.txt").read_text(errors="replace").strip().splitlines() or [""]
    fault = "" if process.returncode == STOPPED else f"the training ended with code {process.returncode}: {lines[-1]}"
    return samples, fault


def main(argv: Sequence[str] | None = None) -> None:
    """Run a session from the command line; exit code 1 if something grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("kind", nargs="?", default="offline", choices=(*KINDS, "own"))
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two samples")
    parser.add_argument("--figure", type=Path, help="PNG to draw")
    parser.epilog = "The kind own is followed by -- and arguments of train.py."
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    given, own = parser.parse_args(words[:split]), words[split + 1 :]
    if (given.kind == "own") != bool(own):
        parser.error("the kind own, and only it, takes arguments of train.py after --")
    with tempfile.TemporaryDirectory(prefix="tdmpc2-soak-") as directory:
        samples, fault = soak(given.kind, given.minutes, given.every, Path(directory), own)
    if len(samples) < 4:
        sys.exit(fault or "too few samples: more --minutes, or a smaller --every")
    if given.figure:
        draw(samples, f"{given.kind} training with evaluations and offline W&B", given.figure)
    first, last = samples[int(WARM_UP * len(samples))], samples[-1]
    print(json.dumps({"kind": given.kind, "samples": len(samples), "growth": growth(samples)}))
    print(f"{len(samples)} samples in {last.minutes:.0f} minutes; after the warm-up {first}, at the end {last}")
    if problems := [*grown(samples), *([fault] if fault else [])]:
        sys.exit("; ".join(problems))
    print("Nothing grew")
