"""How long ONNX Runtime takes for an action with exported files, beside this program, and how alike they act.

python benchmarks/export.py mt30_1M_steps_045dist_fp16.pt --threads 2

The policy and the planner at some budgets, for one environment, from an observation to an action: the plain model in
float32, the CPU kernels in both precisions where there are any, and the files of `tdmpc2 export` in both as
`examples/onnx_control_loop.py` calls them. All are timed in turns, each the second of two actions. Then the differences
that `tdmpc2 export --check` measures, for five tasks and each precision. Results: of times `name`, `precision`,
`samples`, `iterations`, `ms`, `speedup` over the plain model; of files `bytes`, `load_ms`; of differences `task`,
`policy`, `plain`, `plan`, `largest`, `same` (share of executed actions), `regret` and `rounding` (the plain model's
regret with the same weights).
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks._harness import REPO, Run, make_parser, parse, print_table, report, skip, take_turns
from benchmarks._inputs import student
from tdmpc2.export import onnx_file
from tdmpc2.export.check import Runtime, compare
from tdmpc2.export.graph import STEPS
from tdmpc2.export.request import Request, load
from tdmpc2.export.step_files import target_files
from tdmpc2.loading import load_agent
from tdmpc2.support.extras import missing_packages
from tdmpc2.support.files import size_text

MINUTES = 4
FULL_MINUTES = 6
BY_NAME = True
DISK_GB = 0

TASKS = ("walker-walk", "cheetah-run", "finger-spin", "cup-catch", "pendulum-spin")
BUDGETS: tuple[dict[str, int], ...] = ({}, {"num_samples": 128, "iterations": 3})
PRECISIONS = ("fp32", "int8")


def control_loop() -> ModuleType:
    """Import the example that users begin with."""
    spec = importlib.util.spec_from_file_location("onnx_control_loop", REPO / "examples" / "onnx_control_loop.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exported(path: Path, out: Path, precision: str, budget: dict[str, int], tasks: tuple[str, ...]) -> dict[str, Path]:
    """Export a checkpoint; returns the file of each step."""
    request = Request(path, precision=precision, tasks=tasks, overrides=budget, out=out / f"{precision}.onnx")
    onnx_file.export(request)
    return target_files(request, onnx_file.ENDING)


def agent_run(path: Path, obs: np.ndarray, task: str, precision: str, compiled: bool, **keys: Any) -> Run | None:
    """Return a function that acts once with this program; None where there are no kernels."""
    way = "auto" if compiled else "false"  # auto: the kernels where there are any, and no compiling in their place
    agent = load_agent(path, device="cpu", precision=precision, compile=way, quiet=True, task=task, **keys)
    padded = np.zeros(agent.cfg.obs_dim, np.float32)
    padded[: len(obs)] = obs
    agent.act(padded, t0=True, eval_mode=True, task=task)
    if compiled and agent.planner.kind != "kernels":
        return None
    return partial(agent.act, padded, eval_mode=True, task=task)


def onnx_run(loop: ModuleType, file: Path, obs: np.ndarray, task: str, threads: int) -> tuple[Run, float]:
    """Return a function that acts once with an exported file, and the milliseconds that loading it took."""
    began = time.perf_counter()
    controller = loop.Controller(str(file), task, threads=threads)
    seconds = time.perf_counter() - began
    controller.act(obs)
    return partial(controller.act, obs), 1e3 * seconds


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=100)
    parser.add_argument("checkpoint", nargs="?", type=Path, help="(default: a trained student that is here, or random)")
    parser.add_argument("--budgets", type=int, default=len(BUDGETS), help="only the first so many (default: all)")
    parser.add_argument("--steps", type=int, default=20, help="observations of each task (default: %(default)s)")
    args = parse(parser, argv, budgets=1, steps=2)
    if missing := missing_packages("export"):
        skip(f"{', '.join(missing)} not installed")
    loop, results = control_loop(), []
    with student(args) as path, tempfile.TemporaryDirectory() as directory:
        known = load_agent(path, device="cpu", precision="fp32", compile=False, quiet=True).cfg
        names = [known.task_names[task_id] for task_id in known.task_ids]
        tasks = tuple(name for name in TASKS if name in names) or tuple(names[: len(TASKS)])
        obs = np.zeros(known.task_specs[known.task_names.index(tasks[0])].obs_dim, np.float32)
        runs: dict[str, Run | None] = {}
        facts: dict[str, dict[str, Any]] = {}
        for budget in BUDGETS[: args.budgets]:
            cfg = known.replace(**budget)
            label = f"plan {cfg.num_samples} x {cfg.plan_iterations}"
            out = Path(directory) / label.replace(" ", "_")
            files = {precision: exported(path, out, precision, budget, tasks) for precision in PRECISIONS}
            acting = {label: ("plan", True)} if runs else {"policy": ("policy", False), label: ("plan", True)}
            for name, (step, mpc) in acting.items():
                own = partial(agent_run, path, obs, tasks[0], mpc=mpc, **budget)
                runs[f"{name}, plain fp32"] = own("fp32", False)
                if mpc:
                    runs |= {f"{name}, kernels {precision}": own(precision, True) for precision in PRECISIONS}
                for precision in PRECISIONS:
                    title, file = f"{name}, onnx {precision}", files[precision][step]
                    runs[title], milliseconds = onnx_run(loop, file, obs, tasks[0], args.threads)
                    facts[title] = {"bytes": file.stat().st_size, "load_ms": milliseconds}
            if not budget:
                for precision in PRECISIONS:
                    results += differences(path, files[precision], precision, tasks, args.steps)
        results = [*timed({name: run for name, run in runs.items() if run}, facts, args), *results]
    report("export", args, results)


def timed(runs: dict[str, Run], facts: dict[str, dict[str, Any]], args: Any) -> list[dict[str, Any]]:
    """Time all in turns and print them."""
    times = take_turns(runs, args.repeats, prepare=runs, label="acting", limit=args.limit, least=20)
    rows = []
    for name in runs:
        plain = f"{name.partition(',')[0]}, plain fp32"
        row = {"name": name, "ms": times.ms(name), "speedup": times.ratio(plain, name), **facts.get(name, {})}
        rows.append(row | ({"size": size_text(row["bytes"])} if "bytes" in row else {}))
    columns = [
        ("one action", "name", ""), ("ms", "ms", ".2f"), ("speedup", "speedup", ".2f"), ("size", "size", ""),
        ("load ms", "load_ms", ".0f"),
    ]  # fmt: skip
    print_table(rows, columns, title=f"{args.threads} thread{'s' * (args.threads > 1)}")
    return rows


def differences(
    path: Path, files: dict[str, Path], precision: str, tasks: tuple[str, ...], steps: int
) -> list[dict[str, Any]]:
    """Measure and print the differences of exported files from the plain model."""
    request = Request(path, precision=precision, tasks=tasks, steps=steps)
    source = load(request)
    rows = compare(
        request, source, [step(source.model) for step in STEPS], {name: Runtime(path) for name, path in files.items()}
    )
    found = [{"name": f"{row.task} {precision}", **row._asdict(), "right": row.right} for row in rows]
    columns = [
        ("task", "task", ""), ("policy", "policy", ".1e"), ("(plain)", "plain", ".1e"), ("plan", "plan", ".1e"),
        ("(largest)", "largest", ".1e"), ("same action", "same", ".0%"), ("regret", "regret", ".4f"),
        ("(plain)", "rounding", ".4f"),
    ]  # fmt: skip
    print_table(found, columns, title=f"differences, {precision}")
    return found


if __name__ == "__main__":
    main()
