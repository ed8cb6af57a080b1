"""Time variants of the same work in turns, print tables, and say on what machine it was measured.

Every benchmark ends with one line of JSON: ``benchmark``, ``machine``, ``versions``, ``date``, ``commit``, ``options``
(as given or by default) and ``results``, a list with one entry for each thing that was measured. With --quick it makes
a few small runs only, which show that it works; their numbers mean nothing.
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
    """
    names, seconds = list(variants), {name: np.zeros(warm_up + turns) for name in variants}
    numbers = range(warm_up + turns)
    for turn in progress(numbers, label, unit="turns") if label else numbers:
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
    return Timings({name: values[warm_up:] for name, values in seconds.items()})


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
    parser.add_argument("--repeats", type=int, default=repeats, help="turns of each variant (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=threads, help=f"CPU threads (default: {threads or 'all cores'})")
    parser.add_argument("--device", default=device, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a small run that only shows that it works")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None, **quick: Any) -> argparse.Namespace:
    """Read the command line and set the number of threads; ``quick`` are the defaults under --quick."""
    if parser.parse_args(argv).quick:
        parser.set_defaults(repeats=1, **quick)
    args = parser.parse_args(argv)
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
