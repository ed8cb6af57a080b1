"""Time variants of the same work in turns, print tables, and say on what machine it was measured.

Every benchmark ends with one line of JSON: ``benchmark``, ``machine``, ``versions``, ``date``, ``commit``, ``options``
(as given or by default) and ``results``, a list with one entry for each thing that was measured. By default a table's
turns end early, once they have taken long enough or the ratios are known well; with --full, or where their number is
given by --repeats, all are made. With --quick it makes a few small runs only, which show that it works; their numbers
mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from tdmpc2.support.runtime import resolve_device, set_num_threads, usable_cores
from tdmpc2.tracking.progress import progress

REPO = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "tensordict", "torchrl", "gymnasium", "dm_control", "mujoco", "numpy")
SECONDS = 20.0  # that the turns of one table may take, unless told otherwise
NARROW = 0.02  # turns may end once half of each ratio's 95 % interval is below this share of it
Run = Callable[[], Any]
Column = tuple[str, str, str]


@dataclass(frozen=True)
class Timings:
    """Seconds of each variant by turn, [turns]; variants of the same turn ran one after the other."""

    seconds: Mapping[str, NDArray[np.float64]]

    def ms(self, name: str) -> float:
        """Return the median of a variant in milliseconds."""
        return 1e3 * float(np.median(self.seconds[name]))

    def ratio(self, name: str, to: str) -> float:
        """Return the median over the turns of one variant's time over another's."""
        return float(np.median(self.seconds[name] / self.seconds[to]))

    def uncertainty(self) -> float:
        """Return half of the widest 95 % interval of a ratio to the first variant, as a share of that ratio.

        The interval is that of the median of normally distributed values. A single variant has no ratio, so its time
        counts instead.
        """
        first, *others = (np.log(np.maximum(values, 1e-12)) for values in self.seconds.values())
        logs = [other - first for other in others] or [first]
        return max(float(1.96 * np.sqrt(np.pi / 2) * values.std(ddof=1) / np.sqrt(len(values))) for values in logs)

    def speedup(self, name: str) -> float:
        """Return how many times as fast as the first variant this one is."""
        return self.ratio(next(iter(self.seconds)), name)


def take_turns(
    variants: Mapping[str, Run],
    turns: int,
    *,
    warm_up: int = 2,
    calls: int = 1,
    prepare: Mapping[str, Run] | None = None,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
    label: str = "",
    limit: float | None = None,
    least: int = 5,
) -> Timings:
    """Time variants in turns, each turn beginning with another, so that a busy moment does not fall on one of them.

    Args:
        variants: what to time, by name; ratios are to the first.
        turns: how often each is timed.
        warm_up: turns before those, which do not count; the first calls compile.
        calls: calls of a variant that are timed together; the result is the time of one.
        prepare: what to run before a variant, outside of the time that counts.
        device: what is waited for before the clock is read.
        clock: seconds; ``time.process_time`` leaves out other programs.
        label: what the progress display says; without it there is none.
        limit: seconds after which the turns may end early; they also may once every ratio is known well.
        least: turns that are made anyway, but if they take three times the limit, three are enough.
    """
    names, seconds = list(variants), {name: np.zeros(warm_up + turns) for name in variants}
    numbers, began = range(warm_up + turns), time.monotonic()
    for turn in progress(numbers, label, unit="turns") if label else numbers:
        if turn == warm_up:
            began = time.monotonic()
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            if prepare and name in prepare:
                prepare[name]()
            wait(device)
            start = clock()
            for _ in range(calls):
                variants[name]()
            wait(device)
            seconds[name][turn] = (clock() - start) / calls
        if limit is None or not warm_up < turn + 1 < warm_up + turns:
            continue
        so_far = Timings({name: values[warm_up : turn + 1] for name, values in seconds.items()})
        if why := _enough(so_far, time.monotonic() - began, limit, least):
            print(f"{turn + 1 - warm_up} of {turns} turns: {why}; --full makes all", flush=True)
            return so_far
    return Timings({name: values[warm_up:] for name, values in seconds.items()})


def _enough(times: Timings, passed: float, limit: float, least: int) -> str:
    """Say why the turns so far are enough; empty if they are not."""
    made = len(next(iter(times.seconds.values())))
    if made >= least and times.uncertainty() < NARROW:
        return f"every ratio is known to {NARROW:.0%}"
    if (made >= least and passed >= limit) or (made >= 3 and passed >= 3 * limit):
        return f"they took {passed:.0f} s"
    return ""


def wait(device: torch.device | str) -> None:
    """Wait until an accelerator has done all that it was asked for."""
    kind = torch.device(device).type
    if kind != "cpu":
        getattr(torch, kind).synchronize()


def numbered(function: Callable[[int], Any]) -> Run:
    """Return a function without arguments that calls ``function`` with 0, 1, 2, ..."""
    numbers = itertools.count()
    return lambda: function(next(numbers))


def make_parser(
    doc: str | None, repeats: int, *, device: str = "cpu", threads: int | None = None
) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have; one of them may define its own in their place."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, conflict_handler="resolve"
    )
    parser.add_argument(
        "--repeats", type=int, default=repeats, help=f"turns of each variant (default: {repeats}, or fewer; see --full)"
    )
    parser.add_argument("--threads", type=int, default=threads, help=f"CPU threads (default: {threads or 'all cores'})")
    parser.add_argument("--device", default=device, help="(default: %(default)s)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--full", action="store_true", help="make all turns, however long they take")
    length.add_argument("--quick", action="store_true", help="a small run that only shows that it works")
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, full: Mapping[str, Any] | None = None, **quick: Any
) -> argparse.Namespace:
    """Read the command line and set the number of threads.

    Args:
        parser: of :func:`make_parser`.
        argv: what was typed; None: that of this process.
        full: defaults under --full.
        quick: defaults under --quick.

    Returns:
        What was typed, and ``limit``, the seconds that a table's turns may take, None if all are to be made.
    """
    usual = parser.get_default("repeats")
    parser.set_defaults(repeats=None)
    typed = parser.parse_args(argv)
    chosen = {"repeats": 1, **quick} if typed.quick else (full or {}) if typed.full else {}
    parser.set_defaults(**{"repeats": usual, **chosen})
    args = parser.parse_args(argv)
    args.limit = SECONDS if typed.repeats is None and not typed.full and not typed.quick else None
    if not isinstance(args.threads, list):
        args.threads = set_num_threads(args.threads)
    return args


def skip(reason: str) -> NoReturn:
    """End the benchmark without an error, since something that it needs is not here."""
    print(f"skipped: {reason}", flush=True)
    raise SystemExit(0)


def print_table(results: Sequence[Mapping[str, Any]], columns: Sequence[Column], title: str = "") -> None:
    """Print results as a table that fits into 80 columns: names break at their spaces if they must, cells never do.

    Args:
        results: one for each line.
        columns: name, key of the result and format of each column; where a result lacks the key the cell stays empty.
        title: a line above.
    """
    rows = [
        ["" if result.get(key) is None else format(result[key], form) for _, key, form in columns] for result in results
    ]
    for heads in ([[name] for name, *_ in columns], [name.split() or [""] for name, *_ in columns]):
        widths = [max(map(len, [*head, *cells])) for head, cells in zip(heads, zip(*rows, strict=True), strict=True)]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        if len(rule) <= 80:
            break
    lines = max(map(len, heads))
    padded = zip(*([""] * (lines - len(head)) + head for head in heads), strict=True)

    def line(cells: Sequence[str]) -> str:
        aligned = [cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]
        return "  ".join(aligned).rstrip()

    print("\n".join(["", *filter(None, [title]), *map(line, padded), rule, *map(line, rows), ""]), flush=True)


def report(
    name: str, args: argparse.Namespace, results: Sequence[Mapping[str, Any]], columns: Sequence[Column] = ()
) -> None:
    """Print the results as a table, if it has columns, and as the line of JSON that ends a benchmark."""
    if columns:
        print_table(results, columns)
    everything = {
        "benchmark": name,
        "machine": machine(args.device),
        "versions": versions(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit(),
        "options": vars(args),
        "results": list(results),
    }
    print(json.dumps(everything, default=str), flush=True)


def machine(device: str) -> dict[str, Any]:
    """Describe the processor, what of its instructions matters here, the threads in use and the device."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)", info.read_text() if info.exists() else "", re.MULTILINE)
    has = {
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "vnni": torch.cpu._is_vnni_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }
    found = resolve_device(device)
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "instructions": [
            torch.backends.cpu.get_cpu_capability().lower(),
            *(name for name, here in has.items() if here),
        ],
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(found) if found.type == "cuda" else found.type,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that the times depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def commit() -> str | None:
    """Return the commit that is checked out, with ``-dirty`` after changes; None outside of a clone."""
    try:
        command = ["git", "-C", str(REPO), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
