"""How to play many environments: stepping, building and planning in several ways, interleaved in one run.

python benchmarks/collect.py --full

Stepping: 16 environments of mixed MT30 tasks, one after another (`sync`, what collect.py does), on a thread pool, in
one process each (Gymnasium's AsyncVectorEnv, shared memory), and in one worker process per core, playing at random and
with the policy of a 1M model. Building: 16 random episodes of one task, in as many new environments and in fewer that
are used again. Planning: time of a batched plan per environment. Results: `name` (stepping, building, planning) with
`actor`, `variant`, `steps_per_s`, `to_sync` and `start_s` (until the first step); `variant`, `s` and `to_new`; or
`num_envs`, `ms_per_env` and `to_one`.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from benchmarks._harness import Run, make_parser, parse, print_table, report, take_turns
from benchmarks._inputs import make_config
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.envs import make_env
from tdmpc2.envs.vector import EnvPool, make_vec_env
from tdmpc2.envs.wrappers import PadEnv
from tdmpc2.play.actors import random_actor
from tdmpc2.play.rollout import Actor, Job, play
from tdmpc2.support.runtime import resolve_device
from tdmpc2.tasks import TaskSpec

MINUTES = 1.5
FULL_MINUTES = 3
DISK_GB = 0

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

    def __init__(self, specs: list[TaskSpec], seeds: list[int], sizes: tuple[int, int], count: int) -> None:
        context = multiprocessing.get_context("fork")
        self.ends: list[Connection] = []
        for share in np.array_split(np.arange(len(specs)), count):
            mine, theirs = context.Pipe()
            arguments = (theirs, [specs[i] for i in share], [seeds[i] for i in share], sizes)
            context.Process(target=self.serve, args=arguments, daemon=True).start()
            self.ends.append(mine)

    @staticmethod
    def serve(end: Connection, specs: list[TaskSpec], seeds: list[int], sizes: tuple[int, int]) -> None:
        envs = make_vec_env(specs, seeds, *sizes)
        while (actions := end.recv()) is not False:
            end.send(envs.reset(seed=[*seeds])[:1] if actions is None else envs.step(actions)[:4])

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


def stepping(
    cfg: Config, num_envs: int, steps: int, cores: int, repeats: int, limit: float | None
) -> list[dict[str, Any]]:
    """Measure steps per second of every way to step by actor, and seconds until the first step."""
    seeds, ids = list(range(num_envs)), np.arange(num_envs) * 2 % len(cfg.task_specs)
    specs = [cfg.task_specs[i] for i in ids]
    sizes = cfg.obs_dim, cfg.action_dim

    def build(name: str, seed: int) -> PadEnv:
        return PadEnv(make_env(name, seed), *sizes)

    builders = [partial(build, spec.name, seed) for spec, seed in zip(specs, seeds, strict=True)]
    ways: dict[str, Callable[[], Any]] = {
        "sync": lambda: make_vec_env(specs, seeds, *sizes),
        "threads": lambda: Threads([build() for build in builders], cores),
        "async": lambda: AsyncVectorEnv(builders, autoreset_mode=AutoresetMode.DISABLED),
        "workers": lambda: Workers(specs, seeds, sizes, cores),
    }
    make_env(TASK, 0).close()  # imports the simulator before the time that counts
    start_s, envs = {}, {}
    for way, make in ways.items():
        start = time.perf_counter()
        envs[way] = make()
        envs[way].reset(seed=seeds)
        start_s[way] = time.perf_counter() - start
    agent = TDMPC2(cfg.replace(mpc=False))
    actors: dict[str, Actor] = {
        "random": random_actor(cfg, 0),
        "policy": lambda obs, t0, task_ids: agent.act(obs, t0=t0, task=task_ids),
    }
    first: dict[str, Any] = {}  # observations, from the reset before the turn
    runs: dict[str, Run] = {}
    resets: dict[str, Run] = {}

    def reset(way: str) -> None:
        first[way] = envs[way].reset(seed=seeds)[0]

    def run(actor: str, way: str) -> None:
        obs = first[way]
        for t in range(steps):
            obs = envs[way].step(actors[actor](obs, np.full(num_envs, t == 0), ids))[0]

    for actor in actors:
        for way in ways:
            runs[f"{actor} {way}"], resets[f"{actor} {way}"] = partial(run, actor, way), partial(reset, way)
    times = take_turns(runs, repeats, warm_up=0, prepare=resets, limit=limit)
    for batch in envs.values():
        batch.close()
    results = []
    for actor in actors:
        ms = {way: times.ms(f"{actor} {way}") for way in ways}
        for way in ways:
            rate = {"steps_per_s": 1e3 * num_envs * steps / ms[way], "to_sync": ms["sync"] / ms[way]}
            results.append({"name": "stepping", "actor": actor, "variant": way, **rate, "start_s": start_s[way]})
    return results


def building(cfg: Config, episodes: int, repeats: int, limit: float | None) -> list[dict[str, Any]]:
    """Measure random episodes of one task, in as many new environments and in fewer that are used again."""
    jobs = [Job(cfg.task_names.index(TASK), seed) for seed in range(episodes)]

    def run(size: int) -> None:
        actor = random_actor(cfg, 0)
        with EnvPool(cfg.obs_dim, cfg.action_dim) as pool:
            for first in range(0, len(jobs), size):
                play(cfg, actor, jobs[first : first + size], pool=pool)

    new = f"{episodes} new"
    runs: dict[str, Run] = {new: partial(run, episodes)}
    runs |= {f"{size} used again": partial(run, size) for size in (4, 8) if size < episodes}
    times = take_turns(runs, repeats, warm_up=0, limit=limit)
    return [
        {"name": "building", "variant": name, "s": times.ms(name) / 1e3, "to_new": times.ratio(name, new)}
        for name in runs
    ]


def planning(cfg: Config, sizes: list[int], repeats: int, limit: float | None) -> list[dict[str, Any]]:
    """Measure a plan per environment, by the number of environments planned for together."""
    agent = TDMPC2(cfg)

    def run(size: int) -> None:
        obs = np.zeros((size, cfg.obs_dim), np.float32)
        agent.act(obs, t0=True, task=np.arange(size) % len(cfg.task_specs))

    runs = {str(size): partial(run, size) for size in sizes}
    times = take_turns(runs, repeats, warm_up=1, device=agent.device, limit=limit)
    ms = {size: times.ms(str(size)) / size for size in sizes}
    one = ms[sizes[0]]
    return [{"name": "planning", "num_envs": n, "ms_per_env": ms[n], "to_one": ms[n] / one} for n in sizes]


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=5, device="auto")
    parser.add_argument("--envs", type=int, default=16, help="environments, and episodes of building (default: 16)")
    parser.add_argument("--steps", type=int, default=60, help="of each environment in a turn (default: 60)")
    parser.add_argument("--batches", type=int, nargs="+", help="environments per plan (default: by the device)")
    args = parse(parser, argv, envs=2, steps=5, batches=[1, 2])
    cfg, device = make_config(args), resolve_device(args.device).type

    steps = stepping(cfg, args.envs, args.steps, args.threads, args.repeats, args.limit)
    columns = [
        ("actor", "actor", ""), ("environments", "variant", ""), ("steps/s", "steps_per_s", ",.0f"),
        ("to sync", "to_sync", ".2f"), ("start s", "start_s", ".2f"),
    ]  # fmt: skip
    print_table(steps, columns)
    built = building(cfg, args.envs, args.repeats, args.limit)
    name, ratio = f"{args.envs} random episodes", f"to {args.envs} new"
    print_table(built, [(name, "variant", ""), ("s", "s", ".2f"), (ratio, "to_new", ".2f")])
    batches = args.batches or ([1, 2, 4, 8, 16] if device == "cpu" else [1, 4, 16, 64, 256])
    plans = planning(cfg, batches, args.repeats, args.limit)
    columns = [("environments per plan", "num_envs", ""), ("ms each", "ms_per_env", ".1f"), ("to 1", "to_one", ".2f")]
    print_table(plans, columns)
    report("collect", args, [*steps, *built, *plans])


if __name__ == "__main__":
    main()
