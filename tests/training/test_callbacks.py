"""Callbacks: what a run tells them, and how they end it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.play.evaluation import Evaluation
from tdmpc2.training.callbacks import Callback
from tdmpc2.training.offline import train
from tdmpc2.training.online import train_online
from tests.helpers.online import assert_same, config
from tests.helpers.runs import TINY, equal, rows
from tests.helpers.toy_envs import STANDS_FOR


class Listener(Callback):
    """A callback that notes what it is told and asks for the end at the events of ``stop``."""

    def __init__(self, *stop: tuple[str, int]) -> None:
        self.stop, self.told = stop, []  # type: ignore[var-annotated]

    def on_update(self, step: int, metrics: Mapping[str, Tensor]) -> bool | None:
        return self._note("update", step, metrics["total_loss"].item())

    def on_episode(self, step: int, episode: Mapping[str, str | float]) -> bool | None:
        return self._note("episode", step, episode["length"])

    def on_evaluation(self, step: int, result: Evaluation) -> bool | None:
        return self._note("evaluation", step, result.normalized_score)

    def steps(self, event: str) -> list[int]:
        return [step for name, step, _ in self.told if name == event]

    def _note(self, event: str, step: int, value: Any) -> bool | None:
        self.told.append((event, step, value))
        return True if (event, step) in self.stop else None


def offline(directory: Path, data_dir: Path, **keys: Any) -> Config:
    return Config(data_dir=str(data_dir), work_dir=str(directory), **{**TINY, "steps": 12, **keys})


def test_callback_is_told_every_update_of_offline_training(tmp_path: Path, data_dir: Path) -> None:
    """A callback is told the loss of every update, and the values agree with those of the log."""
    listener = Listener()
    train(offline(tmp_path / "run", data_dir), None, [listener])
    assert listener.steps("update") == list(range(1, 13))
    logged = {int(row["step"]): row["total_loss"] for row in rows(tmp_path / "run" / "train.csv")}
    told = {step: value for _, step, value in listener.told}
    assert {step: told[step] for step in logged} == pytest.approx(logged, rel=1e-6)


def test_callback_that_ends_offline_training_leaves_a_run_that_goes_on_exactly(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run ended by a callback at step 7 is saved there and continues as if it had never stopped."""
    cfg = offline(tmp_path / "stopped", data_dir)
    assert train(cfg, None, [Listener(("update", 7))]) == cfg.run_dir / "model.pt"
    assert "Stopped by Listener at step 7, everything is saved" in capsys.readouterr().out
    rest = Listener()
    train(cfg, None, [rest])
    assert rest.steps("update") == list(range(8, 13))
    straight = train(offline(tmp_path / "straight", data_dir), None)
    assert equal(cfg.run_dir / "model.pt", straight)


KEYS = {"steps": 33, "eval_freq": 15, "eval_episodes": 1}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Listener]:
    """Train a run that learns online to its end, and keep what it told its callback."""
    listener = Listener()
    model = train_online(config(tmp_path_factory.mktemp("straight"), **KEYS), None, [listener])
    return model.parent, listener


def test_callback_is_told_episodes_and_evaluations_of_online_learning(straight: tuple[Path, Listener]) -> None:
    _, listener = straight
    assert listener.steps("evaluation") == [0, 15, 30]
    assert listener.steps("episode") == [STANDS_FOR, 2 * STANDS_FOR, 3 * STANDS_FOR, 4 * STANDS_FOR]
    assert [value for name, _, value in listener.told if name == "episode"] == [STANDS_FOR] * 4


@pytest.mark.parametrize("event", ["episode", "update", "evaluation"])
def test_callback_that_ends_online_training_leaves_a_run_that_goes_on_exactly(
    tmp_path: Path, straight: tuple[Path, Listener], event: str
) -> None:
    """The callback ends the run after a random episode, among updates, or after an evaluation."""
    run, listener = straight
    step = listener.steps(event)[1]
    cfg, first = config(tmp_path, **KEYS), Listener((event, step))
    train_online(cfg, None, [first])
    assert max(told[1] for told in first.told) == step
    train_online(cfg, None)
    assert_same(run, cfg.run_dir)


def test_error_of_a_callback_ends_the_run(tmp_path: Path, data_dir: Path) -> None:
    class Faulty(Callback):
        def on_update(self, step: int, metrics: Mapping[str, Tensor]) -> bool | None:
            raise ZeroDivisionError("in the user's code")

    with pytest.raises(ZeroDivisionError, match="in the user's code"):
        train(offline(tmp_path / "run", data_dir), None, [Faulty()])


@pytest.mark.parametrize("callback", [Listener, lambda step: True, object()], ids=["class", "function", "object"])
def test_what_is_no_callback_is_refused(tmp_path: Path, data_dir: Path, callback: Any) -> None:
    with pytest.raises(ValueError, match=r"callbacks: .* has no method on_update to call: give instances"):
        train(offline(tmp_path / "run", data_dir), None, [callback])
    assert not (tmp_path / "run" / "run.json").exists()
