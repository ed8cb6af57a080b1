"""Time of loading a checkpoint and of continuing a run, against torch.load alone or against another commit.

python benchmarks/loading.py --full
python benchmarks/loading.py --against ../other   # a worktree of another commit, such as 0.1.0

There is a process for each of the two trees, and they read in turns: the same checkpoints with random weights, and a
run that each has saved in its own way. Without --against the second one only calls torch.load on these files. Results:
`name`, `mb` of the file, `ms` (median), `against_ms`, and `ratio` (median of the turns' ms / against_ms).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._harness import REPO, Run, make_parser, parse, report, take_turns
from benchmarks._inputs import make_config
from benchmarks._trees import worker
from tdmpc2.agent import TDMPC2

MINUTES = 0.375
FULL_MINUTES = 2
DISK_GB = 2

#: Runs in a tree: reads a name from each line it is sent, does that once, and answers. Other commits have these names.
_WORKER = """
import importlib, sys
from pathlib import Path
import torch
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.training import run_dir
run, threads, keys = Path(sys.argv[1]), int(sys.argv[2]), eval(sys.argv[3])
torch.set_num_threads(threads)
packages = (Path(run_dir.__file__).parents[1] / "checkpoints").is_dir()
load_file = importlib.import_module("tdmpc2.checkpoints.files" if packages else "tdmpc2.checkpoint").load_file
agent = TDMPC2(Config(**keys))
for optimiser in (agent.optim, agent.pi_optim):
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimiser.step()  # makes the moments that a state has
run_dir.save(agent, run, 1, None)
def plain(path):
    return torch.load(path, map_location="cpu", weights_only=True)
calls = {
    "load": lambda size: load_file(run.parent / f"{size}.pt"),
    "resume": lambda _: run_dir.restore(agent, run),
    "plain load": lambda size: plain(run.parent / f"{size}.pt"),
    "plain resume": lambda _: (plain(run / "state.pt"), plain(run / "model.pt")),
}
print("ready", flush=True)
for line in sys.stdin:
    call, _, size = line.strip().partition(":")
    calls[call](size)
    print("done", flush=True)
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=40, threads=1)
    parser.add_argument("--against", type=Path, help="a worktree of another commit (default: torch.load alone)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1], help="model sizes (default: 1; 1 317 with --full)")
    args = parse(parser, argv, {"sizes": [1, 317]})
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        for size in args.sizes:
            TDMPC2(make_config(args, **({} if args.quick else {"model_size": size}))).save(folder / f"{size}.pt")
        cfg = make_config(args)
        keys = {key: value for key, value in cfg.to_dict().items() if key in ("device", "model_size", "tasks")}
        keys |= {key: getattr(cfg, key) for key in ("enc_dim", "mlp_dim", "latent_dim", "task_dim") if args.quick}
        here = stack.enter_context(worker(REPO, _WORKER, folder / "here", args.threads, keys, folder=folder))
        against = (args.against or REPO).resolve()
        other = stack.enter_context(worker(against, _WORKER, folder / "against", args.threads, keys, folder=folder))
        prefix = "" if args.against else "plain "
        files = {f"load:{size}": folder / f"{size}.pt" for size in args.sizes} | {
            "resume": folder / "here" / "state.pt"
        }
        for call, path in files.items():
            runs: dict[str, Run] = {"against": partial(other, prefix + call), "here": partial(here, call)}
            times = take_turns(runs, args.repeats, label=f"Timing {call}", limit=args.limit)
            results.append({
                "name": call.replace(":", " ") + ("M" if ":" in call else ""),
                "mb": path.stat().st_size / 1e6,
                "ms": times.ms("here"), "against_ms": times.ms("against"), "ratio": times.ratio("here", "against"),
            })  # fmt: skip
    columns = [("what", "name", ""), ("MB", "mb", ".1f"), ("ms", "ms", ".1f"), ("against ms", "against_ms", ".1f"),
               ("ratio", "ratio", ".2f")]  # fmt: skip
    report("loading", args, results, columns)


if __name__ == "__main__":
    main()
