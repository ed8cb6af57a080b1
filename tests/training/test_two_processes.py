"""The training program in two processes: equal weights, one set of files, and no process that hangs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import Config
from tdmpc2.training.guards import STOPPED
from tdmpc2.training.offline import train
from tests.helpers.distributed import LAUNCHED, free_port, launched
from tests.helpers.forks import ForkServer
from tests.helpers.online import SMALL
from tests.helpers.reference import REPO
from tests.helpers.runs import TINY, rows
from tests.helpers.toy_envs import STANDS

ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k not in LAUNCHED}, "OMP_NUM_THREADS": "1"}


def command(cfg: Config, *before: str, **changes: Any) -> list[str]:
    settings = {**TINY, "tasks": f"[{','.join(TINY['tasks'])}]", "model_size": "null", "compile": "false"}
    settings |= {"data_dir": cfg.data_dir, "work_dir": cfg.work_dir, **changes}
    return [*before, "teacher_config=null", *(f"student_config.{key}={value}" for key, value in settings.items())]


def torchrun(cfg: Config, **changes: Any) -> list[str]:
    run = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return command(cfg, *run, "train.py", **changes)


def ends(process: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str]:
    """Return the exit code and output of a process, which must end within some seconds."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, output


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        env={**ENVIRONMENT, **environment},
        cwd=REPO,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def close(path: Path, expected: Path, step: int) -> bool:
    """Tell if a checkpoint is of this step and so many updates, and equals another one up to rounding."""
    one, two = load_file(path), load_file(expected)
    adam = torch.load(path.parent / "state.pt", weights_only=True)["training"]["optim"]["state"]
    updates = {int(entry["step"]) for entry in adam.values()}
    same = all(torch.allclose(x, two.model[name], 0, 1e-3) for name, x in one.model.items())
    return one.step == step and updates == {step} and same


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    assert any(text in line for line in process.stdout)


@pytest.mark.slow
def test_torchrun_trains_the_same_and_one_process_goes_on(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = train(cfg.replace(steps=30, work_dir=str(tmp_path / "straight")), None)
    score = {"eval_freq": 20, "eval_episodes": 1, "mpc": "false"}
    code, output = ends(start(torchrun(cfg, **score)))
    assert code == 0, output
    assert output.count("2 processes on cpu") == 1
    assert output.count("Trained for 20 steps") == 1
    whole = rows(tmp_path / "straight" / "train.csv")
    log = rows(cfg.run_dir / "train.csv")
    assert [row["step"] for row in log] == [5, 10, 15, 20]
    for row, expected in zip(log, whole, strict=False):
        assert row == pytest.approx(expected, abs=2e-5)
    assert [row["step"] for row in rows(cfg.run_dir / "eval.csv")] == [20]
    assert list(json.loads((cfg.run_dir / "evaluations.json").read_text())) == ["20"]
    train(cfg.replace(steps=30), None)
    assert "continuing at step 20" in capsys.readouterr().out
    one, two = (load_file(path).model for path in (straight, cfg.run_dir / "model.pt"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_torchrun_learns_online(tmp_path: Path) -> None:
    run = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py")
    keys = [f"{key}={'null' if value is None else value}" for key, value in SMALL.items()]
    code, output = ends(start([*run, f"task={STANDS}", "num_envs=2", f"work_dir={tmp_path / 'run'}", *keys]), 240)
    assert code == 0, output
    assert output.count("2 environments, ") == output.count("2 processes on cpu") == 1
    assert load_file(tmp_path / "run" / "model.pt").step == 46
    assert sorted(path.name for path in (tmp_path / "run" / "replay").iterdir()) == ["episodes_0.pt"]


@pytest.mark.slow
def test_killed_process_ends_the_other(cfg: Config, forks: ForkServer) -> None:
    port, arguments = free_port(), [REPO / "train.py", *command(cfg, steps=100_000, save_freq=10)]
    jobs = [forks.start(arguments, REPO, launched(rank, port)) for rank in (0, 1)]
    jobs[0].wait_for("step 20/")
    jobs[0].kill()  # the process that hosts the rendezvous
    assert jobs[1].wait() == 2
    said = jobs[1].err.read_text()
    assert re.search(r"^error: process 1 of 2: another one has ended or cannot be reached \(", said, re.M)
    assert load_file(cfg.run_dir / "model.pt").step is not None  # what was saved is there


@pytest.mark.slow
def test_killed_worker_ends_torchrun(cfg: Config) -> None:
    process = start(torchrun(cfg, steps=100_000))
    wait_for(process, "step 20/")
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    workers[1].kill()
    assert ends(process)[0] != 0
    assert not psutil.wait_procs(workers, timeout=10)[1]


@pytest.mark.slow
def test_sigterm_to_torchrun_stops_all_at_one_step(cfg: Config, tmp_path: Path) -> None:
    straight = train(cfg.replace(steps=100, work_dir=str(tmp_path / "straight")), None)
    process = start(torchrun(cfg, steps=100, save_freq=100_000))
    wait_for(process, "step 20/")
    for worker in psutil.Process(process.pid).children():
        worker.send_signal(signal.SIGTERM)  # a queue tells every process of a job, torchrun then tells them again
    process.send_signal(signal.SIGTERM)
    code, output = ends(process)
    assert code != 0
    match = re.search(r"Stopped by SIGTERM at step (\d+), everything is saved", output)
    assert match, output
    assert load_file(cfg.run_dir / "model.pt").step == int(match[1]) < 100
    train(cfg.replace(steps=100, save_freq=100_000), None)
    assert close(cfg.run_dir / "model.pt", straight, 100)
    assert [row["step"] for row in rows(cfg.run_dir / "train.csv")][-1] == 100


@pytest.mark.slow
@pytest.mark.parametrize("told", [(0,), (1,), (0, 1)], ids=["main", "other", "both"])
def test_sigterm_ends_all_processes_with_the_code_of_a_stop_and_saves_once(
    cfg: Config, forks: ForkServer, told: tuple[int, ...]
) -> None:
    """A queue requeues a job by this exit code and may signal any of its processes."""
    arguments = [REPO / "train.py", *command(cfg, steps=100_000, save_freq=100_000, keep_last=5)]
    port = free_port()
    jobs = [forks.start(arguments, REPO, launched(rank, port)) for rank in (0, 1)]
    jobs[0].wait_for("step 20/")
    for rank in told:
        jobs[rank].send_signal(signal.SIGTERM)
    assert [job.wait() for job in jobs] == [STOPPED, STOPPED]
    by = "SIGTERM" if 0 in told else "a signal to another process"
    (step,) = re.findall(rf"Stopped by {by} at step (\d+), everything is saved", jobs[0].out.read_text())
    assert [path.name for path in cfg.run_dir.glob("model_*.pt")] == [f"model_{step}.pt"]  # saved once
    assert torch.load(cfg.run_dir / "state.pt", weights_only=True)["step"] == int(step)
    assert "error" not in "".join(job.err.read_text() for job in jobs)


@pytest.mark.slow
def test_submitit_queues_a_stopped_run_of_two_tasks_again(cfg: Config, tmp_path: Path) -> None:
    straight = train(cfg.replace(steps=120, work_dir=str(tmp_path / "straight")), None)
    arguments = command(cfg, sys.executable, "train.py", "--multirun", steps=120, save_freq=100_000)
    arguments += ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=5"]
    process = start([*arguments, f"hydra.sweep.dir={tmp_path}/sweep"])
    log, deadline = cfg.run_dir / "train.csv", time.monotonic() + 60
    try:
        while not log.exists() or len(log.read_text().splitlines()) < 4:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in family if "submitit.core._submit" in child.cmdline()]
        assert len(workers) == 2
        for worker in workers:
            worker.send_signal(signal.SIGUSR2)
        assert not psutil.wait_procs(workers, timeout=30)[1]
        assert 0 < (load_file(cfg.run_dir / "model.pt").step or 0) < 120
    finally:
        code, output = ends(process, 240)  # two more processes start
    assert code == 0, output
    assert close(cfg.run_dir / "model.pt", straight, 120)
