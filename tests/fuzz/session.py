"""Try damaged files and careless command lines: ``make fuzz ARGS="--minutes 10 --seed 3"``."""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import json
import multiprocessing
import os
import queue
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

FAULTS = ("unclear message", "traceback", "signal", "hang", "wrong result", "file touched")


def main() -> None:
    """Run until the time or the number of inputs is reached; exit code 1 if a fault was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="time limit (default: 10)")
    parser.add_argument("--inputs", type=int, default=10**9, help="number of inputs to stop after")
    parser.add_argument("--seed", type=int, default=0, help="of all choices (default: 0)")
    parser.add_argument("--only", default="", help="jobs whose names match this expression")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--faults", type=Path, default=Path("fuzz_faults"), help="where the inputs of faults are kept")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", COLUMNS="200", WANDB_MODE="disabled", MPLBACKEND="agg")
    base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=base) as scratch:
        sys.exit(1 if supervise(options, Path(scratch)) else 0)


def supervise(options: argparse.Namespace, scratch: Path) -> int:
    """Start the workers, print how far they are, and at the end the table. Returns the number of faults."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    print(f"Seed {options.seed}, {options.workers} processes, {options.minutes:g} minutes", flush=True)
    make = context.Process(target=_make, args=(scratch / "template",))
    make.start()
    make.join()
    if make.exitcode:
        raise SystemExit("The sample files could not be made")
    share, limit = -(-options.inputs // options.workers), 60 * options.minutes
    workers = [
        context.Process(
            target=work, args=(options.seed, index, options.workers, share, options.only, scratch, limit, results)
        )
        for index in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    table: dict[str, Counter[str]] = {}
    seconds: Counter[str] = Counter()
    known: set[tuple[str, ...]] = set()
    begun = said = time.monotonic()
    while any(worker.is_alive() for worker in workers) or not results.empty():
        with contextlib.suppress(queue.Empty):
            if (result := results.get(timeout=1)) is None:  # time counts once all processes are warm
                begun = time.monotonic()
                continue
            name, level, outcome, detail, words, kept, took = result
            table.setdefault(f"{name} ({level})", Counter())[outcome] += 1
            seconds[f"{name} ({level})"] += took
            signature = (name, outcome, re.sub(r"[0-9]+|'.*?'", "#", detail)[:80])
            if outcome in FAULTS and signature not in known:
                known.add(signature)
                _keep(options.faults / f"{len(known):04d}", kept, words, f"{name} ({level}): {outcome}: {detail}")
        if time.monotonic() - said > 10:
            said = time.monotonic()
            _say(table, begun, begun + limit)
    faults = _print(table, seconds, time.monotonic() - begun)
    if broken := sum(worker.exitcode != 0 for worker in workers):
        print(f"{broken} of {len(workers)} processes broke off: a fault of this tool, see above")
    return faults + broken


def _make(template: Path) -> None:
    from tests.fuzz import samples

    template.mkdir()
    os.chdir(template)
    with contextlib.redirect_stdout(io.StringIO()):
        samples.make(template)


def work(seed: int, index: int, workers: int, share: int, only: str, scratch: Path, limit: float, results: Any) -> None:
    """Try inputs one after the other for so many seconds."""
    from tests.fuzz.jobs import JOBS, Job, random_line
    from tests.fuzz.mutations import mutate
    from tests.fuzz.runner import Result, attempt, content, prepare
    from tests.fuzz.warm import warm

    warm(scratch / "template", scratch / f"warm{index}")
    results.put(None)
    end = time.monotonic() + limit
    template, seen = scratch / "template", set()
    names = [name for name in (*JOBS, "command line", "call") if re.search(only, name)]
    shares = [JOBS[name].weight if name in JOBS else 6.0 for name in names]
    for number in range(index, index + workers * share, workers):
        if time.monotonic() > end:
            break
        rng = random.Random(f"{seed}/{number}")
        name = rng.choices(names, shares)[0]
        folder = scratch / f"input{number}"
        if name in JOBS:
            job = JOBS[name]
            files = sorted(path for pattern in job.files for path in template.glob(pattern) if path.is_file())
            file = rng.choice(files).relative_to(template)
            level, changed = mutate(rng, template / file)
            words = job.command.replace("{file}", str(file)).split()
            identity = hashlib.sha1(changed).hexdigest()
        else:
            level, changed, file = "values", None, Path("student.pt")
            words = random_line(rng) if name == "command line" else ["call", "random_call"]
            job = Job(
                (),
                "",
                ("data", "store", "run", "toy.pt"),
                ("new*", ".new*", "data/store/*", "store/.*", "student_*", "toy-*.mp4", "report/*"),
                refusals=(1, 2),
            )
            identity = " ".join(words) if name == "command line" else str(number)
        if (name, str(file), identity) in seen:
            continue
        seen.add((name, str(file), identity))
        began = sum(os.times()[:4])
        prepare(job, template, folder, file, changed)
        result = attempt(words, folder, number, job.writes, job.refusals)
        if result.outcome == "worked" and level == "bytes" and changed != (template / file).read_bytes():
            if job.checked and file.suffix == ".npy":
                result = Result("wrong result", f"damage of {file} was not noticed")
            elif job.same is None or file.suffix not in (".pt", ".npy"):
                pass  # nothing to compare with, or text that may differ
            elif content(folder / job.same) != _expected(name, file, template, scratch):
                result = Result("wrong result", f"damage of {file} changed what is in {job.same}")
        faulty = result.outcome in FAULTS
        kept = {str(file): changed} if faulty and changed is not None else {}
        took = sum(os.times()[:4]) - began  # seconds of processors, of forks as well
        results.put((name, level, result.outcome, result.detail, words if faulty else [], kept, took))
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _expected(name: str, file: Path, template: Path, scratch: Path) -> str:
    """Hash what a job writes when nothing is damaged."""
    from tests.fuzz.jobs import JOBS
    from tests.fuzz.runner import attempt, content, prepare

    job, folder = JOBS[name], scratch / f"undamaged{os.getpid()}"
    prepare(job, template, folder, file, None)
    result = attempt(job.command.replace("{file}", str(file)).split(), folder, 0, job.writes, job.refusals)
    assert result.outcome == "worked", f"undamaged {file}: {name}: {result}"
    assert job.same is not None
    digest = content(folder / job.same)
    shutil.rmtree(folder)
    return digest


def _keep(folder: Path, files: dict[str, bytes], words: list[str], what: str) -> None:
    """Keep the first input of every fault, with the command that found it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fault.json").write_text(json.dumps({"fault": what, "command": words}, indent=2))
    print(f"{folder.name}  {what}\n      {' '.join(words)[:300]!r}", flush=True)


def _say(table: dict[str, Counter[str]], begun: float, end: float) -> None:
    now = time.monotonic()
    total = sum(counter.total() for counter in table.values())
    faults = sum(counter[fault] for counter in table.values() for fault in FAULTS)
    left = max(0, end - now) / 60
    print(f"{total} inputs   {total / (now - begun):.1f}/s   {faults} faults   at most {left:.1f} min left", flush=True)


def _print(table: dict[str, Counter[str]], took: Counter[str], seconds: float) -> int:
    """Print a row for each kind of input, with the mean CPU time in milliseconds. Returns the number of faults."""
    from tests.fuzz.runner import OUTCOMES

    width = max((len(name) for name in table), default=10)
    print(f"\n{'':{width}}  " + "  ".join(f"{outcome:>8}" for outcome in OUTCOMES) + f"  {'CPU ms':>6}")
    sums: Counter[str] = Counter()
    for name in sorted(table):
        sums.update(table[name])
        counts = "  ".join(f"{table[name][o]:>{max(8, len(o))}}" for o in OUTCOMES)
        print(f"{name:{width}}  {counts}  {1000 * took[name] / table[name].total():6.0f}")
    print(f"{'all':{width}}  " + "  ".join(f"{sums[o]:>{max(8, len(o))}}" for o in OUTCOMES))
    faults = sum(sums[fault] for fault in FAULTS)
    each = took.total() / max(1, sums.total())
    print(f"{sums.total()} distinct inputs in {seconds / 60:.1f} min, {each:.2f} s of CPU time each, {faults} faults")
    return faults
