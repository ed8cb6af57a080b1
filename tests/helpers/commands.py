"""Command lines of the scripts, and running them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.helpers.forks import environment
from tests.helpers.reference import REPO

TASKS = "tasks=[pendulum-spin,cartpole-balance]"
SIZES = (
    "model_size=null enc_dim=16 mlp_dim=16 latent_dim=16 task_dim=8 num_samples=16 num_elites=4 num_pi_trajs=4 "
    "iterations=1 num_threads=1 device=cpu"
)
RUN = f"{SIZES} {TASKS} data_dir=data batch_size=16 steps=10 log_freq=5 eval_freq=0"
STUDENT = " ".join(f"student_config.{key}" for key in RUN.split())
EVALUATE = "evaluate.py eval_episodes=1 num_threads=1 device=cpu compile=false"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


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
