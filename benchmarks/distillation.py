"""Time of an update with each distillation target, relative to the default's (`reward`), in turns.

python benchmarks/distillation.py --repeats 20

Every update is of the same random batch; weights are random, since times do not depend on them. On a processor its time
is counted, not the clock's, so that other programs do not count. The last line is JSON:
for each target `<target>_ms` (median) and `<target>_step_over_reward_step` (median of the ratios of steps of the same
turn); `none` is an update without a teacher, `all` one with every target.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from rich import box, get_console
from rich.table import Table

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.dataset import Batch
from tdmpc2.distillation.targets import TARGETS
from tdmpc2.support.runtime import set_num_threads


def random_batch(cfg: Config, device: torch.device) -> Batch:
    """Random slices of random tasks."""
    generator, shape = torch.Generator().manual_seed(0), (cfg.horizon, cfg.batch_size)
    return Batch(
        torch.randn(cfg.horizon + 1, cfg.batch_size, cfg.obs_dim, generator=generator),
        torch.rand(*shape, cfg.action_dim, generator=generator) * 2 - 1,
        torch.rand(*shape, 1, generator=generator),
        torch.randint(len(cfg.task_specs), (cfg.batch_size,), generator=generator),
    ).to(device)


def measure(cfg: Config | None = None, teacher_size: int = 5, repeats: int = 20) -> dict[str, Any]:
    """Measure an update of each kind, one after the other, ``repeats`` times.

    Args:
        cfg: the student; the 1M model with batches of 256 by default.
        teacher_size: model size of the teacher, in million parameters.
        repeats: updates of each kind.

    Returns:
        What the last line holds.
    """
    cfg = cfg or Config()
    teacher = TDMPC2(Config(task=cfg.task, model_size=teacher_size, device=cfg.device))
    teacher.model.requires_grad_(False)
    batch = random_batch(cfg, teacher.device)
    agents = {"none": TDMPC2(cfg)}
    for name, targets in [*((target, (target,)) for target in TARGETS), ("all", tuple(TARGETS))]:
        agents[name] = TDMPC2(cfg.replace(distillation_targets=targets), teacher)
        if agents[name].distillation.needs_pca:
            agents[name].distillation.fit_pca([(batch.obs.flatten(0, 1), batch.task.repeat(cfg.horizon + 1))])
    clock = time.perf_counter if teacher.device.type == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in agents}
    for number in range(repeats + 3):
        first = number % len(agents)  # none always follows the same other
        for name in [*list(agents)[first:], *list(agents)[:first]]:
            start = clock()
            agents[name].update(batch)
            if teacher.device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 3:
                seconds[name].append(clock() - start)
    reward = np.array(seconds["reward"])
    return {
        **{f"{name}_ms": 1e3 * float(np.median(values)) for name, values in seconds.items()},
        **{
            f"{name}_step_over_reward_step": float(np.median(np.array(values) / reward))
            for name, values in seconds.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--teacher-size", type=int, default=5, help="million parameters (default: 5)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    threads = set_num_threads(args.threads)
    result = measure(Config(device=args.device), args.teacher_size, repeats=args.repeats)
    table = Table("target", "ms", "of reward's", box=box.SIMPLE)
    for name in ("none", *TARGETS, "all"):
        table.add_row(name, f"{result[f'{name}_ms']:.1f}", f"{result[f'{name}_step_over_reward_step']:.3f}")
    get_console().print(table)
    facts = {"device": args.device, "threads": threads, "torch": torch.__version__, "repeats": args.repeats}
    print(json.dumps({**facts, "teacher_size": args.teacher_size, **result}))


if __name__ == "__main__":
    main()
