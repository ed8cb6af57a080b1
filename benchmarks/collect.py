"""How to play many environments: stepping, building and planning in several ways, interleaved in one run.

python benchmarks/collect.py --repeats 5

Stepping: 16 environments of mixed MT30 tasks, one after another (`sync`, what collect.py does), on a thread pool, in
one process each (Gymnasium's AsyncVectorEnv, shared memory), and in one worker process per core, playing at random and
with the policy of a 1M model. Building: 16 random episodes of one task, in as many new environments and in fewer that
are used again. Planning: time of a batched plan per environment. The last line is JSON with all of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from rich import box, get_console
from rich.table import Table

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.envs import make_env
from tdmpc2.envs.vector import EnvPool, make_vec_env
from tdmpc2.envs.wrappers import PadEnv
from tdmpc2.play.mixture import random_actor
from tdmpc2.play.rollout import Actor, Job, play
from tdmpc2.support.runtime import set_num_threads
from tdmpc2.tasks import TaskSpec

NUM_ENVS, STEPS = 16, 60
SEEDS = list(range(NUM_ENVS))
TASK = "pendulum-spin"


class Threads:
    """Environments stepped on a pool of threads."""

    def __init__(self, envs: list[PadEnv], count: int) -> None:
        self.envs, self.pool = envs, ThreadPoolExecutor(count)

    def reset(self, *, seed: list[int]) -> tuple[Any, Any]:
        return np.stack([env.reset(seed=s)[0] for env, s in zip(self.envs, seed, strict=True)]), {}

    def step(self, actions: Any) -> tuple[Any, ...]:
        results = list(self.pool.map(lambda pair: pair[0].step(pair[1]), zip(self.envs, actions, strict=True)))
        return tuple(np.array(column) for column in zip(*results, strict=True))

    def close(self) -> None:
        self.pool.shutdown()


class Workers:
    """Processes that each step a share of the environments one after another."""

    def __init__(self, specs: list[TaskSpec], sizes: tuple[int, int], count: int) -> None:
        context = multiprocessing.get_context("fork")
        self.ends: list[Connection] = []
        for share in np.array_split(np.arange(len(specs)), count):
            mine, theirs = context.Pipe()
            arguments = (theirs, [specs[i] for i in share], [SEEDS[i] for i in share], sizes)
            context.Process(target=self.serve, args=arguments, daemon=True).start()
            self.ends.append(mine)

    @staticmethod
    def serve(end: Connection, specs: list[TaskSpec], seeds: list[int], sizes: tuple[int, int]) -> None:
        envs = make_vec_env(specs, seeds, *sizes)
        while (actions := end.recv()) is not False:
            end.send(envs.reset(seed=seeds)[:1] if actions is None else envs.step(actions)[:4])

    def call(self, parts: list[Any]) -> tuple[Any, ...]:
        for end, part in zip(self.ends, parts, strict=True):
            end.send(part)
        return tuple(np.concatenate(column) for column in zip(*(end.recv() for end in self.ends), strict=True))

    def reset(self, *, seed: list[int]) -> tuple[Any, ...]:
        return self.call([None for _ in self.ends])

    def step(self, actions: Any) -> tuple[Any, ...]:
        return self.call(np.array_split(actions, len(self.ends)))

    def close(self) -> None:
        for end in self.ends:
            end.send(False)


def stepping(cfg: Config, cores: int, repeats: int) -> dict[str, Any]:
    """Median steps per second of every way by actor, ratios to ``sync``, and seconds until the first step."""
    ids = np.arange(NUM_ENVS) * 2 % len(cfg.task_specs)
    specs = [cfg.task_specs[i] for i in ids]
    sizes = cfg.obs_dim, cfg.action_dim

    def build(name: str, seed: int) -> PadEnv:
        return PadEnv(make_env(name, seed), *sizes)

    builders = [partial(build, spec.name, seed) for spec, seed in zip(specs, SEEDS, strict=True)]
    ways: dict[str, Callable[[], Any]] = {
        "sync": lambda: make_vec_env(specs, SEEDS, *sizes),
        "threads": lambda: Threads([build() for build in builders], cores),
        "async": lambda: AsyncVectorEnv(builders, autoreset_mode=AutoresetMode.DISABLED),
        "workers": lambda: Workers(specs, sizes, cores),
    }
    make_env(TASK, 0).close()  # imports
    start_s, envs = {}, {}
    for name, make in ways.items():
        start = time.perf_counter()
        envs[name] = make()
        envs[name].reset(seed=SEEDS)
        start_s[name] = time.perf_counter() - start
    agent = TDMPC2(cfg.replace(mpc=False))
    actors: dict[str, Actor] = {
        "random": random_actor(cfg, 0),
        "policy": lambda obs, t0, task_ids: agent.act(obs, t0=t0, task=task_ids),
    }
    times: dict[tuple[str, str], list[float]] = {(actor, way): [] for actor in actors for way in ways}
    for _ in range(repeats):
        for (actor, way), seconds in times.items():
            obs = envs[way].reset(seed=SEEDS)[0]
            start = time.perf_counter()
            for t in range(STEPS):
                obs = envs[way].step(actors[actor](obs, np.full(NUM_ENVS, t == 0), ids))[0]
            seconds.append(time.perf_counter() - start)
    for batch in envs.values():
        batch.close()
    rates = {actor: {way: NUM_ENVS * STEPS / float(np.median(times[actor, way])) for way in ways} for actor in actors}
    ratios = {actor: {way: rate / each["sync"] for way, rate in each.items()} for actor, each in rates.items()}
    return {"steps_per_s": rates, "to_sync": ratios, "start_s": start_s}


def building(cfg: Config, repeats: int) -> dict[str, float]:
    """Median seconds of 16 random episodes of one task, in 16 new environments and in 4 or 8 that are used again."""
    jobs = [Job(cfg.task_names.index(TASK), seed) for seed in range(16)]
    times: dict[str, list[float]] = {"16 new": [], "4 used again": [], "8 used again": []}
    for _ in range(repeats):
        for name, seconds in times.items():
            size = int(name.split()[0])
            start = time.perf_counter()
            actor = random_actor(cfg, 0)
            with EnvPool(cfg.obs_dim, cfg.action_dim) as pool:
                for first in range(0, len(jobs), size):
                    play(cfg, actor, jobs[first : first + size], pool=pool)
            seconds.append(time.perf_counter() - start)
    return {name: float(np.median(seconds)) for name, seconds in times.items()}


def planning(cfg: Config, sizes: list[int], repeats: int) -> dict[int, float]:
    """Median milliseconds of a plan per environment, by the number of environments planned for together."""
    agent = TDMPC2(cfg)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(repeats + 1):
        for size in sizes:
            obs = np.zeros((size, cfg.obs_dim), np.float32)
            start = time.perf_counter()
            agent.act(obs, t0=True, task=np.arange(size) % len(cfg.task_specs))  # returns NumPy: waits for the device
            times[size].append(time.perf_counter() - start)
    return {size: 1e3 * float(np.median(seconds[1:])) / size for size, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="cores for planning and for worker processes")
    args = parser.parse_args()
    cores = set_num_threads(args.threads)
    cfg = Config()
    console = get_console()

    steps = stepping(cfg, cores, args.repeats)
    table = Table("actor", "environments", "steps/s", "to sync", "start s", box=box.SIMPLE)
    for actor, ways in steps["steps_per_s"].items():
        for way, rate in ways.items():
            ratio, start = steps["to_sync"][actor][way], steps["start_s"][way]
            table.add_row(actor, way, f"{rate:,.0f}", f"{ratio:.2f}", f"{start:.2f}")
    console.print(table)

    built = building(cfg, args.repeats)
    table = Table("16 random episodes", "s", "to 16 new", box=box.SIMPLE)
    for name, seconds in built.items():
        table.add_row(name, f"{seconds:.2f}", f"{seconds / built['16 new']:.2f}")
    console.print(table)

    device = TDMPC2(cfg).device.type
    plans = planning(cfg, [1, 2, 4, 8, 16] if device == "cpu" else [1, 4, 16, 64, 256], args.repeats)
    table = Table("environments per plan", "ms per environment", "to 1", box=box.SIMPLE)
    for size, milliseconds in plans.items():
        table.add_row(str(size), f"{milliseconds:.1f}", f"{milliseconds / plans[1]:.2f}")
    console.print(table)

    about = {"device": device, "cores": cores, "torch": torch.__version__, "repeats": args.repeats}
    print(json.dumps({**about, "stepping": steps, "episodes_s": built, "planning_ms_per_env": plans}))


if __name__ == "__main__":
    main()
