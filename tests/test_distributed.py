"""Two processes train as one does: equal weights, one set of files, an end instead of a hang."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import Config, parse_cfg
from tdmpc2.data.dataset import Batch
from tdmpc2.distributed import ProcessGroup, _buckets, process_group
from tdmpc2.play.evaluation import evaluate
from tdmpc2.support.runtime import local_processes, set_num_threads, usable_cores
from tdmpc2.training.guards import stop_on_signal
from tdmpc2.training.offline import train

from .conftest import REPO, TINY
from .test_training import rows
from .toy_envs import STANDS

ALONE = ProcessGroup()
DTYPES = {torch.float64: 1e-9, torch.float32: 2e-5}
ALL_TARGETS = ("reward", "value 0.2", "policy 0.2", "next_state_linear 0.1")
LAUNCHED = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k not in LAUNCHED}, "OMP_NUM_THREADS": "1"}


def launched(rank: int, port: int) -> dict[str, str]:
    """What torchrun would tell one of two processes."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


# -- updates and evaluations: computed by two processes and by one ----------------------------------------------------


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_agent(group: ProcessGroup, taught: bool) -> TDMPC2:
    """An agent with dropout, embeddings of norm above 1 and values that differ enough to move their scale."""
    keys = {**TINY, "tasks": None, "dropout": 0.2, "num_q": 3, "lr": 1e-3}
    cfg = Config(**keys)
    teacher = None
    if taught:
        cfg = cfg.replace(distillation_targets=ALL_TARGETS, distillation_schedule="gap")
        teacher = TDMPC2(Config(**{**keys, "latent_dim": 24, "seed": 5}))
        teacher.model.requires_grad_(False)
    agent = TDMPC2(cfg, teacher, group)
    with torch.no_grad():
        agent.model._task_emb.weight.mul_(100)
        # 0 by default; with these, values are of order one, for which an absolute tolerance is meant.
        agent.model._Qs.params[8].normal_(std=0.6, generator=torch.Generator().manual_seed(1))
    agent.model.reset_target()
    return agent


def draw(step: int, batch_size: int) -> Batch:
    generator = torch.Generator().manual_seed(step)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    task = torch.randint(30, (batch_size,), generator=generator)
    return Batch(normal(4, batch_size, 24), normal(3, batch_size, 6).tanh(), normal(3, batch_size, 1), task)


def updates(group: ProcessGroup, dtype: torch.dtype, taught: bool) -> dict[str, Any]:
    """20 updates of which every process takes its rows."""
    with default_dtype(dtype):
        agent = make_agent(group, taught)
        norm = agent.model._task_emb.weight.norm(dim=-1).min()
        own = group.rows(16)
        for step in range(20):
            whole = draw(step, 16)
            stats = agent.update(Batch(*(x[:, own] for x in whole[:3]), whole.task[own]))
    return {
        "weights": agent.model.state_dict(),
        "stats": stats,
        "norm": norm,
        "training": agent.training_state(),
    }


def play(group: ProcessGroup) -> list[tuple[Any, ...]]:
    """An evaluation of five episodes and the files of its one video."""
    cfg = parse_cfg({**TINY, "task": STANDS, "tasks": None, "mpc": False, "eval_episodes": 5, "save_video": True})
    filmed: list[str] = []
    result = evaluate(TDMPC2(cfg, group=group), film=lambda task, frames: filmed.append(f"{task} {len(frames)}"))
    (task,) = result.tasks
    return [task.seeds, task.returns, [name for names in group.collect(filmed) for name in names]]


def scenarios(group: ProcessGroup) -> dict[str, Any]:
    results = {f"{dtype} {taught}": updates(group, dtype, taught) for dtype in DTYPES for taught in (False, True)}
    return {**results, "play": play(group)}


def _one_of_two(rank: int, port: int, directory: str) -> None:
    os.environ.update(launched(rank, port))
    torch.set_num_threads(1)
    with process_group("cpu") as group:
        assert (group.rank, group.world_size) == (rank, 2)
        torch.save(scenarios(group), Path(directory) / f"{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], ...]:
    """Of one process, and of each of two."""
    directory, context, port = tmp_path_factory.mktemp("results"), multiprocessing.get_context("spawn"), free_port()
    processes = [context.Process(target=_one_of_two, args=(rank, port, str(directory))) for rank in (0, 1)]
    for process in processes:
        process.start()
    alone = scenarios(ALONE)
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return (alone, *(torch.load(directory / f"{rank}.pt") for rank in (0, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_processes_equal_one(results: tuple[dict[str, Any], ...], dtype: torch.dtype, taught: bool) -> None:
    alone, first, second = (result[f"{dtype} {taught}"] for result in results)
    assert alone["norm"] > 1  # so that embeddings were rescaled
    assert alone["training"]["scale"] > 1.01  # so that a scale of each half's values would have shown
    close = {"atol": DTYPES[dtype], "rtol": 0.0}
    for part in ("weights", "stats"):
        for name, value in alone[part].items():
            torch.testing.assert_close(first[part][name], value, **close, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(first["training"]["scale"], alone["training"]["scale"], **close)
    assert ("distillation_factor" in alone["stats"]) == taught
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    assert torch.equal(first["training"]["generator"], second["training"]["generator"])
    assert torch.equal(first["training"]["generator"], alone["training"]["generator"])


@pytest.mark.slow
def test_an_evaluation_is_divided(results: tuple[dict[str, Any], ...]) -> None:
    (seeds, returns, filmed), *others = (result["play"] for result in results)
    assert seeds == (100, 101, 102, 103, 104)
    assert len(set(returns)) == 5
    assert filmed == [f"{STANDS} 7"]
    for other in others:
        assert (other[0], other[2]) == (seeds, filmed)
        assert other[1] == pytest.approx(returns, abs=1e-5)


# -- the program ------------------------------------------------------------------------------------------------------


def command(cfg: Config, *before: str, **changes: Any) -> list[str]:
    settings = {**TINY, "tasks": f"[{','.join(TINY['tasks'])}]", "model_size": "null", "compile": "false"}
    settings |= {"data_dir": cfg.data_dir, "work_dir": cfg.work_dir, **changes}
    return [*before, "teacher_config=null", *(f"student_config.{key}={value}" for key, value in settings.items())]


def torchrun(cfg: Config, **changes: Any) -> list[str]:
    run = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return command(cfg, *run, "train.py", **changes)


def ends(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a process that must end within a minute."""
    try:
        output, _ = process.communicate(timeout=60)
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
    """Whether a checkpoint is of this step and as another one; rounding has grown since the first one."""
    one, two = load_file(path), load_file(expected)
    return one.step == step and all(torch.allclose(x, two.model[name], 0, 1e-3) for name, x in one.model.items())


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    assert any(text in line for line in process.stdout)


@pytest.mark.slow
def test_torchrun_trains_the_same_and_one_process_goes_on(cfg: Config, tmp_path: Path) -> None:
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
    code, output = ends(start(command(cfg, sys.executable, "train.py", steps=30)))
    assert code == 0, output
    assert "continuing at step 20" in output
    one, two = (load_file(path).model for path in (straight, cfg.run_dir / "model.pt"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_a_killed_process_ends_the_other(cfg: Config) -> None:
    port, arguments = free_port(), command(cfg, sys.executable, "train.py", steps=100_000, save_freq=10)
    processes = [start(arguments, **launched(rank, port)) for rank in (0, 1)]
    wait_for(processes[0], "step 20/")
    processes[0].kill()  # the one that the others met at
    began = time.monotonic()
    code, output = ends(processes[1])
    assert time.monotonic() - began < 60
    assert code == 2
    assert re.search(r"^error: process 1 of 2: another one has ended or cannot be reached \(", output, re.M)
    assert load_file(cfg.run_dir / "model.pt").step is not None  # what was saved is there


@pytest.mark.slow
def test_a_killed_worker_ends_torchrun(cfg: Config) -> None:
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
    code, output = ends(start(torchrun(cfg, steps=100, save_freq=100_000)))
    assert code == 0, output
    assert close(cfg.run_dir / "model.pt", straight, 100)
    assert [row["step"] for row in rows(cfg.run_dir / "train.csv")][-1] == 100


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
        code, output = ends(process)
    assert code == 0, output
    assert close(cfg.run_dir / "model.pt", straight, 120)


# -- parts ------------------------------------------------------------------------------------------------------------


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    x = torch.ones(3)
    with process_group("cpu") as group, group.main_first():
        assert group == ALONE
        assert group.main
        assert group.gather(x) is x
        assert group.collect(3) == [3]
        assert group.from_main(lambda: 4) == 4
        group.average([x])
    assert not torch.distributed.is_initialized()


def test_rows_of_a_batch() -> None:
    groups = [replace(ALONE, rank=rank, world_size=3) for rank in range(3)]
    assert [list(range(12))[group.rows(12)] for group in groups] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(ValueError, match=r"batch_size=256 is the batch of all 3 processes .* use 258$"):
        groups[0].rows(256)
    with pytest.raises(ValueError, match=r"batch_size=2 .* use 3$"):
        groups[0].rows(2)


def test_large_messages_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdmpc2.distributed._BUCKET", 10)
    tensors = [torch.empty(n) for n in (4, 6, 1, 25, 3)]
    assert [[len(x) for x in bucket] for bucket in _buckets(tensors)] == [[4, 6], [1], [25], [3]]


@pytest.mark.parametrize(("device", "words"), [("cuda:0", "device=cuda:0 is one device for 2 processes"), ("meta", "")])
def test_devices_that_several_processes_cannot_use(monkeypatch: pytest.MonkeyPatch, device: str, words: str) -> None:
    for name, value in launched(0, 1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words or "trains with one process, not 2"), process_group(device):
        pass


def test_processes_of_a_machine_share_its_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr("tdmpc2.support.runtime.usable_cores", lambda: 9)
    assert (local_processes(), set_num_threads(None)) == (1, 9)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (local_processes(), set_num_threads(None)) == (2, 4)
    assert usable_cores() >= 1


def test_one_more_sigterm_of_a_launcher_is_no_other_request() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal(launched=True) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_queues_signal_is_handed_on_when_all_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    before = signal.signal(signal.SIGUSR2, lambda *_: said.append("queued again"))
    try:
        with stop_on_signal() as stop:
            signal.raise_signal(signal.SIGUSR2)
            assert stop.signal == signal.SIGUSR2
            said.append("saved")
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert said == ["saved", "queued again"]


def test_an_evaluation_by_more_processes_than_episodes() -> None:
    """The last of four has no episode, and has the whole result."""
    cfg = parse_cfg({**TINY, "task": STANDS, "tasks": None, "mpc": False, "eval_episodes": 3})
    shares: list[Any] = []

    class Handing(ProcessGroup):
        def collect(self, value: Any) -> list[Any]:
            shares.append(value)
            return [value, [], [], []]

    class Receiving(ProcessGroup):
        def collect(self, value: Any) -> list[Any]:
            assert value == []
            return shares

    for rank in range(4):
        evaluate(TDMPC2(cfg, group=Handing(rank, 4)), quiet=True)
    assert [len(share) for share in shares] == [1, 1, 1, 0]
    result = evaluate(TDMPC2(cfg, group=Receiving(3, 4)), quiet=True)
    assert result.tasks[0].returns == pytest.approx(evaluate(TDMPC2(cfg), quiet=True).tasks[0].returns, abs=1e-5)
    assert result.tasks[0].seeds == (100, 101, 102)
