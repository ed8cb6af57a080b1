"""Command lines of the scripts, and running them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.helpers.reference import REPO

TASKS = "tasks=[pendulum-spin,cartpole-balance]"
SIZES = (
    "model_size=null enc_dim=16 mlp_dim=16 latent_dim=16 task_dim=8 num_samples=16 num_elites=4 num_pi_trajs=4 "
    "iterations=1 num_threads=1 device=cpu"
)
RUN = f"{SIZES} {TASKS} data_dir=data batch_size=16 steps=10 log_freq=5 eval_freq=0"
STUDENT = " ".join(f"student_config.{key}" for key in RUN.split())
EVALUATE = "evaluate.py eval_episodes=1 num_threads=1 device=cpu compile=false"

SERVER = """
import json, os, runpy, sys, traceback
import tdmpc2.envs.dm_control, tdmpc2.envs.vector, tdmpc2.training.offline, tdmpc2.play.collector
import tdmpc2.commands.hydra_app, torch._dynamo
for line in sys.stdin:
    job = json.loads(line)
    if (child := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(os.open(job[f"stream{stream}"], os.O_WRONLY | os.O_CREAT), stream)
        os.chdir(job["cwd"])
        sys.argv, code = job["argv"], 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "WANDB_MODE": "disabled", "PYTHONPATH": str(REPO)}
    return {**{k: v for k, v in os.environ.items() if k not in ("TDMPC2_TRACEBACK", "FORCE_COLOR")}, **own}


def start(command: str, cwd: Path) -> Outcome:
    """Run a command in a new interpreter."""
    script, *arguments = command.split()
    line = [sys.executable, str(REPO / script), *arguments]
    done = subprocess.run(line, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


Run = Callable[[str, Path], Outcome]


def good(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome
    assert "Traceback" not in outcome.err
    return outcome


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def refused(outcome: Outcome, message: str) -> None:
    assert outcome.code == 2, outcome
    assert re.search(message, outcome.err), outcome.err
    *_, last = outcome.err.splitlines()
    assert last.startswith("error: ")
    assert "Traceback" not in outcome.err
    assert outcome.err.count("error:") == 1
