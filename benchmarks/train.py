"""What training costs besides its updates, and two processes on this machine against one with as many threads.

python benchmarks/train.py --full

The first part runs `train` itself on random episodes in memory and measures, step by step in the same run, the time
inside `agent.update` and the time outside of it: drawing the batch, guards, console, CSV. The second part takes
turns, block by block, between one process with the whole batch on N threads, one on one thread, and N processes
(gloo) with a share of the batch and one thread each. Weights are random, since times do not depend on them. Results:
`name` and `ms` of a step; `overhead` is time outside of updates over time inside; `over_threads` the median ratio of
the times of blocks of the same turn to those on N threads, below 1 if faster.

With --online it measures learning by acting instead: a step of the loop (a full plan, a step of the environment, an
update) compiled, against the same on plain paths (compile=false), in turns, for each of --sizes; its three parts alone,
whose sum is what the loop cannot be faster than (`overhead`: what it takes beside); a step of three walkers that share
a body against three apart (`plain_ms`), and a save with a full buffer of --rows rows, as a share of the 10,000 steps
between two. The first minutes compile.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks._harness import Run, make_parser, parse, report, take_turns, wait
from benchmarks._inputs import SMALL, make_config, random_episodes
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.chunks import write_chunk
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.distributed import ProcessGroup, process_group
from tdmpc2.training.offline import train

MINUTES = 1
FULL_MINUTES = 3
DISK_GB = 0.1

_WARM_UP = 20


def overhead(cfg: Config, steps: int, threads: int, directory: Path) -> list[dict[str, Any]]:
    """Measure time inside and outside of updates in a run of ``steps`` steps after some to warm up."""
    write_chunk(directory / "data" / "chunk_0.pt", **random_episodes(cfg, 60))
    spans: list[tuple[float, float]] = []
    update = TDMPC2.update

    def timed(self: TDMPC2, *args: Any) -> Any:
        wait(self.device)
        start = time.perf_counter()
        result = update(self, *args)
        wait(self.device)
        spans.append((start, time.perf_counter()))
        return result

    with mock.patch.object(TDMPC2, "update", timed):
        run = {"data_dir": str(directory / "data"), "work_dir": str(directory / "run"), "num_threads": threads}
        train(cfg.replace(**run, steps=_WARM_UP + steps + 1, eval_freq=0), None)
    starts, ends = (np.array(column)[_WARM_UP:] for column in zip(*spans, strict=True))
    inside = ends[:-1] - starts[:-1]
    outside = starts[1:] - ends[:-1]
    # The time outside is a mean, since only one step in log_freq logs a row.
    return [
        {"name": "inside the update", "ms": 1e3 * float(np.median(inside))},
        {"name": "outside of it", "ms": 1e3 * float(outside.mean()), "overhead": float(outside.sum() / inside.sum())},
    ]


def stepper(cfg: Config, group: ProcessGroup) -> Callable[[int], None]:
    """Return a function of a step number that draws this process's rows and updates."""
    sampler = SliceSampler(EpisodeDataset.of(**random_episodes(cfg, 60)))
    agent, own = TDMPC2(cfg, group=group), group.rows(cfg.batch_size)

    def step(number: int) -> None:
        rows = sampler.rows(number, cfg.batch_size, cfg.horizon, cfg.seed)
        agent.update(sampler.gather(rows[:, own]))

    return step


def _process(cfg: Config, environment: dict[str, str], parent: Connection) -> None:
    """Make as many steps as the parent says, each time it says so; 0 ends."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    with process_group("cpu") as group:
        step, done = stepper(cfg, group), 0
        parent.send("ready")
        while count := parent.recv():
            for _ in range(count):
                step(done)
                done += 1
            parent.send("done")


def processes(cfg: Config, number: int, repeats: int, block: int, limit: float | None) -> list[dict[str, Any]]:
    """Measure a step of one process on N threads, of one on one thread, and of N processes with one thread each."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    context, pipes = multiprocessing.get_context("spawn"), []
    for rank in range(number):
        ours, theirs = multiprocessing.Pipe()
        environment = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        context.Process(target=_process, args=(cfg, environment, theirs), daemon=True).start()
        pipes.append(ours)
    step = stepper(cfg, ProcessGroup())

    def alone(threads: int) -> None:
        torch.set_num_threads(threads)
        for index in range(block):
            step(index)

    def together() -> None:
        for pipe in pipes:
            pipe.send(block)
        for pipe in pipes:
            pipe.recv()

    for pipe in pipes:
        pipe.recv()
    cases: dict[str, Run] = {
        f"1 process, {number} threads": lambda: alone(number),
        "1 process, 1 thread": lambda: alone(1),
        f"{number} processes": together,
    }
    times = take_turns(cases, repeats, warm_up=1, limit=limit)
    for pipe in pipes:
        pipe.send(0)
    threads = next(iter(cases))
    return [{"name": name, "ms": times.ms(name) / block, "over_threads": times.ratio(name, threads)} for name in cases]


def online(args: argparse.Namespace) -> None:
    """Measure learning by acting, and report it."""
    from benchmarks import _online

    small = {key: value for key, value in SMALL.items() if key != "tasks"} if args.quick else {}
    turns = {"block": args.block, "repeats": args.repeats, "limit": args.limit}
    keys = {"device": args.device, **small}
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for size in args.sizes[: 1 if args.quick else None]:
            own = {"task": args.task, "model_size": size, **keys}
            place = Path(directory, str(size))
            results.append(_online.whole_and_parts(place, f"{args.task}, {size}M", **turns, **own))
        walkers = ("walker-stand", "walker-walk", "walker-run")
        place, first = Path(directory), {"model_size": args.sizes[0], **keys}
        results.append(_online.sharing(place, walkers, **turns, **first))
        cfg = _online.config(place, "any", False, task=args.task, **first)
        results.append(_online.saving(cfg, place, args.rows, args.repeats, results[0]["fast_ms"]))
    columns = [
        ("a step", "name", ""), ("plain ms", "plain_ms", ".2f"), ("fast ms", "fast_ms", ".2f"),
        ("speed up", "speedup", ".2f"), ("acting", "acting_ms", ".2f"), ("environ ment", "environment_ms", ".2f"),
        ("updating", "updating_ms", ".2f"), ("over head", "overhead", ".1%"),
    ]  # fmt: skip
    report("train", args, results, columns)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=8, threads=1)
    parser.add_argument(
        "--steps", type=int, default=100, help="steps of the first part (default: %(default)s, 300 with --full)"
    )
    parser.add_argument("--block", type=int, default=5, help="steps of a block (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--processes", type=int, default=2, help="processes and threads, N (default: 2)")
    parser.add_argument("--online", action="store_true", help="measure learning by acting (about ten minutes)")
    parser.add_argument("--task", default="walker-walk", help="of --online (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 5], help="of --online (default: 1 5)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of --online (default: a million)")
    args = parse(parser, argv, {"steps": 300}, steps=20, block=1, rows=3000)
    if args.online:
        online(args)
        return
    cfg = make_config(args, batch_size=args.batch_size)
    with tempfile.TemporaryDirectory() as directory:
        results = overhead(cfg, args.steps, args.threads, Path(directory))
    if args.processes > 1:
        results += processes(cfg.replace(device="cpu"), args.processes, args.repeats, args.block, args.limit)
    columns = [
        ("a step", "name", ""), ("ms", "ms", ".2f"), ("of the update", "overhead", ".2%"),
        ("of N threads", "over_threads", ".2f"),
    ]  # fmt: skip
    report("train", args, results, columns)


if __name__ == "__main__":
    main()
