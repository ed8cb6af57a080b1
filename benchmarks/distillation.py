"""Time of an update with each distillation target, relative to the default's (`reward`), in turns.

python benchmarks/distillation.py --full

Every update is of the same random batch; weights are random, since times do not depend on them. On a CPU, processor
time is counted instead of the clock's, so that other programs do not matter. Results, for each target: `name`, `ms`
(median) and `step_over_reward_step` (median of the ratios of steps of the same turn); `none` is an update without a
teacher, `all` one with every target.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from benchmarks._harness import Run, Timings, make_parser, parse, report, take_turns
from benchmarks._inputs import make_config, random_batch
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.distillation.targets import TARGETS

MINUTES = 0.5
FULL_MINUTES = 2
DISK_GB = 0


def measure(cfg: Config, teacher_cfg: Config, repeats: int, limit: float | None) -> Timings:
    """Time an update of each kind in turns."""
    teacher = TDMPC2(teacher_cfg)
    teacher.model.requires_grad_(False)
    batch = random_batch(cfg, teacher.device)
    runs: dict[str, Run] = {"none": partial(TDMPC2(cfg).update, batch)}
    live = tuple(name for name, target in TARGETS.items() if target.live)  # not ``plan``, made beforehand
    for name, targets in [*((target, (target,)) for target in live), ("all", live)]:
        agent = TDMPC2(cfg.replace(distillation_targets=targets), teacher)
        if agent.distillation.needs_pca:
            agent.distillation.fit_pca([(batch.obs.flatten(0, 1), batch.task.repeat(cfg.horizon + 1))])
        runs[name] = partial(agent.update, batch)
    clock = time.process_time if teacher.device.type == "cpu" else time.perf_counter
    return take_turns(runs, repeats, warm_up=3, device=teacher.device, clock=clock, limit=limit)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=20)
    parser.add_argument("--teacher-size", type=int, default=5, help="million parameters (default: %(default)s)")
    args = parse(parser, argv)
    teacher_cfg = make_config(args, model_size=args.teacher_size)
    times = measure(make_config(args), teacher_cfg, args.repeats, args.limit)
    results = [
        {"name": name, "ms": times.ms(name), "step_over_reward_step": times.ratio(name, "reward")}
        for name in times.seconds
    ]
    columns = [("target", "name", ""), ("ms", "ms", ".1f"), ("of reward's", "step_over_reward_step", ".3f")]
    report("distillation", args, results, columns)


if __name__ == "__main__":
    main()
