"""Time of one update and one plan of N agents of single tasks: one after the other, and stacked.

python benchmarks/stacked.py --agents 30 --device cuda

The agents are new ones, of the first N tasks of MT30; sizes that differ are padded to the largest. Batches are random,
since times do not depend on them. On a CPU stacking gains little, and plans are made one after the other there, by the
kernels. Results: `name`, `agents`, `alone_ms` and `stacked_ms` of all agents (medians), and `speedup` (median of the
turns' ratios).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks._harness import Timings, make_parser, parse, report, take_turns
from benchmarks._inputs import SMALL, random_batch
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.player import Player
from tdmpc2.support.runtime import keep_freed_memory
from tdmpc2.tasks import MT30
from tdmpc2.training.stacked_agents import StackedAgents

MINUTES = 1.5
FULL_MINUTES = 4
DISK_GB = 0
BY_NAME = True


def make_agents(args: Any, small: dict[str, Any]) -> list[TDMPC2]:
    """Make an agent for each of the first tasks."""
    sizes = small or {"model_size": args.size, "batch_size": args.batch_size}
    names = [MT30[i % len(MT30)] for i in range(args.agents)]
    return [TDMPC2(Config(task=name, mode="online", device=args.device, **sizes)) for name in names]


def plans(players: Sequence[Player], act: Callable[[list[Any]], Any]) -> Callable[[], Any]:
    """Return a function that plans for zero observations of all players."""
    obs = [np.zeros((1, player._model.cfg.obs_dim), np.float32) for player in players]
    return lambda: act(obs)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=20)
    parser.add_argument("--agents", type=int, default=4, help="N (default: %(default)s)")
    parser.add_argument("--size", type=int, default=1, help="model size (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="of each (default: %(default)s)")
    args = parse(parser, argv, agents=2)
    keep_freed_memory()
    small = {name: value for name, value in SMALL.items() if name not in ("tasks", "task_dim")} if args.quick else {}
    alone, together = make_agents(args, small), make_agents(args, small)
    stack, device = StackedAgents(together), alone[0].device
    batches = [random_batch(agent.cfg, device) for agent in alone]
    updates = {
        "alone": lambda: [agent.update(batch) for agent, batch in zip(alone, batches, strict=True)],
        "stacked": lambda: stack.update(batches),
    }
    times = {"update": take_turns(updates, args.repeats, device=device, limit=args.limit)}
    each, all_players = ([agent.player(1) for agent in group] for group in (alone, together))

    def plan_stacked(obs: list[Any]) -> None:
        asked = [player.asked(x, True, None) for player, x in zip(all_players, obs, strict=True)]
        stack.plan(all_players, asked, eval_mode=False)

    planning = {
        "alone": plans(each, lambda obs: [player.act(x, True) for player, x in zip(each, obs, strict=True)]),
        "stacked": plans(all_players, plan_stacked),
    }
    times["plan"] = take_turns(planning, args.repeats, device=device, limit=args.limit)
    columns = [
        ("all agents", "name", ""), ("agents", "agents", ""), ("one by one, ms", "alone_ms", ".1f"),
        ("stacked, ms", "stacked_ms", ".1f"), ("speedup", "speedup", ".2f"),
    ]  # fmt: skip
    report("stacked", args, [row(name, args.agents, found) for name, found in times.items()], columns)


def row(name: str, agents: int, times: Timings) -> dict[str, Any]:
    """Describe one thing that was measured."""
    found = {"alone_ms": times.ms("alone"), "stacked_ms": times.ms("stacked"), "speedup": times.speedup("stacked")}
    return {"name": f"{name}, {agents} agents", "agents": agents, **found}


if __name__ == "__main__":
    main()
