"""Time and memory of data sets in the forms of other programs, against copying an episode store to another.

python benchmarks/exchange.py --mb 200

Random episodes of walker-walk are written as a store, which is then copied (`tdmpc2 data convert`), exported to Minari
(HDF5), imported from there and exported to LeRobot's form, in turns, each in a process of its own (--quick: in one).
Results: `name`, `mb` (of the store), `s` (median), `mb_per_s`, `ratio` (median of the turns' time / that of the copy)
and `peak_mb` (largest growth of its resident memory; Linux only).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks._harness import REPO, Timings, make_parser, parse, report, skip
from benchmarks._inputs import random_episodes
from benchmarks.importing import measure
from tdmpc2.config import Config
from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.chunks import write_chunk
from tdmpc2.data.exchange.foreign import import_foreign
from tdmpc2.data.exchange.lerobot import export_lerobot
from tdmpc2.data.exchange.minari_files import MinariData
from tdmpc2.data.exchange.minari_write import export_minari
from tdmpc2.data.exchange.rows import OwnData
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.support.extras import missing_packages
from tdmpc2.tracking.progress import progress

MINUTES = 0.5
FULL_MINUTES = 3
BY_NAME = True
DISK_GB = 1

CFG = Config(task="walker-walk")
FILE = 1024  # episodes per chunk file


def make_store(root: Path, size: float) -> int:
    """Write a store of about ``size`` bytes; returns how many exactly."""
    layout = Layout.of(CFG.task_specs)
    episodes = max(2, round(size / (layout.rows * (layout.obs_dim + layout.action_dim + 1) * 4)))
    for number, first in enumerate(range(0, episodes, FILE)):
        write_chunk(root / "chunks" / f"chunk_{number}.pt", **random_episodes(CFG, min(FILE, episodes - first), number))
    import_episodes([root / "chunks"], root / "store", CFG.task, CFG.task_specs, quiet=True)
    shutil.rmtree(root / "chunks")
    return sum(path.stat().st_size for path in (root / "store").iterdir())


def jobs(root: Path) -> dict[str, Callable[[], object]]:
    """List the jobs that are measured, by name; the import reads what the export to Minari wrote."""

    def from_minari() -> None:
        (data,) = (root / "minari").glob("*/*")
        opened = MinariData.open(data, quiet=True)
        import_foreign(opened, opened.target(None, None), root / "again", quiet=True)

    return {
        "copy": lambda: import_episodes([root / "store"], root / "copy", CFG.task, CFG.task_specs, quiet=True),
        "to Minari": lambda: export_minari(OwnData.open(root / "store"), root / "minari"),
        "from Minari": from_minari,
        "to LeRobot": lambda: export_lerobot(OwnData.open(root / "store"), root / "lerobot", 25),
    }


def run_apart(root: Path, name: str) -> tuple[float, int]:
    """Measure a job in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.exchange", "--job", name, str(root.resolve())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPO)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=2)
    parser.add_argument(
        "--mb", type=float, default=30, help="size of the store (default: %(default)s, 200 with --full)"
    )
    parser.add_argument("--dir", default=".", help="a directory on the disk to measure (default: this one)")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parse(parser, argv, {"mb": 200, "repeats": 3}, mb=1, repeats=1)
    if args.job:
        print(json.dumps(measure(jobs(Path(args.job[1]))[args.job[0]])))
        return
    if missing := missing_packages("minari") + missing_packages("lerobot"):
        skip(f"needs {', '.join(missing)}")
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        root = Path(name)
        size = make_store(root, args.mb * 1e6)
        for _ in progress(range(args.repeats), "Copying, exporting and importing", unit="turns"):
            for what, job in jobs(root).items():
                taken, peak = measure(job) if args.quick else run_apart(root, what)
                seconds.setdefault(what, []).append(taken)
                peaks[what] = max(peak, peaks.get(what, 0))
            for folder in ("copy", "minari", "again", "lerobot"):
                shutil.rmtree(root / folder)
    times = Timings({what: np.array(values) for what, values in seconds.items()})
    results = [
        {
            "name": what,
            "mb": size / 1e6,
            "s": times.ms(what) / 1e3,
            "mb_per_s": size / times.ms(what) / 1e3,
            "ratio": times.ratio(what, "copy"),
            "peak_mb": peaks[what] / 1e6,
        }
        for what in seconds
    ]
    columns = [("", "name", ""), ("s", "s", ".2f"), ("MB/s", "mb_per_s", ".0f"), ("time / copy", "ratio", ".2f")]
    report("exchange", args, results, [*columns, ("peak memory, MB", "peak_mb", ".0f")])


if __name__ == "__main__":
    main()
