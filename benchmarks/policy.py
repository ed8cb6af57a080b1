"""Actions a second by the policy alone (mpc=false), through Player.act: one observation at a time, and in batches.

python benchmarks/policy.py mt30_1M_steps_045dist_fp16.pt

On one core by default. Without a file an untrained 1M model of MT30 is timed, which takes as long. Results: `name` (the
number of environments), `act_ms` (median of a whole call, all checks included), `per_second`, `networks_ms` (the
encoder's and the policy's forward passes alone) and `checks`, the rest of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks._harness import make_parser, parse, report, take_turns
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.loading import load_agent

MINUTES = 0.125
FULL_MINUTES = 0.25
BY_NAME = True
DISK_GB = 0

COLUMNS = (
    ("environments", "name", ""),
    ("act, ms", "act_ms", ".3f"),
    ("actions/s", "per_second", ",.0f"),
    ("networks alone, ms", "networks_ms", ".3f"),
    ("the rest", "checks", ".0%"),
)


def measure(agent: TDMPC2, num_envs: int, turns: int, calls: int, limit: float | None) -> dict[str, object]:
    """Time one number of environments."""
    cfg, model, player = agent.cfg, agent.model, agent.player(mpc=False)
    shape = (cfg.obs_dim,) if num_envs == 1 else (num_envs, cfg.obs_dim)
    obs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    task = 0 if cfg.multitask else None
    player.act(obs, True, task=task)
    context, x = model.context(torch.zeros(num_envs, dtype=torch.long)), torch.from_numpy(obs).reshape(num_envs, -1)

    @torch.no_grad()
    def networks() -> None:
        model.policy_mean(model.encode(x, context), context)

    variants = {"act": lambda: player.act(obs, task=task), "networks": networks}
    times = take_turns(variants, turns, calls=calls, limit=limit)
    act, alone = times.ms("act"), times.ms("networks")
    return {
        "name": num_envs, "act_ms": act, "per_second": 1000 * num_envs / act, "networks_ms": alone,
        "checks": 1 - alone / act,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser(__doc__, 50, threads=1)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--calls", type=int, default=100, help="calls that are timed together (default: %(default)s)")
    args = parse(parser, argv, calls=2)
    keys = {"device": args.device, "mpc": False}
    given = args.checkpoint
    agent = load_agent(given, **keys) if given else TDMPC2(Config(task="mt30", model_size=1, **keys))
    results = [measure(agent, envs, args.repeats, args.calls, args.limit) for envs in (1, 8, 30)]
    report("policy", args, results, COLUMNS)


if __name__ == "__main__":
    main()
