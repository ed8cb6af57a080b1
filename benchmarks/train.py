"""What training costs besides its updates, and two processes on this machine against one with as many threads.

python benchmarks/train.py --steps 300 --repeats 8

The first part runs `train` itself on random episodes in memory and measures, step by step in the same run, the time
inside `agent.update` and the time outside of it: drawing the batch, guards, console, CSV. The second part takes
turns, block by block, between one process with the whole batch on N threads, one on one thread, and N processes
(gloo) with a share of the batch and one thread each. Weights are random, since times do not depend on them. The last
line is JSON: `overhead` is time outside of updates over time inside, `processes_over_threads` the median ratio of the
times of blocks that followed each other, below 1 if processes are faster.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich import box, get_console
from rich.table import Table

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.chunks import Layout, write_chunk
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.distributed import ProcessGroup, process_group
from tdmpc2.training.offline import train

_WARM_UP = 20


def random_episodes(cfg: Config, episodes: int) -> dict[str, torch.Tensor]:
    """Random episodes of all tasks in turn."""
    layout, generator = Layout.of(cfg.task_specs), torch.Generator().manual_seed(0)
    shape = (episodes, layout.rows)
    obs = torch.randn(*shape, layout.obs_dim, generator=generator)
    action = torch.rand(*shape, layout.action_dim, generator=generator) * 2 - 1
    reward = torch.rand(shape, generator=generator)
    action[:, 0] = reward[:, 0] = torch.nan  # no step led to the first observation
    return {"obs": obs, "action": action, "reward": reward, "task": torch.arange(episodes) % layout.num_tasks}


def overhead(cfg: Config, steps: int, threads: int, directory: Path) -> dict[str, float]:
    """Time outside of updates over time inside, from a run of ``steps`` steps after some to warm up."""
    episodes = random_episodes(cfg, 60)
    write_chunk(directory / "data" / "chunk_0.pt", **episodes)
    spans: list[tuple[float, float]] = []
    update = TDMPC2.update

    def timed(self: TDMPC2, *args: Any) -> Any:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = update(self, *args)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        spans.append((start, time.perf_counter()))
        return result

    with mock.patch.object(TDMPC2, "update", timed):
        run = {"data_dir": str(directory / "data"), "work_dir": str(directory / "run"), "num_threads": threads}
        train(cfg.replace(**run, steps=_WARM_UP + steps + 1, eval_freq=0), None)
    starts, ends = (np.array(column)[_WARM_UP:] for column in zip(*spans, strict=True))
    inside = ends[:-1] - starts[:-1]
    outside = starts[1:] - ends[:-1]
    return {
        "update_ms": 1e3 * float(np.median(inside)),
        "outside_ms": 1e3 * float(outside.mean()),  # a mean: a row is logged in one step of log_freq
        "overhead": float(outside.sum() / inside.sum()),
    }


def stepper(cfg: Config, group: ProcessGroup) -> Callable[[int], None]:
    """A function of a step number that draws this process's rows and updates."""
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


def processes(cfg: Config, number: int, repeats: int, block: int) -> dict[str, float]:
    """Milliseconds of a step of one process on N threads, on one thread, and of N processes with one thread each."""
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
    cases: dict[str, Callable[[], None]] = {
        "threads": lambda: alone(number),
        "one_thread": lambda: alone(1),
        "processes": together,
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append((time.perf_counter() - start) / block)
    for pipe in pipes:
        pipe.send(0)
    times = {name: np.array(values) for name, values in seconds.items()}
    return {
        **{f"{name}_ms": 1e3 * float(np.median(values)) for name, values in times.items()},
        "processes_over_threads": float(np.median(times["processes"] / times["threads"])),
        "processes_over_one_thread": float(np.median(times["processes"] / times["one_thread"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="steps of the first part (default: 300)")
    parser.add_argument("--repeats", type=int, default=8, help="blocks of each kind in the second part (default: 8)")
    parser.add_argument("--block", type=int, default=5, help="steps of a block (default: 5)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--processes", type=int, default=2, help="processes and threads, N (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="threads in the first part (default: 1)")
    parser.add_argument("--device", default="cpu", help="of the first part; the second is for processors only")
    args = parser.parse_args()
    cfg = Config(batch_size=args.batch_size, device=args.device)
    with tempfile.TemporaryDirectory() as directory:
        result = overhead(cfg, args.steps, args.threads, Path(directory))
    table = Table("a step", "ms", "", box=box.SIMPLE)
    table.add_row("inside the update", f"{result['update_ms']:.1f}", "")
    table.add_row("outside of it", f"{result['outside_ms']:.2f}", f"{result['overhead']:.2%}")
    if args.processes > 1:
        result |= processes(cfg.replace(device="cpu"), args.processes, args.repeats, args.block)
        number = args.processes
        table.add_row(f"one process, {number} threads", f"{result['threads_ms']:.1f}", "1.00")
        one = result["one_thread_ms"] / result["threads_ms"]
        table.add_row("one process, one thread", f"{result['one_thread_ms']:.1f}", f"{one:.2f}")
        table.add_row(f"{number} processes", f"{result['processes_ms']:.1f}", f"{result['processes_over_threads']:.2f}")
    get_console().print(table)
    facts = {name: getattr(args, name) for name in ("device", "batch_size", "steps", "repeats", "processes", "threads")}
    print(json.dumps({**facts, "torch": torch.__version__, **result}))


if __name__ == "__main__":
    main()
