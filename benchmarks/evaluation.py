"""Time of an evaluation of all tasks: with the plain planner, and as evaluate.py plays, in turns of cut episodes.

python benchmarks/evaluation.py mt30_1M_steps_045dist_fp16.pt

A turn is the first --steps steps of one episode of each task, by every agent in batches of the size that evaluate.py
would choose for it. Environments are built before. Times are per step of one environment, medians of the turns.
Results: `name`, `batch`, `plain_ms`, `fast_ms`, `speedup` (the median of the turns' ratios), `matmul_ms` (a plan's
matrix products alone, by PyTorch in that format), `env_ms`, the part of `fast_ms` that the environments take, and
`whole_min`, what a whole episode of each task, 15 000 steps for MT30, would take.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks._harness import Run, make_parser, parse, report, take_turns
from benchmarks._inputs import student
from benchmarks.plan import product_run
from tdmpc2.agent import TDMPC2
from tdmpc2.envs.vector import EnvPool
from tdmpc2.loading import load_agent
from tdmpc2.play.actors import agent_actor
from tdmpc2.play.evaluation import num_steps, side_by_side
from tdmpc2.play.rollout import Job, play

MINUTES = 2.5
FULL_MINUTES = 8
DISK_GB = 0

PLAIN = "plain fp32"


class Evaluator:
    """Plays the first steps of every task with one agent, in environments that are built once.

    Attributes:
        acting: seconds that the agent took in each turn.
    """

    def __init__(self, agent: TDMPC2, steps: int, stack: contextlib.ExitStack) -> None:
        cfg = agent.cfg
        jobs = [Job(task_id, cfg.eval_seed) for task_id in cfg.task_ids]
        self.agent, self.size, self.acting = agent, side_by_side(cfg, len(jobs), agent), list[float]()
        self.batches = [jobs[first : first + self.size] for first in range(0, len(jobs), self.size)]
        self.pools = [stack.enter_context(EnvPool(cfg.obs_dim, cfg.action_dim)) for _ in self.batches]
        self.steps, self.num_steps = 1, steps * len(jobs)
        self()
        self.steps = steps
        self.acting.clear()

    def __call__(self) -> None:
        act, acting = agent_actor(self.agent, noise=False), 0.0

        def timed(*args: NDArray) -> NDArray[np.float32]:
            nonlocal acting
            start = time.perf_counter()
            action = act(*args)
            acting += time.perf_counter() - start
            return action

        for batch, pool in zip(self.batches, self.pools, strict=True):
            play(self.agent.cfg, timed, batch, max_steps=self.steps, pool=pool)
        self.acting.append(acting)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=5, device="auto")
    parser.add_argument("checkpoint", nargs="?", type=Path, help="(default: a trained student that is here, or random)")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"])
    parser.add_argument("--steps", type=int, default=4, help="of each episode (default: 4, 10 with --full)")
    args = parse(parser, argv, {"steps": 10}, steps=2)
    with student(args) as path:
        plain = load_agent(path, device=args.device, precision="fp32", compile="false")
        agents = {PLAIN: plain}
        for precision in args.precisions:
            agents[precision] = agent = load_agent(path, device=args.device, precision=precision)
            print(agent.compile_planner(num_steps(agent.cfg)) or f"{precision}: {agent.planner.kind}", flush=True)
    with contextlib.ExitStack() as stack:
        players = {name: Evaluator(agent, args.steps, stack) for name, agent in agents.items()}
        products: dict[str, Run] = {
            f"products of {name}": product_run(agent.cfg, agent.precision, players[name].size, agent.device)
            for name, agent in agents.items()
        }
        runs: dict[str, Run] = {**players, **products}
        times = take_turns(runs, args.repeats, warm_up=0, device=plain.device, label="Playing", limit=args.limit)
    plain_ms = times.ms(PLAIN) / players[PLAIN].num_steps
    results = []
    for name, player in players.items():
        whole = times.ms(name) / player.num_steps
        steps = num_steps(player.agent.cfg.replace(eval_episodes=1))
        results.append(
            {
                "name": name,
                "batch": player.size,
                "plain_ms": plain_ms,
                "fast_ms": whole,
                "speedup": times.speedup(name),
                "matmul_ms": times.ms(f"products of {name}") / player.size,
                "env_ms": whole - 1e3 * float(np.median(player.acting)) / player.num_steps,
                "whole_min": whole * steps / 6e4,
            }
        )
    columns = [
        ("planner", "name", ""), ("batch", "batch", ""), ("ms a step", "fast_ms", ".2f"),
        ("environments", "env_ms", ".2f"), ("speedup", "speedup", ".2f"), ("whole, min", "whole_min", ".1f"),
    ]  # fmt: skip
    report("evaluation", args, results, columns)


if __name__ == "__main__":
    main()
