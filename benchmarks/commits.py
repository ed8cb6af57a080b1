"""Time of planning and of updating against another commit, in turns.

python benchmarks/commits.py --against ../other --full   # a worktree of another commit, such as 0.1.0

There is a process for each of the two trees. Both plan with the published 1M student, in float32 and for one
observation, and update a model of 1M parameters with a batch of 256: plainly, and in the fastest way that each knows.
Without --against the second process is of the same tree, which shows how far equal things differ. Results: `name`, `ms`
(median), `against_ms`, and `ratio` (median of the turns' ms / against_ms).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._harness import REPO, Run, make_parser, parse, report, take_turns
from benchmarks._inputs import SMALL, student
from benchmarks._trees import worker

MINUTES = 2.5
FULL_MINUTES = 5
DISK_GB = 0
BY_NAME = True

#: Makes an agent when it is first used. Other commits have these names, but batches are dicts in the first ones.
_WORKER = """
import sys
import torch
from tdmpc2 import load_agent
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
path, threads, keys = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
torch.set_num_threads(threads)
def planning(compile):
    agent = load_agent(path, precision="fp32", compile=compile, device="cpu")
    agent.compile_planner()
    obs = torch.randn(agent.cfg.obs_dim, generator=torch.Generator().manual_seed(0))
    return lambda: agent.act(obs, t0=False, eval_mode=True, task=0)
def updating(compile):
    agent = TDMPC2(Config(device="cpu", compile=compile, **keys))
    agent.compile_update()
    cfg, draw = agent.cfg, torch.Generator().manual_seed(0)
    size, horizon = cfg.batch_size, cfg.horizon
    batch = {
        "obs": torch.randn(horizon + 1, size, cfg.obs_dim, generator=draw),
        "action": torch.rand(horizon, size, cfg.action_dim, generator=draw) * 2 - 1,
        "reward": torch.rand(horizon, size, 1, generator=draw),
        "task": torch.arange(size) % len(cfg.task_specs),
    }
    try:
        from tdmpc2.data.batch import Batch
        batch = Batch(**batch)
    except ImportError:
        pass
    return lambda: agent.update(batch)
makers, runs = {"plan": planning, "update": updating}, {}
print("ready", flush=True)
for line in sys.stdin:
    name = line.strip()
    if name not in runs:
        what, compile = name.split()
        runs[name] = makers[what](compile)
    runs[name]()
    print("done", flush=True)
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=60, threads=1)
    parser.add_argument("--against", type=Path, help="a worktree of another commit (default: this one)")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="(default: the published student, if it is here)")
    args = parse(parser, argv)
    keys = SMALL if args.quick else {}
    ways = {"plainly": "false"} if args.quick else {"plainly": "false", "fast": "true"}
    cases = {f"{what}, {way}": f"{what} {key}" for what in ("plan", "update") for way, key in ways.items()}
    results: list[dict[str, Any]] = []
    with student(args) as path, tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        here, other = (
            stack.enter_context(worker(tree.resolve(), _WORKER, path.resolve(), args.threads, keys, folder=Path(name)))
            for tree in (REPO, args.against or REPO)
        )
        for case, call in cases.items():
            runs: dict[str, Run] = {"against": partial(other, call), "here": partial(here, call)}
            times = take_turns(runs, args.repeats, label=f"Timing {case}", limit=args.limit)
            results.append({
                "name": case,
                "ms": times.ms("here"), "against_ms": times.ms("against"), "ratio": times.ratio("here", "against"),
            })  # fmt: skip
    columns = [
        ("what", "name", ""),
        ("ms", "ms", ".1f"),
        ("against ms", "against_ms", ".1f"),
        ("ratio", "ratio", ".2f"),
    ]
    report("commits", args, results, columns)


if __name__ == "__main__":
    main()
