"""Time and memory of importing chunk files into an episode store, against copying them with cp.

python benchmarks/importing.py --gb 4

Random MT30 episodes are written to a temporary directory of --dir, copied (`cp`, then fsync) and imported in turns;
this takes twice --gb of disk. Results: `name` (copy, import), `gb`, `s` (median), `mb_per_s` and `turns`, the seconds
of each; of the import also `ratio` (median of the turns' import / copy), `peak_mb` (growth of its resident memory,
anonymous, file-backed and shared; Linux only) and `peak_over_slice`, the same over the size of a block of episodes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._harness import REPO, Timings, make_parser, parse, report
from benchmarks._inputs import random_episodes
from tdmpc2.config import Config
from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.chunks import write_chunk
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.tracking.progress import progress

MINUTES = 0.5
FULL_MINUTES = 2
DISK_GB = 2

CFG = Config(task="mt30")
PAUSE = 5  # seconds after a deletion, until a virtual machine has returned the freed memory: what runs sooner is faster
FILE = 4096  # episodes per chunk file: 254 MB as in a store, 263 MB in the file


def make_chunks(root: Path, size: float) -> int:
    """Write about ``size`` bytes of chunk files of random numbers; returns how many exactly."""
    layout = Layout.of(CFG.task_specs)
    episodes = max(1, round(size / (layout.rows * (layout.obs_dim + layout.action_dim + 2) * 4)))
    firsts = range(0, episodes, FILE)
    for number, first in enumerate(progress(firsts, "Making chunk files", unit="files")):
        write_chunk(root / f"chunk_{number}.pt", **random_episodes(CFG, min(FILE, episodes - first), seed=number))
    return sum(path.stat().st_size for path in root.iterdir())


def copy(source: Path, target: Path) -> float:
    """Copy a directory and flush it to the disk; returns the seconds that took."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    for path in target.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - start


def resident() -> int:
    """Return the bytes of this process in memory, or 0 where the system does not say."""
    path = Path("/proc/self/status")
    if not path.exists():
        return 0
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return 1024 * sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssFile", "RssShmem"))


def measure(job: Callable[[], object]) -> tuple[float, int]:
    """Do a job; returns seconds and the peak growth of memory in bytes."""
    peak = before = resident()
    running = True

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        job()
    finally:
        seconds = time.perf_counter() - start
        running = False
        watcher.join()
    return seconds, peak - before


def measured_import(source: str, target: str) -> None:
    """Import and print seconds and peak growth of memory in bytes; runs in a process of its own."""
    print(json.dumps(measure(lambda: import_episodes([source], target, "mt30", CFG.task_specs, quiet=True))))


def run_import(source: Path, target: Path) -> tuple[float, int]:
    """Import in a process; returns seconds and the peak growth of memory in bytes."""
    command = [sys.executable, "-m", "benchmarks.importing", "--import", str(source.resolve()), str(target.resolve())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPO)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=2)
    parser.add_argument(
        "--gb", type=float, default=0.3, help="size of the chunk files (default: %(default)s, 1 with --full)"
    )
    parser.add_argument("--dir", default=".", help="a directory on the disk to measure (default: this one)")
    parser.add_argument("--pause", type=float, default=PAUSE, help="seconds before each (default: %(default)s)")
    parser.add_argument("--import", dest="paths", nargs=2, help=argparse.SUPPRESS)
    args = parse(parser, argv, {"gb": 1.0, "repeats": 3}, gb=0.01, pause=0)
    if args.paths:
        measured_import(*args.paths)
        return
    turns, peaks = [], []
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        root = Path(name)
        size = make_chunks(root / "chunks", args.gb * 1e9)
        for turn in progress(range(args.repeats), "Copying and importing", unit="turns"):
            seconds: dict[str, float] = {}
            for what in ("copy", "import") if turn % 2 == 0 else ("import", "copy"):
                os.sync()
                time.sleep(args.pause)
                if what == "copy":
                    seconds[what] = copy(root / "chunks", root / "copy")
                    shutil.rmtree(root / "copy")
                else:
                    seconds[what], peak = run_import(root / "chunks", root / "store")
                    peaks.append(peak)
                    meta = EpisodeStore.open(root / "store").meta
                    shutil.rmtree(root / "store")
            turns.append(seconds)

    times = Timings({what: np.array([turn[what] for turn in turns]) for what in ("copy", "import")})
    results: list[dict[str, Any]] = [
        {
            "name": what,
            "gb": size / 1e9,
            "s": times.ms(what) / 1e3,
            "mb_per_s": size / times.ms(what) / 1e3,
            "turns": list(seconds),
        }
        for what, seconds in times.seconds.items()
    ]
    one_slice = meta.block * meta.episode_bytes
    results[1] |= {"ratio": times.ratio("import", "copy"), "peak_mb": max(peaks) / 1e6}
    results[1]["peak_over_slice"] = max(peaks) / one_slice
    print(f"{results[1]['ratio']:.2f} times the time of cp; one slice is {one_slice / 1e6:.0f} MB")
    columns = [("", "name", ""), ("s", "s", ".1f"), ("MB/s", "mb_per_s", ".0f"), ("peak memory, MB", "peak_mb", ".0f")]
    report("importing", args, results, columns)


if __name__ == "__main__":
    main()
