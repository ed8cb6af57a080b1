"""Time of one plan: plain float32 against the fast ways there are, interleaved.

python benchmarks/plan.py --full

The model is the MT30 student of --size with random weights; the time of a plan does not depend on them. The fast ways
are the CPU kernels and torch.compile on a CPU, torch.compile and one graph on CUDA. Results: `name`, `num_envs`,
`plain_ms`, `fast_ms`, `matmul_ms` (medians, per environment) and `speedup` (median of the turns'). `matmul_ms` is the
time of a plan's matrix products alone, by PyTorch in the same format, measured in the same turns. With --busy N,
everything is timed once more beside N processes that each keep a core busy: `busy_ms`, and `slowdown` against
`fast_ms`. As many as there are cores leave a plan half of them; where threads wait for one another by spinning, it
takes far more than twice the time.
"""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks._harness import Run, make_parser, parse, report, take_turns
from benchmarks._inputs import make_config
from tdmpc2 import planner
from tdmpc2.acceleration.cpu import library
from tdmpc2.acceleration.fast_planner import FastPlanner, compiled_functions
from tdmpc2.acceleration.low_precision import set_precision
from tdmpc2.config import Config
from tdmpc2.nn.formats import FLOATS
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.support.runtime import can_compile, resolve_device

MINUTES = 1.5
FULL_MINUTES = 4
DISK_GB = 0

PLAIN = "plain fp32"


def products(cfg: Config) -> Iterator[tuple[int, int, int]]:
    """Yield inputs, outputs and number of the matrix products of one plan."""
    iterations, latent, width = cfg.plan_iterations, cfg.latent_dim, cfg.mlp_dim
    steps = iterations * cfg.horizon
    yield latent, 2 * width, steps - iterations  # reward and dynamics; all samples share the first latent
    yield width, width, 2 * steps
    yield width, latent, steps
    yield width, cfg.num_bins, steps
    yield latent, width, iterations  # policy
    yield width, width, iterations
    yield width, 2 * cfg.action_dim, iterations
    yield latent, 2 * width, iterations  # two Q heads
    yield width, width, 2 * iterations
    yield width, cfg.num_bins, 2 * iterations


def product_run(cfg: Config, precision: str, num_envs: int, device: torch.device) -> Run:
    """Return all matrix products of a plan for ``num_envs`` environments, and nothing else."""
    rows = num_envs * cfg.num_samples
    runs: list[tuple[Run, int]] = []
    for inputs, outputs, count in products(cfg):
        x, w = torch.randn(rows, inputs, device=device), torch.randn(outputs, inputs, device=device)
        if precision == "int8":
            pads = (0, -inputs % 8), (0, -inputs % 8, 0, -outputs % 8)  # CUDA needs multiples of 8
            x8, w8 = F.pad(x.to(torch.int8), pads[0]), F.pad(w.to(torch.int8), pads[1])
            runs.append((partial(torch._int_mm, x8, w8.T), count))
        else:
            dtype = FLOATS[precision]
            runs.append((partial(F.linear, x.to(dtype), w.to(dtype)), count))

    def run() -> None:
        for one, count in runs:
            for _ in range(count):
                one()

    return run


def plan_run(model: WorldModel, num_envs: int, kind: str) -> Run:
    """Return a function that plans once for ``num_envs`` environments."""
    cfg, device = model.cfg, model.bins.device
    ids = torch.arange(num_envs, device=device) % len(cfg.task_specs)
    context = model.context(ids)
    z = model.encode(torch.randn(num_envs, cfg.obs_dim, device=device), context)
    mean = torch.zeros(num_envs, cfg.horizon, cfg.action_dim, device=device)
    fast = FastPlanner(model)
    plan: Callable[..., Any] = fast
    if kind == "kernels" or (device.type == "cuda" and kind == "compiled"):
        fast.speed_up("true", 10**6)
        assert fast.kind == kind, fast.kind
    elif kind == "compiled":
        functions: dict[str, Any] = compiled_functions(model)
        plan = partial(planner.plan, model, **functions)

    def run() -> None:
        plan(z, context, mean, planner.draw_noise(cfg, num_envs, device, None), eval_mode=True)

    return run


def plan_runs(cfg: Config, num_envs: int, device: torch.device) -> dict[str, Run]:
    """Return every way to plan that there is here, by name; the plain one is first."""
    plain = WorldModel(cfg, torch.Generator().manual_seed(0)).requires_grad_(False).to(device)
    runs = {PLAIN: plan_run(plain, num_envs, "plain")}
    formats = ("fp32", "bf16", "int8") if device.type == "cpu" else ("fp32", "bf16", "fp16", "int8")
    for name in formats:
        model = copy.deepcopy(plain)
        if name != "fp32":
            set_precision(model, name, torch.bfloat16)
        if device.type == "cpu" and not library.reason():
            runs[f"kernels {name}"] = plan_run(model, num_envs, "kernels")
        if can_compile(device) and (device.type == "cuda" or name == "bf16"):
            runs[f"compiled {name}"] = plan_run(model, num_envs, "compiled")
    return runs


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep so many cores busy for as long as the block lasts."""
    code = "print(flush=True)\nwhile True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # wait until it has begun
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=20, device="auto")
    parser.add_argument("--size", type=int, default=1, help="model size (default: %(default)s)")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 8], help="environments at once (default: 1 8)")
    parser.add_argument("--busy", type=int, default=0, help="processes that keep a core busy each (default: none)")
    args = parse(parser, argv, envs=[2])
    cfg, device = make_config(args, model_size=args.size), resolve_device(args.device)
    results: list[dict[str, Any]] = []
    for num_envs in args.envs:
        runs = plan_runs(cfg, num_envs, device)
        floors = {name.split()[1]: product_run(cfg, name.split()[1], num_envs, device) for name in runs}
        times = take_turns({**runs, **floors}, args.repeats, device=device, limit=args.limit)
        rows: list[dict[str, Any]] = [
            {
                "name": name,
                "num_envs": num_envs,
                "plain_ms": times.ms(PLAIN) / num_envs,
                "fast_ms": times.ms(name) / num_envs,
                "speedup": times.speedup(name),
                "matmul_ms": times.ms(name.split()[1]) / num_envs,
            }
            for name in runs
        ]
        if args.busy:
            with busy_processes(args.busy):
                busy = take_turns(runs, args.repeats, device=device, limit=args.limit)
            for row in rows:
                row["busy_ms"] = busy.ms(row["name"]) / num_envs
                row["slowdown"] = row["busy_ms"] / row["fast_ms"]
        results += rows
    columns = [
        ("how", "name", ""), ("environments", "num_envs", ""), ("ms", "fast_ms", ".1f"), ("speedup", "speedup", ".2f"),
        ("products alone, ms", "matmul_ms", ".1f"),
    ]  # fmt: skip
    if args.busy:
        columns += [("busy, ms", "busy_ms", ".1f"), ("slowdown", "slowdown", ".2f")]
    report("plan", args, results, columns)


if __name__ == "__main__":
    main()
