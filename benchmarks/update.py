"""Time of one training update: plain, fused and compiled, the last two also with bf16 products, in turns.

python benchmarks/update.py --full --threads 2

A turn is several updates in a row, as in training: the first after another agent's finds the caches filled with that.
Plain is eager float32 with foreach Adam. Fused needs no compiler, but the CPU kernels, which have one operator for
LayerNorm and Mish. All draw their random numbers alike. Batches and weights are random, since times do not depend on
them. `matmul_ms` is the time of the update's matrix products alone, in the type of the fast update: those that a
profile of the plain update shows, repeated in the same turns with the same shapes. `floor` is plain_ms / matmul_ms,
what the speedup would be if all else took no time. --growth adds batches of 64 and 1024 and models of 5M and 19M,
--large those of 48M and 317M, --teacher a 5M teacher, live and with cached targets. Results: `name`, `plain_ms`,
`fast_ms`, `speedup` (the median of the turns' ratios), `matmul_ms`, `floor` and `compile_s`, the seconds of the first.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile

from benchmarks._harness import Run, Timings, make_parser, parse, report, skip, take_turns, wait
from benchmarks._inputs import make_config, random_batch
from tdmpc2.acceleration.compiled_update import UpdatePath, can_fuse
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.support.runtime import can_compile, has_fast_bf16, keep_freed_memory, resolve_device

MINUTES = 1.5
FULL_MINUTES = 5
DISK_GB = 0

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


@dataclass(frozen=True)
class Case:
    """An update to measure."""

    name: str
    cfg: Config
    teacher_cfg: Config | None = None  # of a live teacher
    cached: bool = False  # with a teacher's rewards in the batch


#: What `compile` is for each way to update. `auto` compiles long runs alone.
COMPILE: dict[UpdatePath, str] = {"plain": "false", "fused": "auto", "compiled": "true"}


def make_update(case: Case, path: UpdatePath, precision: str = "fp32") -> Run:
    """Return a function that updates an agent once."""
    cfg = case.cfg.replace(compile=COMPILE[path], update_precision=precision, steps=1)
    teacher = TDMPC2(case.teacher_cfg) if case.teacher_cfg else None
    agent = TDMPC2(cfg, teacher)
    if path == "plain":
        for optim in (agent.optim, agent.pi_optim):
            for group in optim.param_groups:
                group.update(fused=False, foreach=True)
    agent.compile_update()
    assert agent.update_path == path
    batch = random_batch(cfg, agent.device)
    if case.cached:
        batch = batch._replace(teacher_reward=batch.reward[:1])
    return partial(agent.update, batch)


def product_shapes(run: Run) -> list[tuple[list[int], list[int]]]:
    """Return the shapes of both factors of every matrix product of an update."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        run()
    shapes = []
    for event in record.key_averages(group_by_input_shape=True):
        if event.key in PRODUCTS:
            left, right = event.input_shapes[-2:] if "add" not in event.key else event.input_shapes[1:3]
            shapes += [(left, right)] * event.count
    return shapes


def make_products(shapes: list[tuple[list[int], list[int]]], dtype: torch.dtype, device: torch.device) -> Run:
    """Return a function that computes matrix products of these shapes, and nothing else, in this type."""
    # Products of equal shapes share their factors, to save memory.
    factors = {str(pair): tuple(torch.randn(shape, device=device).to(dtype) for shape in pair) for pair in shapes}

    def multiply() -> None:
        for pair in shapes:
            torch.matmul(*factors[str(pair)])

    return multiply


def measure(
    case: Case, precisions: list[str], repeats: int, block: int, limit: float | None, apart: bool = False
) -> list[dict[str, Any]]:
    """Measure the plain update and all fast ones in turns, or, where memory holds one only, `apart`."""
    device = resolve_device(case.cfg.device)
    makers: dict[str, Callable[[], Run]] = {"plain": lambda: make_update(case, "plain")}
    paths: list[UpdatePath] = [*(["fused"] * can_fuse(case.cfg, device)), *(["compiled"] * can_compile(device))]
    shapes: list[tuple[list[int], list[int]]] = []
    for precision in precisions:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        for path in paths:
            makers[f"{path} {precision}"] = partial(make_update, case, path, precision)
        makers[f"{precision} products"] = partial(make_products, shapes, dtype, device)
    seconds: dict[str, NDArray[np.float64]] = {}
    first_s: dict[str, float] = {}
    for names in [[name] for name in makers] if apart else [list(makers)]:
        runs: dict[str, Run] = {}
        for name in names:
            runs[name] = makers[name]()
            start = time.perf_counter()
            runs[name]()
            wait(device)
            first_s[name] = time.perf_counter() - start
            if name == "plain":
                shapes += product_shapes(runs[name])
        seconds.update(take_turns(runs, repeats, warm_up=1, calls=block, device=device, limit=limit).seconds)
        runs.clear()
        gc.collect()
    times = Timings(seconds)
    return [
        {
            "name": f"{case.name}, {path} {precision}",
            "plain_ms": times.ms("plain"),
            "fast_ms": times.ms(f"{path} {precision}"),
            "speedup": times.speedup(f"{path} {precision}"),
            "matmul_ms": times.ms(f"{precision} products"),
            "floor": times.ms("plain") / times.ms(f"{precision} products"),
            "compile_s": first_s[f"{path} {precision}"],
        }
        for precision in precisions
        for path in paths
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=20)
    parser.add_argument("--block", type=int, default=5, help="updates of a turn (default: %(default)s, 20 with --full)")
    parser.add_argument("--growth", action="store_true", help="more batch and model sizes, with bf16 where it is fast")
    parser.add_argument("--large", action="store_true", help="models of 48M and 317M, three turns of one update")
    parser.add_argument("--teacher", action="store_true", help="with a 5M teacher")
    args = parse(parser, argv, {"block": 20}, block=1)
    device = resolve_device(args.device)
    keep_freed_memory()  # as train.py does
    if not can_compile(device) and not can_fuse(make_config(args), device):
        skip("there is neither a compiler (g++ and python3-dev, for CUDA triton) nor a library of CPU kernels here")
    cfg, usual = make_config(args), (args.repeats, args.block)
    cases = [(Case("1M, batch 256", cfg), usual)]
    if args.growth:
        cases += [(Case(f"1M, batch {n}", cfg.replace(batch_size=n)), usual) for n in (64, 1024)]
        cases += [(Case(f"{size}M, batch 256", make_config(args, model_size=size)), usual) for size in (5, 19)]
    if args.large:
        cases += [(Case(f"{size}M, batch 256", make_config(args, model_size=size)), (3, 1)) for size in (48, 317)]
    if args.teacher:
        live = Case("1M, batch 256, 5M teacher live", cfg, make_config(args, model_size=5))
        cases += [(live, usual), (Case("1M, batch 256, 5M teacher cached", cfg, cached=True), usual)]
    precisions = ["fp32", "bf16"] if has_fast_bf16(device) else ["fp32"]
    results: list[dict[str, Any]] = []
    for case, (repeats, block) in cases:
        # Two agents of 317M would not fit side by side into the memory of an ordinary machine.
        results += measure(case, precisions, repeats, block, args.limit, apart=(case.cfg.model_size or 0) >= 48)
    columns = [
        ("update", "name", ""), ("plain ms", "plain_ms", ".1f"), ("fast ms", "fast_ms", ".1f"),
        ("speedup", "speedup", ".2f"), ("products ms", "matmul_ms", ".1f"), ("floor", "floor", ".2f"),
        ("first one s", "compile_s", ".0f"),
    ]  # fmt: skip
    report("update", args, results, columns)


if __name__ == "__main__":
    main()
