"""Two processes update and evaluate as one process does."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, parse_cfg
from tdmpc2.data.dataset import Batch
from tdmpc2.distributed import ProcessGroup, _buckets, process_group
from tdmpc2.play.evaluation import evaluate
from tdmpc2.support.runtime import local_processes, set_num_threads, usable_cores
from tdmpc2.training.guards import stop_on_signal
from tests.helpers.distributed import LAUNCHED, free_port, launched
from tests.helpers.runs import TINY
from tests.helpers.toy_envs import STANDS

ALONE = ProcessGroup()
DTYPES = {torch.float64: 1e-9, torch.float32: 2e-5}
ALL_TARGETS = ("reward", "value 0.2", "policy 0.2", "next_state_linear 0.1", "ranking 0.2")


# -- updates and evaluations: computed by two processes and by one ----------------------------------------------------


def computing_in(agent: TDMPC2, dtype: torch.dtype) -> TDMPC2:
    """Convert everything that an agent computes with to another type, for this test only."""
    agent.model.to(dtype)
    agent.scale = agent.scale.to(dtype)
    distillation = agent.distillation
    distillation._loss, distillation._first_loss = (x.to(dtype) for x in (distillation._loss, distillation._first_loss))
    for module in filter(None, (distillation.projection, distillation.teacher)):
        module.to(dtype)
    return agent


def make_agent(group: ProcessGroup, taught: bool) -> TDMPC2:
    """Make an agent with dropout, embeddings of norm above 1 and values that differ enough to move their scale."""
    keys = {**TINY, "tasks": None, "dropout": 0.2, "num_q": 3, "lr": 1e-3}
    cfg = Config(**keys)
    teacher = None
    if taught:
        cfg = cfg.replace(distillation_targets=ALL_TARGETS, distillation_schedule="gap", value_scale="per_task")
        teacher = TDMPC2(Config(**{**keys, "latent_dim": 24, "seed": 5}))
        teacher.model.requires_grad_(False)
    agent = TDMPC2(cfg, teacher, group)
    with torch.no_grad():
        agent.model._task_emb.weight.mul_(100)
        # 0 by default. These make values of order one, for which absolute tolerances make sense.
        agent.model._Qs.params[8].normal_(std=0.6, generator=torch.Generator().manual_seed(1))
    agent.model.reset_target()
    return agent


def draw(step: int, batch_size: int, dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(step)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    task = torch.randint(30, (batch_size,), generator=generator)
    return Batch(normal(4, batch_size, 24), normal(3, batch_size, 6).tanh(), normal(3, batch_size, 1), task)


def updates(group: ProcessGroup, dtype: torch.dtype, taught: bool) -> dict[str, Any]:
    """Make 20 updates of which every process takes its rows."""
    agent = computing_in(make_agent(group, taught), dtype)
    norm = agent.model._task_emb.weight.norm(dim=-1).min()
    own = group.rows(16)
    for step in range(20):
        whole = draw(step, 16, dtype)
        stats = agent.update(Batch(*(x[:, own] for x in whole[:3]), whole.task[own]))
    return {
        "weights": agent.model.state_dict(),
        "stats": stats,
        "norm": norm,
        "training": agent.training_state(),
    }


def play(group: ProcessGroup) -> list[tuple[Any, ...]]:
    """Run an evaluation of five episodes and return its result and the files of its one video."""
    cfg = parse_cfg({**TINY, "task": STANDS, "tasks": None, "mpc": False, "eval_episodes": 5, "save_video": True})
    filmed: list[str] = []

    @contextmanager
    def film(task: str) -> Iterator[Any]:
        frames: list[Any] = []
        yield SimpleNamespace(append=frames.append, fps=0.0)
        filmed.append(f"{task} {len(frames)}")

    result = evaluate(TDMPC2(cfg, group=group), film=film)
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
    """Return the results of one process and of each of two."""
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
def test_two_processes_update_as_one(results: tuple[dict[str, Any], ...], dtype: torch.dtype, taught: bool) -> None:
    alone, first, second = (result[f"{dtype} {taught}"] for result in results)
    assert alone["norm"] > 1  # embeddings were rescaled
    assert alone["training"]["scale"].max() > 1.01  # it would show if each half had its own scale
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
def test_two_processes_divide_an_evaluation(results: tuple[dict[str, Any], ...]) -> None:
    (seeds, returns, filmed), *others = (result["play"] for result in results)
    assert seeds == (100, 101, 102, 103, 104)
    assert len(set(returns)) == 5
    assert filmed == [f"{STANDS} 7"]
    for other in others:
        assert (other[0], other[2]) == (seeds, filmed)
        assert other[1] == pytest.approx(returns, abs=1e-5)


# -- parts ------------------------------------------------------------------------------------------------------------


def test_process_group_without_launcher_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_process_group_rows_partition_the_batch() -> None:
    groups = [replace(ALONE, rank=rank, world_size=3) for rank in range(3)]
    assert [list(range(12))[group.rows(12)] for group in groups] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(ValueError, match=r"batch_size=256 is the batch of all 3 processes .* use 258$"):
        groups[0].rows(256)
    with pytest.raises(ValueError, match=r"batch_size=2 .* use 3$"):
        groups[0].rows(2)


def test_process_group_cuts_large_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdmpc2.distributed._BUCKET", 10)
    tensors = [torch.empty(n) for n in (4, 6, 1, 25, 3)]
    assert [[len(x) for x in bucket] for bucket in _buckets(tensors)] == [[4, 6], [1], [25], [3]]


@pytest.mark.parametrize(
    ("device", "words"),
    [("cuda:0", "device=cuda:0 is one device for 2 processes"), ("meta", "device=meta is not available here")],
)
def test_process_group_on_unusable_device_is_refused(monkeypatch: pytest.MonkeyPatch, device: str, words: str) -> None:
    for name, value in launched(0, 1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words), process_group(device):
        pass


def test_processes_of_one_machine_share_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr("tdmpc2.support.runtime.usable_cores", lambda: 9)
    assert (local_processes(), set_num_threads(None)) == (1, 9)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (local_processes(), set_num_threads(None)) == (2, 4)
    assert usable_cores() >= 1


def test_stop_on_signal_second_sigterm_of_launcher_is_ignored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal(launched=True) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_stop_on_signal_of_queue_is_handed_on_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_evaluation_by_more_processes_than_episodes_works() -> None:
    """The last of four processes plays no episode and still gets the whole result."""
    cfg = parse_cfg({**TINY, "task": STANDS, "tasks": None, "mpc": False, "eval_episodes": 3})
    shares: list[Any] = []

    class Handing(ProcessGroup):
        def collect(self, value: Any) -> list[Any]:
            shares.append(value)
            return [value, ([], None), ([], None), ([], None)]

    class Receiving(ProcessGroup):
        def collect(self, value: Any) -> list[Any]:
            assert value == ([], None)
            return shares

    for rank in range(4):
        evaluate(TDMPC2(cfg, group=Handing(rank, 4)), quiet=True)
    assert [len(share) for share, _ in shares] == [1, 1, 1, 0]
    result = evaluate(TDMPC2(cfg, group=Receiving(3, 4)), quiet=True)
    assert result.tasks[0].returns == pytest.approx(evaluate(TDMPC2(cfg), quiet=True).tasks[0].returns, abs=1e-5)
    assert result.tasks[0].seeds == (100, 101, 102)
