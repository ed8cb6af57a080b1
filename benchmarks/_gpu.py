"""Test and measure on a CUDA GPU every code path that is used only there: `make gpu`.

python -m benchmarks._gpu [--minutes 30]

Tests marked `gpu` come first, then the benchmarks of plans, updates, evaluation, training and stacked agents. With
--minutes, thirty specialists then learn for so long (examples/specialists.py); a later call continues them. All results
are in one file, --out, and in one table. Without a GPU the command says so and exits with 1.
"""

from __future__ import annotations

import argparse
import csv
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import __main__ as runner
from benchmarks._harness import REPO, commit, machine, print_table, versions
from tdmpc2.support.files import write_text
from tdmpc2.training.guards import STOPPED

#: Benchmarks, and the options that they have here besides the device.
PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("plan", ()), ("update", ()), ("evaluation", ()), ("train", ("--processes", "1")),
    ("train", ("--online",)), ("stacked", ("--agents", "30")),
)  # fmt: skip
#: Keys of the plain and the fast time in a result, by benchmark.
TIMES = {"stacked": ("alone_ms", "stacked_ms")}


def run_tests() -> int:
    """Run the tests that need a GPU; returns pytest's exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    return subprocess.run(command, cwd=REPO, check=False).returncode


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Reduce a benchmark's results to rows of the one table."""
    plain, fast = TIMES.get(found["benchmark"], ("plain_ms", "fast_ms"))
    return [
        {
            "name": f"{found['benchmark']}: {result['name']}",
            "plain_ms": result.get(plain),
            "fast_ms": result.get(fast, result.get("ms")),
            "speedup": result.get("speedup"),
        }
        for result in found["results"]
    ]


def teach(minutes: float, out: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Teach specialists for so many minutes; returns steps and the newest return of each.

    Raises:
        ValueError: they failed.
    """
    command = [sys.executable, str(REPO / "examples" / "specialists.py"), "--out", str(out), *keys]
    with subprocess.Popen(command, cwd=REPO) as process:
        try:
            code = process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # it saves everything
            code = process.wait()
    if code not in (0, STOPPED):
        raise ValueError(f"The specialists ended with exit code {code}: see the messages above")
    newest = {path.parent.name: last_row(path) for path in sorted(out.glob("*/episodes.csv"))}
    tasks = {name: {"step": int(row["step"]), "return": float(row["return"])} for name, row in newest.items() if row}
    return {"minutes": minutes, "tasks": tasks}


def last_row(path: Path) -> dict[str, str]:
    """Read the last row of a table; empty if there is none."""
    with path.open(newline="") as file:
        return next(iter(list(csv.DictReader(file))[-1:]), {})


def main(
    argv: Sequence[str] | None = None,
    *,
    tests: Callable[[], int] = run_tests,
    measure: Callable[[str, Sequence[str]], tuple[str, str]] = runner.measured,
) -> int:
    """Run the command line; returns 1 if there is no GPU, or something failed.

    Args:
        argv: what was typed.
        tests: runs the tests.
        measure: runs a benchmark.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks._gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=0, help="to teach specialists for (default: none are)")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="(default: %(default)s)")
    parser.add_argument("--teach", default="--tasks mt30 steps=100000 env_workers=1", metavar="WORDS",
                        help="of examples/specialists.py (default: %(default)s)")  # fmt: skip
    parser.add_argument("--specialists", type=Path, default=Path("specialists"), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small runs that only show that it works")
    parser.add_argument("--device", default="cuda", help="cpu, with --quick, tries the command itself out")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("make gpu: torch finds no CUDA GPU here, so nothing was tested or measured")
        return 1
    found: dict[str, Any] = {"machine": machine(args.device), "versions": versions(), "commit": commit()}
    endings = {"tests": "passed" if tests() in (0, 5) else "failed"}  # 5: pytest found no tests
    found |= {"benchmarks": []}
    for name, options in PARTS:
        words = [*options, "--device", args.device, *(["--quick"] if args.quick else [])]
        print(f"\n== {name} {' '.join(words)}", flush=True)
        ending, last = measure(name, words)
        endings[" ".join((name, *options))] = ending
        found["benchmarks"] += [json.loads(last)] if ending == "done" else []
    if args.minutes:
        try:
            found["specialists"] = teach(args.minutes, args.specialists, [*args.teach.split(), f"device={args.device}"])
            endings["specialists"] = "done"
        except ValueError as error:
            endings["specialists"] = f"failed: {error}"
    write_text(args.out, json.dumps({**found, "endings": endings}, indent=1) + "\n")
    rows = [row for one in found["benchmarks"] for row in rows_of(one)]
    columns = [
        ("on this GPU", "name", ""), ("plain, ms", "plain_ms", ".2f"), ("fast, ms", "fast_ms", ".2f"),
        ("speedup", "speedup", ".2f"),
    ]  # fmt: skip
    print_table(rows, columns)
    for name, task in found.get("specialists", {}).get("tasks", {}).items():
        print(f"{name:28}step {task['step']:>9,}   return {task['return']:8.1f}")
    print("\n".join(f"{name:20}{ending}" for name, ending in endings.items()))
    print(f"Everything is in {args.out}", flush=True)
    return int(any(ending.startswith("failed") for ending in endings.values()))


if __name__ == "__main__":
    sys.exit(main())
