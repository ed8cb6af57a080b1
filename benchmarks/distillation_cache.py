"""Time of an update without a teacher, with a live teacher and with its rewards computed before, in turns.

python benchmarks/distillation_cache.py --repeats 30

A step draws its batch of random episodes in memory and updates the student; weights are random, since times do not
depend on them. The last line is JSON: `plain_ms`, `live_ms`, `cached_ms` (medians) and `cached_step_over_plain_step`,
`live_step_over_plain_step` (medians of the ratios of steps that followed each other).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich import box, get_console
from rich.table import Table

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.chunks import Layout
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.support.runtime import set_num_threads


def random_episodes(cfg: Config, episodes: int) -> EpisodeDataset:
    """Random episodes of all tasks in turn, in the memory of the processor."""
    layout, generator = Layout.of(cfg.task_specs), torch.Generator().manual_seed(0)
    shape = (episodes, layout.rows)
    return EpisodeDataset.of(
        torch.randn(*shape, layout.obs_dim, generator=generator),
        torch.rand(*shape, layout.action_dim, generator=generator) * 2 - 1,
        torch.rand(shape, generator=generator),
        torch.arange(episodes) % layout.num_tasks,
    )


def measure(cfg: Config | None = None, teacher_size: int = 5, episodes: int = 300, repeats: int = 30) -> dict[str, Any]:
    """Measure the three steps, one after the other, ``repeats`` times.

    Args:
        cfg: the student; the 1M model with batches of 256 by default.
        teacher_size: model size of the live teacher, in million parameters.
        episodes: number of random episodes.
        repeats: steps of each kind.

    Returns:
        What the last line holds.
    """
    cfg = cfg or Config()
    teacher = TDMPC2(Config(task=cfg.task, model_size=teacher_size, device=cfg.device))
    teacher.model.requires_grad_(False)
    data = random_episodes(cfg, episodes)
    column = torch.rand(data.rows.shape[:2], generator=torch.Generator().manual_seed(1))
    cached = replace(data, targets={"teacher_reward": column})

    def stepper(agent: TDMPC2, dataset: EpisodeDataset) -> Callable[[int], None]:
        sampler = SliceSampler(dataset)

        def step(number: int) -> None:
            agent.update(sampler.sample(number, cfg.batch_size, cfg.horizon, cfg.seed).to(agent.device))
            if agent.device.type == "cuda":
                torch.cuda.synchronize()

        return step

    steps = {
        "plain": stepper(TDMPC2(cfg), data),
        "live": stepper(TDMPC2(cfg, teacher), data),
        "cached": stepper(TDMPC2(cfg), cached),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(repeats + 3):
        order = list(steps)[number % 3 :] + list(steps)[: number % 3]  # none always follows the same other
        for name in order:
            start = time.perf_counter()
            steps[name](number)
            if number >= 3:
                seconds[name].append(time.perf_counter() - start)
    plain = np.array(seconds["plain"])
    return {
        **{f"{name}_ms": 1e3 * float(np.median(values)) for name, values in seconds.items()},
        **{
            f"{name}_step_over_plain_step": float(np.median(np.array(seconds[name]) / plain))
            for name in ("cached", "live")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--teacher-size", type=int, default=5, help="million parameters (default: 5)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    threads = set_num_threads(args.threads)
    result = measure(Config(device=args.device), args.teacher_size, repeats=args.repeats)
    table = Table("step", "ms", "of one without a teacher", box=box.SIMPLE)
    for name, ratio in (
        ("plain", 1.0),
        ("live", result["live_step_over_plain_step"]),
        ("cached", result["cached_step_over_plain_step"]),
    ):
        table.add_row(name, f"{result[f'{name}_ms']:.1f}", f"{ratio:.3f}")
    get_console().print(table)
    facts = {"device": args.device, "threads": threads, "torch": torch.__version__, "repeats": args.repeats}
    print(json.dumps({**facts, "teacher_size": args.teacher_size, **result}))


if __name__ == "__main__":
    main()
