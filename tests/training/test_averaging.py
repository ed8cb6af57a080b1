"""Averaged weights beside a run: their formula, no effect on the run, and that a killed run keeps them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import Config, model_parts, training_parts
from tdmpc2.play.evaluation import Evaluation
from tdmpc2.training import averaging, loop, preflight
from tdmpc2.training.averaging import AveragedWeights
from tdmpc2.training.offline import train
from tdmpc2.training.online import train_online
from tests.helpers.agents import random_batch
from tests.helpers.online import config as online
from tests.helpers.online import interrupt
from tests.helpers.runs import equal, weights
from tests.helpers.toy_envs import STANDS


def test_average_follows_its_formula(tiny_cfg: Config) -> None:
    """The average of one bias is computed number by number."""
    agent = TDMPC2(tiny_cfg.replace(ema_decay=0.3))
    averaged = AveragedWeights(agent, agent.cfg)
    name = "_pi.2.bias"
    expected = agent.model.state_dict()[name].double().clone()
    for step in range(1, 6):
        agent.update(random_batch(tiny_cfg, step))
        averaged.update()
        decay = min(0.3, step / (step + 9))
        expected = decay * expected + (1 - decay) * agent.model.state_dict()[name].double()
    found = averaged.state()["weights"]
    assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-7)
    assert found.keys() == agent.model.state_dict().keys()
    assert not torch.equal(found[name], agent.model.state_dict()[name])


def test_run_with_average_learns_the_same_weights(cfg: Config, tmp_path: Path) -> None:
    plain = train(cfg, None)
    path = train(cfg.replace(ema_decay=0.9, work_dir=str(tmp_path / "averaged")), None)
    assert equal(plain, path)
    assert not (plain.parent / "ema.pt").exists()
    assert load_file(path.parent / "ema.pt").step == 20
    assert not equal(path, path.parent / "ema.pt")
    agent = TDMPC2(cfg)
    agent.load(path.parent / "ema.pt")  # an ordinary checkpoint


def test_killed_run_keeps_its_average_bit_for_bit(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = cfg.replace(ema_decay=0.9, save_freq=3)
    straight = train(cfg.replace(work_dir=str(tmp_path / "straight")), None)
    update, updates = TDMPC2.update, []

    def killed(self: TDMPC2, *args: Any) -> Any:
        if len(updates) == 10:
            raise KeyboardInterrupt
        updates.append(1)
        return update(self, *args)

    monkeypatch.setattr(TDMPC2, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, None)
    monkeypatch.undo()
    path = train(cfg, None)
    assert equal(path.parent / "ema.pt", straight.parent / "ema.pt")
    (path.parent / "ema.pt").unlink()  # as after a kill between the two files of the last save
    train(cfg, None)
    assert equal(path.parent / "ema.pt", straight.parent / "ema.pt")


def test_average_of_a_step_whose_updates_were_interrupted_is_that_of_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run stopped among the updates of its last step saves the averaged weights of that step a second time."""
    stopped, straight = (
        online(tmp_path / name, STANDS, steps=21, ema_decay=0.9, work_dir=str(tmp_path / name))
        for name in ("stopped", "straight")
    )
    with monkeypatch.context() as patch:
        once = iter([signal.SIGTERM])
        interrupt(patch, 21, lambda: [signal.raise_signal(number) for number in once])
        with pytest.raises(SystemExit):
            train_online(stopped, None)
    before = weights(stopped.run_dir / "ema.pt")
    files = [train_online(run, None).parent / "ema.pt" for run in (stopped, straight)]
    assert equal(*files)
    assert not all(torch.equal(tensor, before[name]) for name, tensor in weights(files[0]).items())


@pytest.mark.parametrize("played", ["model", "ema"])
def test_evaluations_play_the_weights_that_are_named(cfg: Config, played: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    original = loop.score

    def score(evaluate: Any, agent: TDMPC2, *args: Any) -> Evaluation | None:
        seen.append({name: tensor.clone() for name, tensor in agent.model.state_dict().items()})
        return original(evaluate, agent, *args)

    monkeypatch.setattr(loop, "score", score)
    path = train(
        cfg.replace(ema_decay=0.9, eval_weights=played, steps=4, eval_freq=4, eval_episodes=1, mpc=False), None
    )
    file = {"model": "model.pt", "ema": averaging.NAME}[played]
    assert len(seen) == 1
    assert all(torch.equal(tensor, seen[0][name]) for name, tensor in weights(path.parent / file).items())
    assert equal(path.parent / "best.pt", path.parent / file)


def test_average_counts_where_memory_is_estimated(tiny_cfg: Config) -> None:
    """The average is as large as the model, and saving it keeps the weights it stands in for as well."""
    plain = tiny_cfg.replace(model_size=19)
    agent, averaged = TDMPC2(plain), plain.replace(ema_decay=0.9)
    model = sum(part.bytes for part in model_parts(plain))
    assert sum(part.bytes for part in training_parts(averaged)) == sum(p.bytes for p in training_parts(plain)) + model
    estimates = [float(preflight._room(agent, cfg, 0, 0)[0].split()[2]) for cfg in (plain, averaged)]
    assert estimates[1] - estimates[0] == pytest.approx(2 * model / 1e9, abs=0.03)


def test_average_of_another_model_is_refused(tiny_cfg: Config) -> None:
    agent = TDMPC2(tiny_cfg.replace(ema_decay=0.5))
    averaged = AveragedWeights(agent, agent.cfg)
    state = averaged.state()
    first = next(iter(state["weights"]))
    for wrong in (torch.zeros(1), torch.full_like(state["weights"][first], torch.nan), 3):
        with pytest.raises(ValueError, match=rf"state\.pt: ema: '{first}' is not .* finite numbers"):
            averaged.load_state({"updates": 1, "weights": {**state["weights"], first: wrong}})


def test_evaluation_of_an_average_that_is_not_kept_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eval_weights=ema plays averaged weights, and ema_decay=0 keeps none"):
        Config(eval_weights="ema")
