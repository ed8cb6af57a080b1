"""Where the time of an update or of a plan goes: a table, and a trace for chrome://tracing or ui.perfetto.dev.

python benchmarks/profiles.py update --compile true --update-precision bf16 --trace update.json
python benchmarks/profiles.py plan

The model is the 1M MT30 student with random weights. Results: `name` of each kind of work, its `ms` in one run, its
`share` and its `operators`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks._harness import Run, make_parser, parse, report
from benchmarks._inputs import make_config, random_batch
from benchmarks.update import PRODUCTS
from tdmpc2.acceleration import compiled_update
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.support.files import replacing

MINUTES = 0.5
FULL_MINUTES = 1
DISK_GB = 0

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
    """Return the kind of work that an operator does."""
    return next((kind for kind, starts in _KINDS if name.startswith(starts)), "other")


def make_run(what: str, cfg: Config) -> Run:
    """Return a function that updates or plans once."""
    agent = TDMPC2(cfg)
    if what == "update":
        if cfg.compile == "true":  # without the C++ wrapper, whose calls the profiler does not see
            losses = compiled_update.compiled(agent.model, agent.device, cpp_wrapper=False)
            agent._model_losses, agent._policy_loss = losses
        batch = random_batch(cfg, agent.device)
        return lambda: agent.update(batch)
    agent.compile_planner(10**9)
    obs = torch.randn(cfg.obs_dim, device=agent.device)
    return lambda: agent.act(obs, t0=True, task=0)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=10)
    parser.add_argument("what", nargs="?", default="update", choices=["update", "plan"], help="(default: update)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--model-size", type=int, default=1)
    parser.add_argument("--compile", default="false", choices=["true", "false"])
    parser.add_argument("--update-precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--trace", type=Path, default=None, help="where to write the Chrome trace")
    args = parse(parser, argv)
    keys = ("batch_size", "model_size", "compile", "update_precision")
    cuda = args.device.startswith("cuda")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    run = make_run(args.what, make_config(args, **{key: getattr(args, key) for key in keys}))
    for _ in range(5):
        run()
    with profile(activities=activities) as record:
        for _ in range(args.repeats):
            run()
    if args.trace:
        with replacing(args.trace) as temporary:
            record.export_chrome_trace(str(temporary))
    ms: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    for event in record.key_averages():
        time = event.self_device_time_total if cuda else event.self_cpu_time_total
        ms[kind(event.key)] += time / 1e3 / args.repeats
        operators[kind(event.key)] += event.count // args.repeats
    total = ms.total()
    results = [
        {"name": name, "ms": own, "share": own / total, "operators": operators[name]} for name, own in ms.most_common()
    ]
    results.append({"name": "all", "ms": total, "operators": operators.total()})
    columns = [(args.what, "name", ""), ("ms", "ms", ".2f"), ("share", "share", ".1%"), ("operators", "operators", "")]
    report("profiles", args, results, columns)


if __name__ == "__main__":
    main()
