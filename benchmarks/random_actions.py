"""Count the rewards that random actions find: uniform ones, and pink noise (seed_actions).

python benchmarks/random_actions.py                               # tasks with rare rewards
python benchmarks/random_actions.py cup-catch --episodes 200      # another task or number of episodes

Results: `task`, `name` of the actions, `episodes`, `rewarded` (episodes with a reward above 0), and the mean `return`
with its 95 % interval over episodes (`low`, `high`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks._harness import make_parser, parse, report
from tdmpc2 import make_env
from tdmpc2.config import Config
from tdmpc2.play.actors import pink_actions, uniform_actions
from tdmpc2.support.draws import numbered_generator
from tdmpc2.support.intervals import mean_interval
from tdmpc2.tracking.progress import progress

MINUTES = 3
FULL_MINUTES = 10
BY_NAME = True
DISK_GB = 0

TASKS = ("cup-catch", "finger-spin", "reacher-hard", "cartpole-swingup-sparse", "walker-walk")
ALONE = np.array([0])
#: Configuration and number of the step -> actions [1, A].
ACTIONS: dict[str, Callable[[Config, int], np.ndarray]] = {
    "uniform": lambda cfg, step: uniform_actions(cfg, ALONE, numbered_generator(cfg.seed, step, 1)),
    "pink": lambda cfg, step: pink_actions(cfg, ALONE, step),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"(default: {', '.join(TASKS)})")
    parser.add_argument("--episodes", type=int, default=60, help="of each (default: %(default)s)")
    args = parse(parser, argv, {"episodes": 200}, episodes=2, tasks=["pendulum-swingup"])
    results = []
    for task in args.tasks or TASKS:
        cfg = Config(task=task, mode="online", model_size=1)
        for name, choose in ACTIONS.items():
            returns = play(cfg, choose, args.episodes, f"{task}, {name}")
            low, high = mean_interval(returns) or (float("nan"), float("nan"))
            results.append({
                "task": task, "name": name, "episodes": len(returns), "rewarded": sum(value > 0 for value in returns),
                "return": float(np.mean(returns)), "low": low, "high": high,
            })  # fmt: skip
    columns = [
        ("task", "task", ""),
        ("actions", "name", ""),
        ("episodes", "episodes", ""),
        ("rewarded", "rewarded", ""),
    ]
    report("random_actions", args, results, [*columns, ("return", "return", ".2f"), ("from", "low", ".2f"),
                                             ("to", "high", ".2f")])  # fmt: skip


def play(cfg: Config, choose: Callable[[Config, int], np.ndarray], episodes: int, label: str) -> list[float]:
    """Play whole episodes, and return their returns.

    Args:
        cfg: names the task.
        choose: one of :data:`ACTIONS`; steps are counted over all episodes.
        episodes: how many.
        label: of the progress line.
    """
    env = make_env(cfg)
    returns, step = [], 0
    for number in progress(range(episodes), label, unit="episodes"):
        env.reset(seed=number)
        total, done = 0.0, False
        while not done:
            step += 1
            _, reward, terminated, truncated, _ = env.step(choose(cfg, step)[0])
            total, done = total + float(reward), bool(terminated or truncated)
        returns.append(total)
    env.close()
    return returns


if __name__ == "__main__":
    main()
