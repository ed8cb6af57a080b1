"""Time of the CPU kernels against PyTorch, eager and compiled, interleaved: one layer, and one whole plan.

python benchmarks/kernels.py --repeats 30 --threads 2

The layer is Mish(LayerNorm(W x + b)) of 512 rows with 384 inputs and outputs, the plan that of the 1M MT30 student with
random weights. The last line is JSON: `cases`, a list with `name`, `what`, `ms` (median; of a plan per environment) and
`speedup` over float32 as PyTorch computes it.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from rich import box, get_console
from rich.table import Table

from tdmpc2 import planner
from tdmpc2.config import Config
from tdmpc2.cpu import library
from tdmpc2.cpu.networks import PackedLayer, PackedNetworks, linear, normed_linear
from tdmpc2.nn.layers import NormedLinear
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.runtime import set_num_threads

Runs = dict[tuple[str, str], Callable[[], Any]]  # by what is computed and how
PLAIN = "PyTorch fp32"


def layer_runs(rows: int = 512, width: int = 384) -> Runs:
    """One layer."""
    plain = NormedLinear(width, width).requires_grad_(False)
    plain.weight.normal_(0, 0.1)
    x = torch.nn.functional.mish(torch.randn(rows, width))

    def converted(name: str) -> NormedLinear:
        layer = copy.deepcopy(plain)
        if name != "fp32":
            layer.set_format(name)
        return layer

    runs: dict[str, Callable[[], Any]] = {PLAIN: partial(plain, x)}
    for name in ("bf16", "int8"):
        runs[f"torch.compile {name}"] = partial(torch.compile(converted(name), dynamic=False), x)
    for name in ("fp32", "bf16", "int8"):
        runs[f"kernels {name}"] = partial(normed_linear, x, PackedLayer(linear(converted(name), 1)))
    return {(f"layer {rows}x{width}x{width}", name): run for name, run in runs.items()}


def plan_runs(num_envs: int) -> Runs:
    """A plan for each of ``num_envs`` environments."""
    cfg = Config(device="cpu")
    plain = WorldModel(cfg, torch.Generator().manual_seed(0)).requires_grad_(False)
    ids = torch.arange(num_envs)
    context, discount = plain.context(ids), plain.discounts[ids].unsqueeze(-1)
    z = plain.encode(torch.randn(num_envs, cfg.obs_dim), context)
    mean = torch.zeros(num_envs, cfg.horizon, cfg.action_dim)

    def run(model: WorldModel, functions: dict[str, Any]) -> None:
        noise = planner.draw_noise(cfg, num_envs, z.device, None)
        planner.plan(model, z, context, discount, mean, noise, eval_mode=True, **functions)

    models = {name: copy.deepcopy(plain).set_precision(name) for name in ("fp32", "bf16", "int8")}
    runs = {
        PLAIN: partial(run, plain, {}),
        "torch.compile bf16": partial(run, models["bf16"], planner.compiled()),
        **{f"kernels {name}": partial(run, model, PackedNetworks(model).functions()) for name, model in models.items()},
    }
    return {(f"plan for {num_envs}", name): run for name, run in runs.items()}


def median_ms(runs: Runs, repeats: int) -> dict[tuple[str, str], float]:
    """Medians of interleaved runs, without the first two of each."""
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(repeats + 2):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    return {key: 1e3 * float(np.median(values[2:])) for key, values in seconds.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    threads = set_num_threads(args.threads)
    if library.reason():
        raise SystemExit(f"The kernels are not available: {library.reason()}")
    medians: dict[tuple[str, str], float] = median_ms(layer_runs(), 10 * args.repeats)
    for num_envs in (1, 8):
        found = median_ms(plan_runs(num_envs), args.repeats)
        medians |= {key: value / num_envs for key, value in found.items()}

    table = Table("what", "how", "ms", "speedup", box=box.SIMPLE)
    cases = []
    for (what, name), value in medians.items():
        speedup = medians[what, PLAIN] / value
        table.add_row(what, name, f"{value:.3g}", f"{speedup:.2f}")
        cases.append({"what": what, "name": name, "ms": value, "speedup": speedup})
    get_console().print(table)
    print(json.dumps({"threads": threads, "torch": torch.__version__, "repeats": args.repeats, "cases": cases}))


if __name__ == "__main__":
    main()
