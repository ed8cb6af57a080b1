"""The whole path on four MT30 tasks, small enough for two CPU cores: `make demo`.

Plays random episodes in dm_control, trains a 5M teacher on them, distils it into a 1M student, quantises the student,
evaluates all three, and prints one table. Every step is a command a user would type; what they
leave behind is in demo/. The budget is minutes, so the scores are far below a trained model's.
If it is stopped in the middle, the same line goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import shutil
import sys
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.support.programs import run_in_terminal
from tdmpc2.tasks import MT30, lookup

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("demo")
TASKS = "tasks=[cartpole-balance,cartpole-swingup,pendulum-spin,cheetah-run-backwards]"
#: An eighth of the full planner's samples and half its iterations: stated below the table.
PLANNER = "num_samples=64 num_elites=16 num_pi_trajs=8 iterations=3"
console = Console()


def run(command: str) -> None:
    """Run one of the repository's scripts; where it fails or is stopped, end with its exit code."""
    console.print(f"\n$ python {command}", style="bold", markup=False, highlight=False)
    script, *arguments = shlex.split(command)
    if code := run_in_terminal([sys.executable, str(ROOT / script), *arguments]):
        print("The demo has not ended: the same command goes on", file=sys.stderr)
        sys.exit(code)


def train(name: str, steps: int, *settings: str) -> float:
    """Train into demo/<name>; the settings are the student's, or start with teacher_config. Returns seconds."""
    common = (
        f"data_dir={OUT}/data {TASKS} work_dir={OUT}/{name} steps={steps} eval_freq=0 save_freq={steps} log_freq=50"
    )
    prefixed = [s if s.startswith("teacher_config") else f"student_config.{s}" for s in (*common.split(), *settings)]
    run(" ".join(["train.py", *prefixed]))
    with (OUT / name / "speed.csv").open() as file:
        return float([*csv.DictReader(file)][-1]["wall_seconds"])  # also of a continued run


def evaluate(name: str, checkpoint: str) -> dict[str, float]:
    """Return per task, and under ``score`` the normalised score."""
    directory = OUT / f"eval-{name}"
    if not (directory / "results.json").exists():
        shutil.rmtree(directory, ignore_errors=True)  # what a stopped evaluation has left
        run(f"evaluate.py checkpoint={checkpoint} {TASKS} {PLANNER} eval_episodes=1 work_dir={directory}")
    results = json.loads((directory / "results.json").read_text())
    return {t["task"]: t["return"] for t in results["tasks"]} | {"score": results["normalized_score"]}


def random_returns() -> dict[str, float]:
    """Return the mean return per task of the collected episodes, and their score."""
    ids = [MT30.index(name) for name in TASKS.removeprefix("tasks=[").rstrip("]").split(",")]
    data = EpisodeDataset.load(OUT / "data", [lookup(name) for name in MT30], ids)
    means = {MT30[task_id]: float(values.mean()) for task_id, values in data.episode_returns().items()}
    return {MT30[i]: means[MT30[i]] for i in ids} | {"score": sum(means.values()) / len(means) / 10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()  # --help explains and runs nothing
    unfinished = (OUT / "data").is_dir() and not (OUT / "eval-student-int8" / "results.json").exists()
    if OUT.exists() and not unfinished:
        sys.exit(f"error: {OUT}/ exists from an earlier demo: remove it first (rm -r {OUT})")
    start = time.perf_counter()
    run(f"collect.py {TASKS} data_dir={OUT}/data episodes_per_task=40")
    teacher_s = train("teacher", 400, "model_size=5", "batch_size=128", "teacher_config=null")
    student_s = train("student", 400, f"teacher_config.checkpoint={OUT}/teacher/model.pt")
    run(f"quantize.py --checkpoint {OUT}/student/model.pt --force")

    models = {
        "5M teacher": ("teacher", f"{OUT}/teacher/model.pt", f"{teacher_s:.0f} s"),
        "1M student": ("student", f"{OUT}/student/model.pt", f"{student_s:.0f} s"),
        "1M int8": ("student-int8", f"{OUT}/student/model_int8.pt", "-"),
    }
    returns = {"random": random_returns(), **{label: evaluate(*models[label][:2]) for label in models}}
    table = Table("", *returns, box=box.SIMPLE)
    for task in returns["random"]:
        table.add_row(task, *(f"{scores[task]:.1f}" for scores in returns.values()))
    table.add_section()
    table.add_row("file", "-", *(f"{Path(path).stat().st_size / 1e6:.1f} MB" for _, path, _ in models.values()))
    table.add_row("training", "-", *(seconds for _, _, seconds in models.values()))
    console.print(table)
    console.print(
        "Returns: random play the mean of 40 episodes, the others one noise-free episode a task, reduced planner\n"
        f"({PLANNER}). Score: mean return / 10.\n"
        f"{time.perf_counter() - start:.0f} s in all; everything is in {OUT}/",
        highlight=False,
    )


if __name__ == "__main__":
    main()
