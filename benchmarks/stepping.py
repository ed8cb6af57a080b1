"""Count the random steps per second of each family of environments: in this process, and in a worker for each core.

python benchmarks/stepping.py                     # a row for each family; one that is not installed is named in a line
python benchmarks/stepping.py Meta-World Box2D    # some of them

A row plays one task, in as many environments as there are workers, with the same uniform actions in both ways. A step
is one of the task's control steps, with its action repeat; the resets of the episodes that end meanwhile are part of
the time. Results: `name`, `task`, `obs`, `envs`, `alone` and `workers` (steps per second of all environments together),
`speedup` of the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks._harness import Timings, make_parser, parse, report, skip, take_turns
from tdmpc2.envs import check_task, task_spec
from tdmpc2.envs.vector import EnvPool
from tdmpc2.support.runtime import usable_cores
from tdmpc2.tasks import TaskSpec

MINUTES = 2.5
FULL_MINUTES = 12
BY_NAME = True
DISK_GB = 0


class Row(NamedTuple):
    """A line of the table: a task that stands for its family, and the vector steps of a turn."""

    task: str
    steps: int
    obs: str = "state"


ROWS = {
    "DMControl": Row("walker-walk", 100),
    "DMControl images": Row("walker-walk", 5, "rgb"),
    "Meta-World": Row("mw-reach", 50),
    "MyoSuite": Row("myo-reach", 30),
    "ManiSkill": Row("ms-push-cube", 15),
    "Gymnasium MuJoCo": Row("HalfCheetah-v5", 250),
    "Box2D": Row("bipedal-walker", 250),
    "classic control": Row("Pendulum-v1", 500),
    "Gymnasium-Robotics": Row("gymnasium_robotics:FetchReach-v4", 40),
}
QUICK = ("DMControl", "classic control")


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=10)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"(default: all) {', '.join(ROWS)}")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: all cores)")
    args = parse(parser, argv, {"repeats": 30}, workers=1)
    if unknown := [name for name in args.families if name not in ROWS]:
        parser.error(f"no family is called {', '.join(unknown)}; there are {', '.join(ROWS)}")
    limit = None if args.limit is None else args.limit / 4  # a row gets a quarter: others follow
    results = []
    for name in args.families or (QUICK if args.quick else ROWS):
        row = ROWS[name]._replace(steps=3) if args.quick else ROWS[name]
        try:
            times = stepping(name, row, args.workers, args.repeats, limit)
        except (ValueError, ImportError) as error:
            print(f"{name}: left out: {' '.join(str(error).split())}", flush=True)
            continue
        results.append({"name": name, "task": row.task.partition(":")[2] or row.task, "obs": row.obs}
                       | rates(times, row.steps * args.workers) | {"envs": args.workers})  # fmt: skip
    if not results:
        skip("none of these families can be played here")
    columns = [("", "name", ""), ("task", "task", ""), ("this process, steps/s", "alone", ",.0f")]
    columns += [("workers, steps/s", "workers", ",.0f"), ("speedup", "speedup", ".2f")]
    report("stepping", args, results, columns)


def stepping(name: str, row: Row, workers: int, repeats: int, limit: float | None) -> Timings:
    """Time random play of a task, by turns here and in worker processes.

    Raises:
        ValueError, ImportError: the task cannot be built here.
    """
    spec = task_spec(row.task)
    check_task(row.task)  # before processes are started for it
    form = spec.obs_dim, spec.action_dim, row.obs
    with EnvPool(*form) as here, EnvPool(*form, workers) as there:
        ways = {way: player(pool, spec, workers, row.steps) for way, pool in (("alone", here), ("workers", there))}
        return take_turns(ways, repeats, warm_up=1, label=name, limit=limit, least=3)


def player(pool: EnvPool, spec: TaskSpec, count: int, steps: int) -> Callable[[], None]:
    """Return a function that takes so many random steps in each of ``count`` environments, and later continues."""
    envs: Any = pool.make([spec] * count)
    envs.reset(seed=list(range(count)))
    rng = np.random.default_rng(0)

    def play() -> None:
        for _ in range(steps):
            actions = rng.uniform(-1, 1, (count, spec.action_dim)).astype(np.float32)
            _, _, ended, cut, _ = envs.step(actions)
            if (over := ended | cut).any():
                envs.reset(options={"reset_mask": over})

    return play


def rates(times: Timings, steps: int) -> dict[str, float]:
    """Return the steps per second of both ways, whose turns have ``steps`` each, and their ratio."""
    rates = {way: 1e3 * steps / times.ms(way) for way in times.seconds}
    return rates | {"speedup": times.speedup("workers")}


if __name__ == "__main__":
    main()
