"""Time the planner without Python: the first action, each action beside this program's kernels, and the slowest ones.

python benchmarks/native.py mt30_1M_steps_045dist_fp16.pt --threads 2

A folder is exported and built (a minute or two). Then, for each precision, actions of `libtdmpc2` and of this program
with its CPU kernels are timed in turns, both from an observation on and with their own random numbers, and
`control_loop` (examples/cpp) runs by itself with a small budget: --steps plans. Results: of times `name`, `precision`,
`ms`, `speedup` over this program; of the control loop `first_ms` (from the start of the process to its end after one
action, the median of several), `median_ms`, `tail_ms` (99.9th percentile) and `tail` (as a multiple of the median);
of `steady work` the same for as much plain arithmetic in as many threads, which shows how even the machine itself is;
`bytes` of the stripped library.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks._harness import REPO, make_parser, parse, print_table, report, skip, take_turns
from benchmarks._inputs import student
from tdmpc2.acceleration.cpu import library
from tdmpc2.export import native
from tdmpc2.export.native_library import NativeLibrary, build
from tdmpc2.export.native_model import read_source, write_model
from tdmpc2.export.request import Request
from tdmpc2.loading import load_agent

MINUTES = 4
FULL_MINUTES = 30
BY_NAME = True
DISK_GB = 0

TASK = "walker-walk"
SMALL = {"num_samples": 64, "iterations": 2}  # of the control loop


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=100)
    parser.add_argument("checkpoint", nargs="?", type=Path, help="(default: a trained student that is here, or random)")
    parser.add_argument("--built", type=Path, help="where the library was built before (default: it is built)")
    parser.add_argument("--steps", type=int, default=5_000, help="of the control loop (default: %(default)s)")
    args = parse(parser, argv, {"steps": 100_000}, steps=20)
    if reason := library.reason():
        skip(f"the CPU kernels are not available: {reason}")
    if not (shutil.which("cmake") and shutil.which("strip")):
        skip("cmake and strip are not installed")
    with student(args) as checkpoint, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        native.write_sources(folder)
        made = args.built or build(folder, target="all")
        small = folder / "stripped.so"
        subprocess.run(["strip", "-o", small, made / "libtdmpc2.so"], check=True)
        results: list[dict[str, Any]] = [{"name": "library, stripped", "bytes": small.stat().st_size}]
        task = task_of(checkpoint)
        for precision in ("fp32",) if args.quick else ("fp32", "int8"):
            results += times(args, folder, made, Request(checkpoint, task=task, precision=precision))
        results += control_loop(args, folder, made, Request(checkpoint, task=task, precision="int8"))
    columns = [("", "name", ""), ("precision", "precision", ""), ("ms", "ms", ".2f"), ("speedup", "speedup", ".2f")]
    print_table([row for row in results if "ms" in row], columns)
    tail = [("first, ms", "first_ms", ".1f"), ("median, ms", "median_ms", ".3f"), ("99.9 %, ms", "tail_ms", ".3f")]
    print_table(results[-2:], [("", "name", ""), *tail, ("of the median", "tail", ".2f")])
    report("native", args, results)


def task_of(checkpoint: Path) -> str | None:
    """Return the task to measure, or None if the file has only one."""
    cfg = load_agent(checkpoint, device="cpu", precision="fp32", compile=False, quiet=True).cfg
    names = [cfg.task_names[task_id] for task_id in cfg.task_ids]
    return None if not cfg.multitask else TASK if TASK in names else names[0]


def times(args: Any, folder: Path, made: Path, request: Request) -> list[dict[str, Any]]:
    """Time single actions of the whole budget in turns."""
    precision = request.precision
    source = read_source(replace(request, overrides=SMALL if args.quick else None))
    model = folder / f"{precision}.safetensors"
    write_model(model, source)
    agent = NativeLibrary(made / "libtdmpc2.so").open(model, threads=args.threads)
    obs = np.linspace(-1, 1, source.cfg.obs_dim, dtype=np.float32)
    player = source.agent.player(num_envs=1)
    task = source.cfg.task_ids[0]
    player.act(obs, True, task=task)
    turns = take_turns(
        {"this program": lambda: player.act(obs, task=task), "libtdmpc2": lambda: agent.plan(obs[None], [0])},
        args.repeats,
        limit=args.limit,
        label=precision,
    )
    return [
        {"name": name, "precision": precision, "ms": turns.ms(name), "speedup": turns.speedup(name)}
        for name in turns.seconds
    ]


def control_loop(args: Any, folder: Path, made: Path, request: Request) -> list[dict[str, Any]]:
    """Run the example's control loop several times for its first action, once for long, and then plain arithmetic."""
    model = folder / "small.safetensors"
    write_model(model, read_source(replace(request, overrides=SMALL)))
    program = compiled(REPO / "examples" / "cpp" / "control_loop.cpp", folder, f"-I{folder / 'include'}", made=made)
    firsts = []
    for _ in range(3 if args.quick else 20):
        began = time.perf_counter()
        subprocess.run([program, model, "0", "1", str(args.threads)], check=True, capture_output=True)
        firsts.append(1e3 * (time.perf_counter() - began))
    loop = steadiness("control loop", [program, model, "0", str(args.steps), str(args.threads)])
    program = compiled(REPO / "benchmarks" / "steady_work.cpp", folder)
    work = [program, str(args.steps), str(loop["median_ms"]), str(args.threads)]
    rows = [loop | {"first_ms": median(firsts)}, steadiness("steady work", work)]
    return [row | {"steps": args.steps} for row in rows]


def compiled(source: Path, folder: Path, *options: str, made: Path | None = None) -> Path:
    program = folder / source.stem
    library = [] if made is None else [made / "libtdmpc2.a"]
    subprocess.run(
        ["c++", "-std=c++17", "-O2", *options, source, *library, "-pthread", "-o", program],
        check=True,
    )
    return program


def steadiness(name: str, command: list[Any]) -> dict[str, Any]:
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"median (\S+) ms, 99.9th percentile (\S+) ms", said)
    assert found, said
    middle, tail = map(float, found.groups())
    return {"name": name, "median_ms": middle, "tail_ms": tail, "tail": tail / middle}


if __name__ == "__main__":
    main()
