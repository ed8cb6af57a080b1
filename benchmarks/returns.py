"""Compare the returns of exported planners with this program's, episode by episode, in the real simulators.

python benchmarks/returns.py mt30_1M_steps_045dist_fp16.pt --tasks pendulum-spin walker-walk --episodes 10

Each seed is an episode that all three play, each with random numbers of its own: this program, the loop of
examples/onnx_control_loop.py with an exported planner, and examples/cpp/simulator.cpp with an exported library.
Results: `task`, `name` of the player, `mean`, `returns`, and of the exported ones the mean `difference` from this
program on the same seeds with its 95 % interval (`low`, `high`), and `same`: whether the interval holds 0.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._harness import REPO, make_parser, parse, print_table, report, skip
from benchmarks._inputs import student
from tdmpc2 import load_agent, make_env
from tdmpc2.acceleration.cpu import library
from tdmpc2.export import native, onnx_file
from tdmpc2.export.native_library import build
from tdmpc2.export.request import Request
from tdmpc2.support.intervals import mean_interval
from tdmpc2.tracking.progress import progress

MINUTES = 8
FULL_MINUTES = 60
BY_NAME = True
DISK_GB = 0

TASKS = ("pendulum-spin", "walker-walk", "cheetah-run")
FIRST_SEED = 100
ONNX_LOOP = REPO / "examples" / "onnx_control_loop.py"
CPP = REPO / "examples" / "cpp"
#: Task and seeds -> returns.
Plays = Callable[[str, range], list[float]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("checkpoint", nargs="?", type=Path, help="(default: a trained student that is here, or random)")
    parser.add_argument("--built", type=Path, help="where the library was built before (default: it is built)")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="(default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=3, help="of each task (default: %(default)s)")
    parser.add_argument("--num-samples", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=3, help="(default: %(default)s)")
    args = parse(parser, argv, {"episodes": 10}, episodes=2, tasks=("pendulum-spin",), num_samples=16, iterations=1)
    if reason := library.reason():
        skip(f"the CPU kernels are not available: {reason}")
    compiler = build_compiler()
    budget = {"num_samples": args.num_samples, "iterations": args.iterations}
    seeds = range(FIRST_SEED, FIRST_SEED + args.episodes)
    results: list[dict[str, Any]] = []
    with student(args) as checkpoint, tempfile.TemporaryDirectory() as temporary:
        for task in progress(list(args.tasks), "Playing", unit="tasks"):
            folder = Path(temporary, task)
            request = Request(checkpoint, task=task, overrides=budget, out=folder)
            with contextlib.redirect_stdout(io.StringIO()):
                players: dict[str, Plays] = {
                    "ONNX Runtime": onnx_player(request, args.threads),
                    "libtdmpc2": native_player(request, args.threads, compiler, args.built),
                }
            own = python_player(checkpoint, budget)(task, seeds)
            results.append({"task": task, "name": "this program", "mean": float(np.mean(own)), "returns": own})
            for name, plays in players.items():
                results.append({"task": task, "name": name, **compared(plays(task, seeds), own)})
    columns = [("task", "task", ""), ("player", "name", ""), ("return", "mean", ".1f"),
               ("difference", "difference", ".1f"), ("from", "low", ".1f"), ("to", "high", ".1f"),
               ("same", "same", "")]  # fmt: skip
    print_table(results, columns, f"{args.episodes} episodes of each task, the same seeds for all")
    report("returns", args, results)


def build_compiler() -> str:
    """Return the C++ compiler; the benchmark ends without one."""
    if not (found := shutil.which(os.environ.get("CXX", "c++"))) or not shutil.which("cmake"):
        skip("cmake and a C++ compiler are not installed")
    return found


def compared(returns: Sequence[float], own: Sequence[float]) -> dict[str, Any]:
    """Compare returns with this program's on the same seeds."""
    differences = np.subtract(returns, own)
    low, high = mean_interval(differences.tolist()) or (np.nan, np.nan)
    return {
        "mean": float(np.mean(returns)), "returns": list(returns), "difference": float(differences.mean()),
        "low": float(low), "high": float(high), "same": "yes" if low <= 0 <= high else "no",
    }  # fmt: skip


def python_player(checkpoint: Path, budget: dict[str, int]) -> Plays:
    """Play with this program, by float32 plans without exploration noise."""

    def play(task: str, seeds: range) -> list[float]:
        agent = load_agent(checkpoint, task=task, device="cpu", precision="fp32", **budget)
        returns = []
        for seed in seeds:
            env = make_env(task, seed=seed)
            (obs, _), first, done, total = env.reset(), True, False, 0.0
            while not done:
                padded = np.pad(obs, (0, agent.cfg.obs_dim - len(obs)))
                action = agent.act(padded, t0=first, eval_mode=True, task=task if agent.cfg.multitask else None)
                obs, reward, terminated, truncated, _ = env.step(np.asarray(action)[: env.action_space.shape[0]])
                first, done, total = False, terminated or truncated, total + float(reward)
            env.close()
            returns.append(total)
        return returns

    return play


def onnx_player(request: Request, threads: int) -> Plays:
    """Export the planner for ONNX Runtime, and play with the example's loop."""
    request.out.mkdir(parents=True)  # type: ignore[union-attr] # so that it is a directory
    onnx_file.export(request)
    (file,) = request.out.glob("*_plan.onnx")  # type: ignore[union-attr]
    spec = importlib.util.spec_from_file_location("onnx_control_loop", ONNX_LOOP)
    assert spec is not None
    assert spec.loader is not None
    loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loop)

    def play(task: str, seeds: range) -> list[float]:
        words = [str(file), "--episodes", str(len(seeds)), "--seed", str(seeds[0]), "--threads", str(threads)]
        with contextlib.redirect_stdout(io.StringIO()):
            returns: list[float] = loop.main(words)
        return returns

    return play


def native_player(request: Request, threads: int, compiler: str, built: Path | None) -> Plays:
    """Export the planner in C++, build it with the example, and play with that."""
    assert request.out is not None
    folder = request.out / "native"
    native.export(Request(request.checkpoint, task=request.task, overrides=request.overrides, out=folder))
    made, program = built or build(folder), folder / "simulator"
    words = [compiler, "-std=c++17", "-O2", "-I", folder / "include", CPP / "simulator.cpp", made / "libtdmpc2.so",
             f"-Wl,-rpath,{made}", "-pthread", "-o", program]  # fmt: skip
    subprocess.run(words, check=True, timeout=600)

    def play(task: str, seeds: range) -> list[float]:
        own = {**os.environ, "PYTHON": sys.executable, "SIMULATOR": str(CPP / "simulator.py"), "PYTHONPATH": str(REPO)}
        line = [program, folder / native.MODEL, task, str(len(seeds)), str(seeds[0]), str(threads)]
        said = subprocess.run(line, capture_output=True, text=True, env=own, check=True).stdout
        return [float(found) for found in re.findall(r"return (-?[\d.]+) in", said)]

    return play


if __name__ == "__main__":
    main()
