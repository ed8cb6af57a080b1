"""Time of an update without a teacher, with a live teacher and with its rewards computed before, in turns.

python benchmarks/distillation_cache.py --full

A step draws its batch of random episodes in memory and updates the student; weights are random, since times do not
depend on them. Results: `name` (plain, live, cached), `ms` (median) and `step_over_plain_step` (median of the ratios of
steps of the same turn).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks._harness import Run, Timings, make_parser, numbered, parse, report, take_turns
from benchmarks._inputs import make_config, random_episodes
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.sampler import SliceSampler

MINUTES = 0.5
FULL_MINUTES = 1
DISK_GB = 0


def measure(cfg: Config, teacher_cfg: Config, repeats: int, limit: float | None, episodes: int = 300) -> Timings:
    """Time the three kinds of steps in turns."""
    teacher = TDMPC2(teacher_cfg)
    teacher.model.requires_grad_(False)
    data = EpisodeDataset.of(**random_episodes(cfg, episodes))
    column = torch.rand(data.rows.shape[:2], generator=torch.Generator().manual_seed(1))
    cached = replace(data, targets={"teacher_reward": column})

    def step(agent: TDMPC2, dataset: EpisodeDataset) -> Run:
        sampler = SliceSampler(dataset)
        return numbered(
            lambda number: agent.update(sampler.draw(number, cfg.batch_size, cfg.horizon, cfg.seed).to(agent.device))
        )

    steps = {
        "plain": step(TDMPC2(cfg), data),
        "live": step(TDMPC2(cfg, teacher), data),
        "cached": step(TDMPC2(cfg), cached),
    }
    return take_turns(steps, repeats, warm_up=3, device=teacher.device, limit=limit)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=30)
    parser.add_argument("--teacher-size", type=int, default=5, help="million parameters (default: %(default)s)")
    args = parse(parser, argv)
    teacher_cfg = make_config(args, model_size=args.teacher_size)
    times = measure(make_config(args), teacher_cfg, args.repeats, args.limit)
    results = [
        {"name": name, "ms": times.ms(name), "step_over_plain_step": times.ratio(name, "plain")}
        for name in times.seconds
    ]
    columns = [("step", "name", ""), ("ms", "ms", ".1f"), ("of one without a teacher", "step_over_plain_step", ".3f")]
    report("distillation_cache", args, results, columns)


if __name__ == "__main__":
    main()
