"""Time of one layer by the CPU kernels against PyTorch, eager and compiled, interleaved. Whole plans: plan.py.

python benchmarks/kernels.py --repeats 30 --threads 2

The layer is Mish(LayerNorm(W x + b)) of 512 rows with 384 inputs and outputs. The last line is JSON: `cases`, a list
with `name`, `ms` and `speedup` over float32 as PyTorch computes it eagerly, medians of the turns.
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

from tdmpc2.acceleration.cpu import library
from tdmpc2.acceleration.cpu.networks import PackedLayer, linear, normed_linear
from tdmpc2.acceleration.low_precision import lower
from tdmpc2.nn.layers import NormedLinear
from tdmpc2.support.runtime import set_num_threads

PLAIN = "PyTorch fp32"


def layer_runs(rows: int = 512, width: int = 384) -> dict[str, Callable[[], Any]]:
    """One layer, by how it is computed."""
    plain = NormedLinear(width, width).requires_grad_(False)
    plain.weight.normal_(0, 0.1)
    x = torch.nn.functional.mish(torch.randn(rows, width))

    def converted(name: str) -> NormedLinear:
        layer = copy.deepcopy(plain)
        if name != "fp32":
            lower(layer, name)
        return layer

    runs: dict[str, Callable[[], Any]] = {PLAIN: partial(plain, x)}
    for name in ("bf16", "int8"):
        runs[f"torch.compile {name}"] = partial(torch.compile(converted(name), dynamic=False), x)
    for name in ("fp32", "bf16", "int8"):
        runs[f"kernels {name}"] = partial(normed_linear, x, PackedLayer(linear(converted(name))))
    return runs


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    threads = set_num_threads(args.threads)
    if library.reason():
        raise SystemExit(f"The kernels are not available: {library.reason()}")
    runs = layer_runs()
    seconds = np.zeros((args.repeats + 2, len(runs)))
    for turn in seconds:
        for index, run in enumerate(runs.values()):
            start = time.perf_counter()
            run()
            turn[index] = time.perf_counter() - start
    turns = dict(zip(runs, 1e3 * seconds[2:].T, strict=True))  # the first two compile
    table = Table("how", "ms", "speedup", box=box.SIMPLE)
    cases = []
    for name, ms in turns.items():
        speedup = float(np.median(turns[PLAIN] / ms))
        table.add_row(name, f"{np.median(ms):.3f}", f"{speedup:.2f}")
        cases.append({"name": name, "ms": float(np.median(ms)), "speedup": speedup})
    get_console().print(table)
    print(json.dumps({"threads": threads, "torch": torch.__version__, "repeats": args.repeats, "cases": cases}))


if __name__ == "__main__":
    main()
