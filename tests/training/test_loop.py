"""The loop of a run, whatever it learns from."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.distributed import ProcessGroup
from tdmpc2.play.evaluation import Evaluation, TaskResult
from tdmpc2.training.guards import STOPPED
from tdmpc2.training.loop import Run
from tdmpc2.training.resuming import Every
from tdmpc2.training.run_record import describe_other_data
from tdmpc2.training.scoring import Evaluator
from tests.helpers.runs import TINY, rows, weights


def evaluate(agent: TDMPC2, cfg: Config, **_: Any) -> Evaluation:
    return Evaluation((TaskResult("pendulum-spin", (1,), (10.0,), (0.0,), False),))


class Environments:
    """Three environments that are stepped at once, with all that they returned as a state to be saved."""

    num_envs = 3

    def __init__(self) -> None:
        self.seen = torch.zeros(0)

    def step(self, number: int) -> None:
        self.seen = torch.cat([self.seen, torch.arange(number - 2.0, number + 1)])

    def sample(self) -> Batch:
        draw = torch.Generator().manual_seed(int(self.seen.sum()))
        obs, action = torch.randn(4, 8, 24, generator=draw), torch.randn(3, 8, 6, generator=draw).tanh()
        return Batch(obs, action, torch.rand(3, 8, 1, generator=draw), torch.zeros(8, dtype=torch.int64))

    def state(self) -> Mapping[str, Any]:
        return {"seen": self.seen}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


def learn_online(cfg: Config, stop_at: int | None = None, play: Evaluator = evaluate) -> Environments:
    """Act randomly for nine steps, then make two updates in each turn of the loop."""
    environments = Environments()
    with Run.open(cfg, None, ProcessGroup(), play, stride=environments.num_envs) as run:
        run.attach("environments", environments)
        run.start("3 environments")
        for step in run.steps():
            environments.step(step)
            metrics = None
            for _ in range(2 if step > 9 else 0):
                metrics = run.update(environments.sample())
            if step == stop_at:
                signal.raise_signal(signal.SIGTERM)
            run.after_update(step, metrics)
    return environments


@pytest.fixture
def online(tmp_path: Path) -> Config:
    return Config(**{**TINY, "work_dir": str(tmp_path / "run"), "steps": 30, "eval_freq": 10, "log_freq": 10})


def test_run_online_stopped_run_continues_exactly(online: Config, tmp_path: Path) -> None:
    """A turn takes several environment steps, makes several updates or none, and a part has a state of its own."""
    straight = online.replace(work_dir=str(tmp_path / "straight"))
    expected = learn_online(straight)
    with pytest.raises(SystemExit) as ended:
        learn_online(online, stop_at=15)
    assert ended.value.code == STOPPED
    found = learn_online(online)
    assert torch.equal(found.seen, expected.seen)
    assert torch.equal(found.seen, torch.arange(1.0, 31))
    one, two = (weights(cfg.run_dir / "model.pt") for cfg in (straight, online))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    for name in ("train.csv", "eval.csv", "evaluations.json"):
        assert (online.run_dir / name).read_bytes() == (straight.run_dir / name).read_bytes()


def test_run_online_is_logged_and_scored_when_a_multiple_is_passed(online: Config) -> None:
    learn_online(online)
    assert [row["step"] for row in rows(online.run_dir / "train.csv")] == [12, 21, 30]
    assert list(json.loads((online.run_dir / "evaluations.json").read_text())) == ["12", "21", "30"]


def test_run_online_evaluation_cut_off_is_made_again(online: Config) -> None:
    calls = []

    def interrupted(*_: Any, **__: Any) -> Evaluation:
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_online(online, play=interrupted)
    assert calls == [1]
    learn_online(online)
    assert [row["step"] for row in rows(online.run_dir / "eval.csv")] == [12, 21, 30]


def test_run_wall_seconds_continue_with_the_run(online: Config) -> None:
    learn_online(online.replace(steps=15))
    first = rows(online.run_dir / "speed.csv")[-1]["wall_seconds"]
    learn_online(online)
    log = [row["wall_seconds"] for row in rows(online.run_dir / "speed.csv")]
    assert first in log
    assert log == sorted(log)
    assert log[-1] > first


@pytest.mark.parametrize(("freq", "stride", "due"), [
    (0, 1, []), (1, 1, [1, 2, 3, 4, 5, 6, 7, 8]), (3, 1, [3, 6]), (5, 2, [6]), (3, 4, [4, 8]), (20, 1, []),
])  # fmt: skip
def test_every_is_due_where_a_multiple_is_reached_or_passed(freq: int, stride: int, due: list[int]) -> None:
    assert [step for step in range(0, 9, stride) if Every(freq, stride).due(step)] == due


A, B, STORE, OTHER = {"chunk_0.pt": "1-a"}, {"chunk_0.pt": "1-b"}, {"checksum": "x"}, {"checksum": "y"}


@pytest.mark.parametrize(("recorded", "now", "words"), [
    (A, B, "chunk_0.pt has other episodes"),
    (A, {**A, "chunk_1.pt": "2-c"}, "chunk_1.pt is new"),
    ({**A, "chunk_1.pt": "2-c"}, A, "chunk_1.pt is missing"),
    ({f"chunk_{n}.pt": "1-a" for n in range(5)}, {f"chunk_{n}.pt": "1-b" for n in range(5)},
        "5 files have other episodes (chunk_0.pt, chunk_1.pt, chunk_2.pt, ...)"),
    (STORE, OTHER, "the episode store holds other episodes than the one the run began with"),
    (STORE, A, "the run began with an episode store; now there is 1 chunk file, which it was not made from"),
    (A, STORE, "the run began with 1 chunk file; now there is an episode store that was not imported from exactly "
        "these, or in half precision"),
])  # fmt: skip
def test_describe_other_data_says_what_differs(recorded: dict[str, str], now: dict[str, str], words: str) -> None:
    """The message about other data used to print checksums."""
    assert describe_other_data(recorded, now) == words


def test_run_told_to_stop_in_an_evaluation_leaves_after_the_step(
    online: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """A queue sends SIGKILL half a minute after SIGTERM, and an evaluation of many tasks takes longer."""
    steps = []

    def told_to_stop(agent: TDMPC2, cfg: Config, *, each_step: Callable[[], None], **_: Any) -> Evaluation:
        for number in range(1000):
            steps.append(number)
            if number == 3:
                signal.raise_signal(signal.SIGTERM)
            each_step()
        return evaluate(agent, cfg)

    with pytest.raises(SystemExit) as ended:
        learn_online(online, play=told_to_stop)
    assert ended.value.code == STOPPED
    assert steps == [0, 1, 2, 3]
    assert "Stopped by SIGTERM at step 12, everything is saved" in capsys.readouterr().out
    assert torch.load(online.run_dir / "state.pt", weights_only=True)["step"] == 12
    learn_online(online)
    assert [row["step"] for row in rows(online.run_dir / "eval.csv")] == [12, 21, 30]
