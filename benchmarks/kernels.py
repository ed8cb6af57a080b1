"""Time of one layer by the CPU kernels against PyTorch, eager and compiled, interleaved; plan.py times plans.

python benchmarks/kernels.py --full --threads 2

The layer is Mish(LayerNorm(W x + b)) of 512 rows with 384 inputs and outputs. Results: `name`, `ms` and `speedup` over
float32 as PyTorch computes it eagerly, medians of the turns.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks._harness import Run, make_parser, parse, report, skip, take_turns
from tdmpc2.acceleration.cpu import library
from tdmpc2.acceleration.cpu.networks import PackedLayer, linear, normed_linear
from tdmpc2.acceleration.low_precision import lower
from tdmpc2.nn.layers import NormedLinear
from tdmpc2.support.runtime import can_compile

MINUTES = 0.5
FULL_MINUTES = 1
DISK_GB = 0


def layer_runs(rows: int, width: int = 384) -> dict[str, Run]:
    """Return one layer by how it is computed; the first is PyTorch's."""
    plain = NormedLinear(width, width).requires_grad_(False)
    plain.weight.normal_(0, 0.1)
    x = torch.nn.functional.mish(torch.randn(rows, width))

    def converted(name: str) -> NormedLinear:
        layer = copy.deepcopy(plain)
        if name != "fp32":
            lower(layer, name)
        return layer

    runs: dict[str, Run] = {"PyTorch fp32": partial(plain, x)}
    for name in ("bf16", "int8") if can_compile(x.device) else ():
        runs[f"torch.compile {name}"] = partial(torch.compile(converted(name), dynamic=False), x)
    for name in ("fp32", "bf16", "int8"):
        runs[f"kernels {name}"] = partial(normed_linear, x, PackedLayer(linear(converted(name))))
    return runs


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=300)
    parser.add_argument("--rows", type=int, default=512, help="(default: %(default)s)")
    args = parse(parser, argv, rows=32)
    if reason := library.reason():
        skip(f"the CPU kernels are not available: {reason}")
    runs = layer_runs(args.rows)
    times = take_turns(runs, args.repeats, limit=args.limit)
    results = [{"name": name, "ms": times.ms(name), "speedup": times.speedup(name)} for name in runs]
    report("kernels", args, results, [("how", "name", ""), ("ms", "ms", ".3f"), ("speedup", "speedup", ".2f")])


if __name__ == "__main__":
    main()
