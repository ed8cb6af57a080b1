"""Run benchmarks one after the other and say at the end which of them failed.

python -m benchmarks                # the usual ones; --plan says only how long that takes and what it writes
python -m benchmarks plan update    # some of them
python -m benchmarks --full         # with every turn and the largest sizes, for tables that are to be published
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).resolve().parent
_ROOT = _FOLDER.parent
_QUICK = "Small runs, whose numbers mean nothing: seconds each, minutes where something is compiled."


class Cost(NamedTuple):
    """The cost of a benchmark, as it declares it: minutes on two cores, minutes with --full, and GB written.

    One that declares ``BY_NAME`` runs only if it is named or with --full, so that all others take a quarter of an hour.
    """

    minutes: float
    full_minutes: float
    disk_gb: float
    by_name: bool = False

    def expected(self, full: bool) -> float:
        """Minutes, with --full or without."""
        return self.full_minutes if full else self.minutes


DECLARED = ("MINUTES", "FULL_MINUTES", "DISK_GB")


def costs() -> dict[str, Cost]:
    """Read what each benchmark declares, without importing it: that alone would take longer than to print the plan."""
    found = {}
    for path in sorted(_FOLDER.glob("*.py")):
        nodes = ast.parse(path.read_text(encoding="utf-8")).body
        values = {ast.unparse(node.targets[0]): node.value for node in nodes if isinstance(node, ast.Assign)}
        if "MINUTES" in values:
            found[path.stem] = Cost(*(ast.literal_eval(values[name]) for name in DECLARED), "BY_NAME" in values)
    return found


def plan(names: Sequence[str], full: bool = False) -> str:
    """Describe how long each benchmark takes and how much it writes."""
    cost = costs()
    minutes = {name: cost[name].expected(full) for name in names}
    lines = [f"{'benchmark':20}{'minutes':>9}{'disk, GB':>10}"]
    lines += [f"{name:20}{minutes[name]:>9g}{cost[name].disk_gb:>10g}" for name in names]
    total, most = sum(minutes.values()), max(cost[name].disk_gb for name in names)
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    lines.append(
        f"About {round(total, 1):g} minutes on two cores of machine A (RESULTS.md); twice as many without AVX-512, "
        "more on busy ones. What is left is said again, at the pace of this machine, before each of them."
    )
    lines.append(f"Up to {most:g} GB are written at a time and removed again; {free:.0f} GB are free here.")
    return "\n".join(lines)


def left(passed: float, done: Sequence[float], ahead: Sequence[float]) -> str:
    """Say how many minutes are left, at the pace of those benchmarks that are done; nothing before the first.

    Args:
        passed: minutes since the start.
        done: minutes that the benchmarks so far declare.
        ahead: those of the others.
    """
    if not sum(done):
        return ""
    return f"(about {passed / sum(done) * sum(ahead):.0f} minutes left)"


def run(name: str, options: Sequence[str]) -> str:
    """Run one benchmark in a process of its own, showing what it prints; returns how it ended."""
    return measured(name, options)[0]


def measured(name: str, options: Sequence[str]) -> tuple[str, str]:
    """Run one benchmark as :func:`run` does; returns how it ended and the last line that it printed."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    if process.returncode == 0 and last.startswith("skipped: "):
        return last, last
    if process.returncode == 0 and _is_result(last):
        return "done", last
    return f"failed (exit code {process.returncode})", last


def _is_result(line: str) -> bool:
    try:
        return "results" in json.loads(line)
    except ValueError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks named, all by default; returns 1 if one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"(default: all) {', '.join(costs())}")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--full", action="store_true", help="every turn and the largest sizes, however long they take")
    length.add_argument("--quick", action="store_true", help="small runs that only show that they work")
    parser.add_argument("--plan", action="store_true", help="only say how long it takes and how much it writes")
    args = parser.parse_args(argv)
    names = args.names or [name for name, cost in costs().items() if args.full or not cost.by_name]
    if unknown := [name for name in names if name not in costs()]:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(costs())}")
    print(_QUICK if args.quick else plan(names, args.full), flush=True)
    if not args.names and (others := [name for name in costs() if name not in names]):
        print(f"Not among them: {', '.join(others)}; name them, or --full runs all.", flush=True)
    if args.plan:
        return 0
    options = [f"--{length}" for length in ("full", "quick") if getattr(args, length)]
    endings: dict[str, str] = {}
    cost, begun = costs(), time.monotonic()
    declared = [0.0 if args.quick else cost[name].expected(args.full) for name in names]
    for number, name in enumerate(names):
        start = time.monotonic()
        print(f"\n== {name} {left((start - begun) / 60, declared[:number], declared[number:])}".rstrip(), flush=True)
        endings[name] = f"{run(name, options)}, {time.monotonic() - start:.0f} s"
    print("\n" + "\n".join(f"{name:20}{ending}" for name, ending in endings.items()))
    return int(any(ending.startswith("failed") for ending in endings.values()))


if __name__ == "__main__":
    sys.exit(main())
