"""Time of an evaluation of all tasks: with the plain planner, and as evaluate.py plays, in turns of cut episodes.

python benchmarks/evaluation.py ../shared/checkpoints/mt30_1M_steps_045dist_fp16.pt

A turn is the first --steps steps of one episode of each task, by every agent in batches of the size that evaluate.py
would choose for it. Environments are built before. Times are per step of one environment, medians of the turns, and
`whole` what 15 000 of them, one whole episode of each of the 30 tasks, would take. The last line is JSON: `cases`, a
list with `name`, `plain_ms`, `fast_ms`, `speedup` (the median of the turns' ratios), `matmul_ms` (a plan's matrix
products alone, by PyTorch in that format) and `env_ms`, the part of `fast_ms` that the environments take.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import box, get_console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.plan import product_run
from tdmpc2.agent import TDMPC2
from tdmpc2.envs.vector import EnvPool
from tdmpc2.loading import load_agent
from tdmpc2.play.evaluation import agent_actor, num_steps, side_by_side
from tdmpc2.play.rollout import Job, play
from tdmpc2.support.runtime import set_num_threads
from tdmpc2.tracking.progress import progress

PLAIN = "plain fp32"


class Player:
    """Plays the first steps of every task with one agent, in environments that are built once."""

    def __init__(self, agent: TDMPC2, steps: int, stack: contextlib.ExitStack) -> None:
        cfg = agent.cfg
        jobs = [Job(task_id, cfg.eval_seed) for task_id in cfg.task_ids]
        self.agent, self.steps, self.size = agent, steps, side_by_side(cfg, len(jobs), agent)
        self.batches = [jobs[first : first + self.size] for first in range(0, len(jobs), self.size)]
        self.pools = [stack.enter_context(EnvPool(cfg.obs_dim, cfg.action_dim)) for _ in self.batches]
        self._play(1)

    def __call__(self) -> NDArray[np.float64]:
        """Seconds of one turn per step of one environment, and those of them that the agent took."""
        return self._play(self.steps) / (self.steps * sum(map(len, self.batches)))

    def _play(self, steps: int) -> NDArray[np.float64]:
        seconds = np.zeros(2)
        act = agent_actor(self.agent, noise=False)

        def timed(*args: NDArray) -> NDArray[np.float32]:
            start = time.perf_counter()
            action = act(*args)
            seconds[1] += time.perf_counter() - start
            return action

        start = time.perf_counter()
        for batch, pool in zip(self.batches, self.pools, strict=True):
            play(self.agent.cfg, timed, batch, max_steps=steps, pool=pool)
        seconds[0] = time.perf_counter() - start
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"])
    parser.add_argument("--steps", type=int, default=10, help="of each episode (default: 10)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: 5)")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    threads = set_num_threads(args.threads)
    plain = load_agent(args.checkpoint, precision="fp32", compile="false")
    agents = {PLAIN: plain}
    for precision in args.precisions:
        agents[precision] = agent = load_agent(args.checkpoint, precision=precision)
        print(agent.compile_planner(num_steps(agent.cfg)) or f"{precision}: {agent.planner.kind}", flush=True)
    table = Table("planner", "batch", "ms a step", "environments", "speedup", "whole, min", box=box.SIMPLE)
    with contextlib.ExitStack() as stack:
        players = {name: Player(agent, args.steps, stack) for name, agent in agents.items()}
        products: dict[str, Callable[[], object]] = {
            name: product_run(agent.cfg, agent.precision, players[name].size, agent.device)
            for name, agent in agents.items()
        }
        seconds: dict[str, list[NDArray[np.float64]]] = {name: [] for name in players}
        floors: dict[str, list[float]] = {name: [] for name in players}
        for _ in progress(range(args.repeats), "Playing", unit="turns"):
            for name, player in players.items():
                seconds[name].append(player())
                start = time.perf_counter()
                products[name]()
                floors[name].append((time.perf_counter() - start) / player.size)
    times = {name: 1e3 * np.array(values) for name, values in seconds.items()}  # [turns, 2]
    cases = []
    for name, player in players.items():
        whole, acting = np.median(times[name], 0)
        case = {
            "name": name,
            "plain_ms": float(np.median(times[PLAIN][:, 0])),
            "fast_ms": float(whole),
            "speedup": float(np.median(times[PLAIN][:, 0] / times[name][:, 0])),
            "matmul_ms": 1e3 * float(np.median(floors[name])),
            "env_ms": float(whole - acting),
        }
        cases.append(case)
        steps = num_steps(player.agent.cfg.replace(eval_episodes=1))
        cells = (f"{whole:.2f}", f"{whole - acting:.2f}", f"{case['speedup']:.2f}", f"{whole * steps / 6e4:.1f}")
        table.add_row(name, str(player.size), *cells)
    get_console().print(table)
    print(json.dumps({"threads": threads, "steps": args.steps, "repeats": args.repeats, "cases": cases}))


if __name__ == "__main__":
    main()
