"""Time and memory of importing chunk files into an episode store, against copying them with cp.

python benchmarks/importing.py --gb 4

Random MT30 episodes are written to a temporary directory of --dir, copied (`cp`, then fsync) and imported in turns;
this takes twice --gb of disk. The last line is JSON: `gb`, `copy_s` and `import_s` (medians), `ratio` (median of the
turns' import / copy), `peak_over_slice` (growth of the import's resident memory, anonymous, file-backed and shared,
over the size of one block of episodes; Linux only) and `turns`, the seconds of each.
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
from pathlib import Path

import numpy as np
import torch
from rich import box, get_console
from rich.table import Table

from tdmpc2.config import Config
from tdmpc2.data.chunks import Layout, write_chunk
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.tracking.progress import progress

SPECS = Config(task="mt30").task_specs
PAUSE = 5  # seconds: a virtual machine hands freed memory back, and what runs at once after a deletion gains by that
FILE = 4096  # episodes per chunk file: 254 MB as in a store, 263 MB in the file


def make_chunks(root: Path, size: float) -> int:
    """Write about ``size`` bytes of chunk files of random numbers; returns how many exactly."""
    layout = Layout.of(SPECS)
    generator = torch.Generator().manual_seed(0)
    per_file = FILE * layout.rows * (layout.obs_dim + layout.action_dim + 2) * 4
    for number in progress(range(max(1, round(size / per_file))), "Making chunk files", unit="files"):
        obs = torch.rand(FILE, layout.rows, layout.obs_dim, generator=generator)
        action = torch.rand(FILE, layout.rows, layout.action_dim, generator=generator)
        reward = torch.rand(FILE, layout.rows, generator=generator)
        action[:, 0] = reward[:, 0] = torch.nan
        write_chunk(root / f"chunk_{number}.pt", obs, action, reward, torch.arange(FILE) % len(SPECS))
    return sum(path.stat().st_size for path in root.iterdir())


def copy(source: Path, target: Path) -> float:
    """Seconds to copy a directory and to flush it to the disk."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    for path in target.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - start


def resident() -> int:
    """Bytes of this process in memory, whatever they belong to; 0 where the system does not say."""
    path = Path("/proc/self/status")
    if not path.exists():
        return 0
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return 1024 * sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssFile", "RssShmem"))


def measured_import(source: str, target: str) -> None:
    """Import and print seconds and peak growth of memory in bytes; runs in a process of its own."""
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
    import_episodes([source], target, "mt30", SPECS, quiet=True)
    seconds = time.perf_counter() - start
    running = False
    watcher.join()
    print(json.dumps([seconds, peak - before]))


def run_import(source: Path, target: Path) -> tuple[float, int]:
    """Seconds and peak growth of memory in bytes of an import."""
    command = [sys.executable, __file__, "--import", str(source), str(target)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=4.0, help="size of the chunk files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dir", default=".", help="a directory on the disk to measure")
    parser.add_argument("--import", dest="paths", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.paths:
        measured_import(*args.paths)
        return
    turns, peaks = [], []
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        root = Path(name)
        size = make_chunks(root / "chunks", args.gb * 1e9)
        for turn in progress(range(args.repeats), "Copying and importing", unit="turns"):
            order = ("copy", "import") if turn % 2 == 0 else ("import", "copy")
            seconds: dict[str, float] = {}
            for what in order:
                os.sync()
                time.sleep(PAUSE)
                if what == "copy":
                    seconds[what] = copy(root / "chunks", root / "copy")
                    shutil.rmtree(root / "copy")
                else:
                    seconds[what], peak = run_import(root / "chunks", root / "store")
                    peaks.append(peak)
                    meta = EpisodeStore.open(root / "store").meta
                    shutil.rmtree(root / "store")
            turns.append(seconds)

    copy_s, import_s = (float(np.median([turn[what] for turn in turns])) for what in ("copy", "import"))
    ratio = float(np.median([turn["import"] / turn["copy"] for turn in turns]))
    one_slice = meta.block * meta.episode_bytes
    table = Table("", "s", "MB/s", "peak memory, MB", box=box.SIMPLE)
    table.add_row("cp, fsync", f"{copy_s:.1f}", f"{size / copy_s / 1e6:.0f}", "")
    table.add_row("import", f"{import_s:.1f}", f"{size / import_s / 1e6:.0f}", f"{max(peaks) / 1e6:.0f}")
    get_console().print(table)
    print(f"{ratio:.2f} times the time of cp; one slice is {one_slice / 1e6:.0f} MB")
    result = {"gb": size / 1e9, "copy_s": copy_s, "import_s": import_s, "ratio": ratio}
    print(json.dumps(result | {"peak_over_slice": max(peaks) / one_slice, "turns": turns}))


if __name__ == "__main__":
    main()
