"""Time of one training update: plain, compiled, and compiled with bf16 products, in turns of a few updates each.

python benchmarks/update.py --repeats 20 --threads 2

A turn is several updates in a row, as in training: the first after another agent's finds the caches filled with that.
Plain is eager float32 with foreach Adam. All three draw their random numbers alike. Batches and weights are random,
since times do not depend on them. `matmul_ms` is the time of the update's matrix products alone, in the type of the
fast update: those that a profile of the plain update shows, repeated in the same turns with the same shapes. In the
table, `floor` is plain_ms / matmul_ms, what the speedup would be if all else took no time. --growth adds batches of 64
and 1024 and models of 5M and 19M, --large those of 48M and 317M, --teacher a 5M teacher, live and with cached targets.
The last line is JSON: `cases`, a list with `name`, `plain_ms`, `fast_ms`, `speedup` (the median of the turns' ratios),
`matmul_ms` and `compile_s`.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from rich import box, get_console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.support.runtime import has_fast_bf16, resolve_device, set_num_threads

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


@dataclass(frozen=True)
class Case:
    """An update to measure."""

    name: str
    cfg: Config
    teacher: str = ""  # live | cached


def random_batch(cfg: Config, teacher: str, device: torch.device) -> dict[str, Tensor]:
    """A batch, with a teacher's outputs if they are cached."""
    horizon, size = cfg.horizon, cfg.batch_size
    generator = torch.Generator().manual_seed(0)
    batch = {
        "obs": torch.randn(horizon + 1, size, cfg.obs_dim, generator=generator),
        "action": torch.rand(horizon, size, cfg.action_dim, generator=generator) * 2 - 1,
        "reward": torch.rand(horizon, size, 1, generator=generator),
        "task": torch.arange(size) % len(cfg.task_specs),
    }
    if teacher == "cached":
        batch["teacher_reward"] = batch["reward"][:1]
    return {name: x.to(device) for name, x in batch.items()}


def make_update(case: Case, fast: bool, precision: str = "fp32") -> Callable[[], None]:
    """A function that updates an agent once, and waits until that is done."""
    cfg = case.cfg.replace(compile=str(fast).lower(), update_precision=precision)
    teacher = TDMPC2(cfg.replace(model_size=5)) if case.teacher == "live" else None
    agent = TDMPC2(cfg, teacher)
    if not fast:
        for optim in (agent.optim, agent.pi_optim):
            for group in optim.param_groups:
                group.update(fused=False, foreach=True)
    agent.compile_update()
    if fast and not agent.update_compiled:
        raise SystemExit("There is no compiler here")
    batch = random_batch(cfg, case.teacher, agent.device)

    def run() -> None:
        agent.update(batch)
        if agent.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def product_shapes(run: Callable[[], None]) -> list[tuple[list[int], list[int]]]:
    """Shapes of both factors of every matrix product of an update."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        run()
    shapes = []
    for event in record.key_averages(group_by_input_shape=True):
        if event.key in PRODUCTS:
            left, right = event.input_shapes[-2:] if "add" not in event.key else event.input_shapes[1:3]
            shapes += [(left, right)] * event.count
    return shapes


def make_products(
    shapes: list[tuple[list[int], list[int]]], dtype: torch.dtype, device: torch.device
) -> Callable[[], None]:
    """A function that computes matrix products of these shapes, and nothing else, in this type."""
    # Equal shapes share their factors, and with that memory.
    factors = {str(pair): tuple(torch.randn(shape, device=device).to(dtype) for shape in pair) for pair in shapes}

    def multiply() -> None:
        for pair in shapes:
            torch.matmul(*factors[str(pair)])
        if device.type == "cuda":
            torch.cuda.synchronize()

    return multiply


def measure(case: Case, precisions: list[str], repeats: int, block: int, apart: bool = False) -> list[dict[str, Any]]:
    """Medians of one case: the plain update and all fast ones in turns, or, where memory holds one only, `apart`."""
    device = resolve_device(case.cfg.device)
    makers: dict[str, Callable[[], Callable[[], None]]] = {"plain": lambda: make_update(case, fast=False)}
    shapes: list[tuple[list[int], list[int]]] = []
    for precision in precisions:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        makers[precision] = partial(make_update, case, fast=True, precision=precision)
        makers[f"{precision} products"] = partial(make_products, shapes, dtype, device)
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    first_s = {}
    for names in [[name] for name in makers] if apart else [list(makers)]:
        runs: dict[str, Callable[[], None]] = {}
        for name in names:
            runs[name] = makers[name]()
            start = time.perf_counter()
            runs[name]()
            first_s[name] = time.perf_counter() - start
            if name == "plain":
                shapes += product_shapes(runs[name])
        for repeat in range(repeats + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                for _ in range(block):
                    run()
                if repeat:
                    seconds[name].append((time.perf_counter() - start) / block)
        runs.clear()
        del run
        gc.collect()
    ms = {name: 1e3 * float(np.median(values)) for name, values in seconds.items()}
    return [
        {
            "name": f"{case.name}, {precision}",
            "plain_ms": ms["plain"],
            "fast_ms": ms[precision],
            "speedup": float(np.median(np.array(seconds["plain"]) / np.array(seconds[precision]))),
            "matmul_ms": ms[f"{precision} products"],
            "compile_s": first_s[precision],
        }
        for precision in precisions
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="turns of each (default: 20)")
    parser.add_argument("--block", type=int, default=20, help="updates of a turn (default: 20)")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--growth", action="store_true", help="more batch and model sizes, with bf16 where it is fast")
    parser.add_argument("--large", action="store_true", help="models of 48M and 317M, three turns of one update")
    parser.add_argument("--teacher", action="store_true", help="with a 5M teacher")
    args = parser.parse_args()
    threads = set_num_threads(args.threads)
    cfg = Config(device=args.device)
    usual = (args.repeats, args.block)
    cases = [(Case("1M, batch 256", cfg), usual)]
    if args.growth:
        cases += [(Case(f"1M, batch {n}", cfg.replace(batch_size=n)), usual) for n in (64, 1024)]
        cases += [(Case(f"{size}M, batch 256", cfg.replace(model_size=size)), usual) for size in (5, 19)]
    if args.large:
        cases += [(Case(f"{size}M, batch 256", cfg.replace(model_size=size)), (3, 1)) for size in (48, 317)]
    if args.teacher:
        cases += [(Case(f"1M, batch 256, 5M teacher {how}", cfg, how), usual) for how in ("live", "cached")]
    precisions = ["fp32", "bf16"] if has_fast_bf16(resolve_device(args.device)) else ["fp32"]
    table = Table("update", "plain ms", "fast ms", "speedup", "products ms", "floor", "compiling s", box=box.SIMPLE)
    results: list[dict[str, Any]] = []
    for case, (repeats, block) in cases:
        # Two agents of 317M would not fit side by side into the memory of an ordinary machine.
        apart = (case.cfg.model_size or 0) >= 48
        for row in measure(case, precisions, repeats, block, apart):
            results.append(row)
            numbers = [f"{row[name]:.1f}" for name in ("plain_ms", "fast_ms")]
            floor = row["plain_ms"] / row["matmul_ms"]
            numbers += [f"{row['speedup']:.2f}", f"{row['matmul_ms']:.1f}", f"{floor:.2f}", f"{row['compile_s']:.0f}"]
            table.add_row(row["name"], *numbers)
    get_console().print(table)
    facts = {"threads": threads, "torch": torch.__version__, "repeats": args.repeats, "block": args.block}
    print(json.dumps({**facts, "cases": results}))


if __name__ == "__main__":
    main()
