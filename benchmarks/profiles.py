"""Where the time of an update or of a plan goes: a table, and a trace for chrome://tracing or ui.perfetto.dev.

python benchmarks/profiles.py update --compile true --update-precision bf16 --trace update.json
python benchmarks/profiles.py plan

The model is the 1M MT30 student with random weights. The last line is JSON: `ms` of one run, and the `share` of each
kind of work.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich import box, get_console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from update import PRODUCTS, random_batch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.support.files import replacing
from tdmpc2.support.runtime import set_num_threads

#: First match of the operator's name, in this order.
_KINDS = (
    ("matrix products", PRODUCTS),
    ("Mish of LayerNorm", ("tdmpc2::", "aten::mish", "aten::native_layer_norm")),
    ("compiled kernels", ("graph_", "## Call")),
    ("optimiser", ("aten::_fused_adam", "Optimizer", "aten::_foreach", "aten::linalg_vector_norm", "aten::lerp_")),
    ("random numbers", ("aten::uniform_", "aten::normal_", "aten::random_")),
    ("softmax", ("aten::_softmax", "aten::_log_softmax")),
    ("copies", ("aten::copy_", "aten::cat", "aten::clone")),
)


def kind(name: str) -> str:
    """What kind of work an operator is."""
    return next((kind for kind, starts in _KINDS if name.startswith(starts)), "other")


def make_run(what: str, cfg: Config) -> Callable[[], Any]:
    """A function that updates or plans once."""
    agent = TDMPC2(cfg)
    if what == "update":
        agent.compile_update()
        batch = random_batch(cfg, "", agent.device)
        return lambda: agent.update(batch)
    agent.compile_planner(10**9)
    obs = torch.randn(cfg.obs_dim, device=agent.device)
    return lambda: agent.act(obs, t0=True, task=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="update", choices=["update", "plan"], help="(default: update)")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--model-size", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", default="false", choices=["true", "false"])
    parser.add_argument("--update-precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--trace", type=Path, default=None, help="where to write the Chrome trace")
    args = parser.parse_args()
    threads = set_num_threads(args.threads)
    keys = ("batch_size", "model_size", "device", "compile", "update_precision")
    run = make_run(args.what, Config(**{key: getattr(args, key) for key in keys}))
    for _ in range(5):
        run()
    cuda = args.device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as record:
        for _ in range(args.repeats):
            run()
    if args.trace:
        with replacing(args.trace) as temporary:
            record.export_chrome_trace(str(temporary))
    ms: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in record.key_averages():
        time = event.self_device_time_total if cuda else event.self_cpu_time_total
        ms[kind(event.key)] += time / 1e3 / args.repeats
        calls[kind(event.key)] += event.count // args.repeats
    total = ms.total()
    table = Table(f"{args.what}", "ms", "share", "operators", box=box.SIMPLE)
    for name, own in ms.most_common():
        table.add_row(name, f"{own:.2f}", f"{own / total:.1%}", str(calls[name]))
    table.add_row("all", f"{total:.2f}", "", str(calls.total()))
    get_console().print(table)
    facts = {name: getattr(args, name) for name in ("what", *keys)}
    shares = {name: own / total for name, own in ms.items()}
    print(json.dumps({**facts, "threads": threads, "torch": torch.__version__, "ms": total, "share": shares}))


if __name__ == "__main__":
    main()
