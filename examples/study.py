"""Measure what distillation gives, on two tasks and two CPU cores: `python examples/study.py --player student.pt`.

Collects episodes of random play and of a trained player with noise, trains a 5M teacher on them, then, with three
seeds each, 1M students without a teacher and with three of the distillation targets on the same budget; measures all
on episodes collected with another seed; and writes the table and the figure. Every step is a command a user would
type. If it is stopped, the same line goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tdmpc2.checkpoints.shipped import find
from tdmpc2.support.programs import run_in_terminal
from tdmpc2.support.runtime import usable_cores

ROOT = Path(__file__).resolve().parent.parent
TASKS = "tasks=[cartpole-swingup,pendulum-spin]"
#: A fraction of the full planner's samples and iterations, equal for all students that are compared.
PLANNER = "num_samples=64 num_elites=16 num_pi_trajs=8 iterations=3 eval_episodes=3 compile=false"
TEACHER_STEPS = STEPS = 1500
SEEDS = (1, 2, 3)
TARGETS = (None, "reward", "reward_logits", "value")


def run(command: str, log: Path, threads: int) -> None:
    """Run a command of the repository; what it prints goes to a file."""
    start = time.perf_counter()
    print(f"$ OMP_NUM_THREADS={threads} python {command}  >> {log}", flush=True)
    with log.open("a") as output:
        code = run_in_terminal(
            [sys.executable, *shlex.split(command)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
            output=output,
        )
    if code:
        raise SystemExit(
            f"It ended with {code}; the same line goes on where it was. The end of {log}:\n{log.read_text()[-2000:]}"
        )
    print(f"  {log.stem}: {time.perf_counter() - start:.0f} s", flush=True)


def collect_command(out: Path, player: Path, seed: int, episodes: int) -> str:
    mix = ", ".join(["1 random", *(f"1 policy {player} noise {noise}" for noise in (0.6, 0.3, 0))])
    name = {1: "data", 2: "heldout"}[seed]
    return f'collect.py seed={seed} "mix=[{mix}]" "{TASKS}" episodes_per_task={episodes} data_dir={out / name}'


def train_command(out: Path, name: str, settings: str, teacher: str) -> str:
    budget = f"data_dir={out}/data {TASKS} work_dir={out}/{name} log_freq=50 {PLANNER}"
    student = " ".join(f"student_config.{setting}" for setting in [*budget.split(), *settings.split()])
    return f"train.py {student} teacher_config{teacher}"


def student_command(out: Path, target: str | None, seed: int) -> str:
    teaching = "" if target is None else f" distillation_targets=[{target}]"
    return train_command(
        out,
        f"students/{target or 'none'}-{seed}",
        f"steps={STEPS} eval_freq={STEPS} save_freq={STEPS} seed={seed}{teaching}",
        "=null" if target is None else f".checkpoint={out}/teacher/model.pt",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A study of distillation on two tasks.")
    parser.add_argument("--player", help="checkpoint whose policy plays for the data (required)")
    parser.add_argument("--out", default="study", help="directory of everything (default: study)")
    parser.add_argument("--jobs", type=int, default=2, help="students trained at a time (default: 2)")
    args = parser.parse_args()
    if args.player is not None and (shipped := find(args.player)):
        args.player = str(shipped)
    if args.player is None or not Path(args.player).expanduser().is_file():
        named = "is missing" if args.player is None else f"{args.player} does not exist"
        sys.exit(f"error: --player {named}: name a trained checkpoint, such as the published student of README.md")
    out, player = Path(args.out).resolve(), Path(args.player).expanduser().resolve()
    for name, path in (("--out", out), ("--player", player)):
        if not re.fullmatch(r"[\w./:@+-]+", str(path)):
            sys.exit(f"error: {name} {path}: a path without spaces and other signs is needed, for the command lines")
    if args.jobs < 1:
        sys.exit(f"error: --jobs {args.jobs} must be at least 1")
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    cores = usable_cores()
    run(collect_command(out, player, seed=1, episodes=200), logs / "collect.txt", cores)
    run(collect_command(out, player, seed=2, episodes=40), logs / "collect_heldout.txt", cores)
    settings = f"model_size=5 batch_size=128 steps={TEACHER_STEPS} eval_freq={TEACHER_STEPS} save_freq=500"
    run(train_command(out, "teacher", settings, "=null"), logs / "teacher.txt", cores)
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            jobs = [
                pool.submit(
                    run,
                    student_command(out, target, seed),
                    logs / f"{target or 'none'}-{seed}.txt",
                    max(1, cores // args.jobs),
                )
                for seed in SEEDS
                for target in TARGETS
            ]
            for job in jobs:
                job.result()
        except BaseException:  # Ctrl-C or a failed run: running ones go on or save, others do not begin
            pool.shutdown(cancel_futures=True)
            raise
    students = " ".join(f"{out}/students/{target or 'none'}-{seed}/model.pt" for seed in SEEDS for target in TARGETS)
    teacher = f"{out}/teacher/model.pt"
    run(
        f"-m tdmpc2 heldout {students} {teacher} --data {out}/heldout --teacher {teacher} --write",
        logs / "errors.txt",
        cores,
    )
    run(f"report.py {out}/students --out {out}/report --force", logs / "report.txt", cores)
    print((out / "report" / "report.md").read_text())


if __name__ == "__main__":
    main()
