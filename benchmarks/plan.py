"""Time of one plan, plain against compiled and lower precision, interleaved.

python benchmarks/plan.py --repeats 20

The model is the 1M MT30 student with random weights; the time of a plan does not depend on them. The last line is JSON:
`cases`, a list with `name`, `num_envs`, `plain_ms`, `fast_ms` (medians per environment) and `speedup`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from rich import box, get_console
from rich.table import Table

from tdmpc2 import planner
from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.runtime import resolve_device, set_num_threads


def make_case(cfg: Config, precision: str, num_envs: int, compile_it: bool) -> Callable[[], None]:
    """A function that plans once for ``num_envs`` environments."""
    device = resolve_device(cfg.device)
    model = WorldModel(cfg, torch.Generator().manual_seed(0)).requires_grad_(False).to(device)
    model.set_precision(precision)
    ids = torch.arange(num_envs, device=device) % len(cfg.task_specs)
    context, discount = model.context(ids), model.discounts[ids].unsqueeze(-1)
    z = model.encode(torch.randn(num_envs, cfg.obs_dim, device=device), context)
    mean = torch.zeros(num_envs, cfg.horizon, cfg.action_dim, device=device)
    functions = planner.compiled() if compile_it else {}

    def run() -> None:
        noise = planner.draw_noise(cfg, num_envs, device, None)
        planner.plan(model, z, context, discount, mean, noise, eval_mode=True, **functions)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    threads = set_num_threads(args.threads)
    cfg = Config()
    cases = [(p, n, c) for n in (1, 4) for p, c in (("fp32", False), ("fp32", True), ("bf16", True))]
    runs = {case: make_case(cfg, *case) for case in cases}
    seconds: dict[tuple[str, int, bool], list[float]] = {case: [] for case in cases}
    for run in runs.values():
        run(), run()
    for _ in range(args.repeats):
        for case, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[case].append(time.perf_counter() - start)

    medians = {case: 1e3 * float(np.median(values)) / case[1] for case, values in seconds.items()}
    table = Table("precision", "compiled", "environments", "ms per plan", "speedup", box=box.SIMPLE)
    results = []
    for case in cases:
        precision, num_envs, compiled = case
        plain, fast = medians["fp32", num_envs, False], medians[case]
        table.add_row(precision, str(compiled), str(num_envs), f"{fast:.1f}", f"{plain / fast:.2f}")
        name = f"{precision}{'-compiled' if compiled else ''}"
        results.append(
            {"name": name, "num_envs": num_envs, "plain_ms": plain, "fast_ms": fast, "speedup": plain / fast}
        )
    get_console().print(table)
    print(json.dumps({"threads": threads, "torch": torch.__version__, "repeats": args.repeats, "cases": results}))


if __name__ == "__main__":
    main()
