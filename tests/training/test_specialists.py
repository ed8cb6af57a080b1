"""Runs that learn together end as each would alone, and survive kills and faults together."""

from __future__ import annotations

import csv
import math
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.config import Config
from tdmpc2.envs.stepping import EachAlone
from tdmpc2.training import run_dir
from tdmpc2.training.guards import STOPPED
from tdmpc2.training.online import train_online
from tdmpc2.training.saved_replay import replay_to_store
from tdmpc2.training.specialists import Together, train_specialists
from tdmpc2.training.stacked_agents import StackedAgents
from tests.helpers.online import assert_same, config, interrupt
from tests.helpers.toy_envs import POINT, STANDS

TASKS = (STANDS, POINT)  # with different sizes and lengths


def together(directory: Path, **keys: Any) -> list[Config]:
    """Configure two runs of few updates that are saved every ten steps."""
    keys = {"save_freq": 10, "steps": 33, "utd": 0.25, **keys}
    return [
        config(directory, task, work_dir=str(directory / str(number)), seed=number, **keys)
        for number, task in enumerate(TASKS, 1)
    ]


def table(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{name: float(x) for name, x in row.items() if name != "task"} for row in csv.DictReader(file)]


class Killed(BaseException):
    """An exception that ends a process without cleaning up its files."""


@pytest.mark.parametrize("mpc", [False, True])
def test_runs_together_equal_runs_alone(mpc: bool, tmp_path: Path) -> None:
    """Seeds, episodes, batches and weights (within rounding) are the same, with plans and with the policy."""
    cfgs = together(tmp_path / "together", mpc=mpc)
    models = train_specialists(cfgs)
    for cfg, model, own in zip(cfgs, models, together(tmp_path / "alone", mpc=mpc), strict=True):
        alone = torch.load(train_online(own, None), weights_only=True)
        found = torch.load(model, weights_only=True)
        assert found["step"] == alone["step"] == 33
        for name, weight in alone["model"].items():
            torch.testing.assert_close(found["model"][name], weight, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: n + m)
        for name in ("train.csv", "episodes.csv"):
            for one, other in zip(table(cfg.run_dir / name), table(own.run_dir / name), strict=True):
                assert one == {key: pytest.approx(value, rel=1e-3, abs=1e-4) for key, value in other.items()}, name
        states = [torch.load(run / "state.pt", weights_only=True)["training"] for run in (cfg.run_dir, own.run_dir)]
        assert torch.equal(states[0]["generator"], states[1]["generator"])


def test_every_run_leaves_a_store_of_its_episodes(tmp_path: Path) -> None:
    """The directory of each run is that of any run that learned online."""
    for cfg in (cfgs := together(tmp_path, steps=22)):
        assert not cfg.run_dir.exists()
    train_specialists(cfgs)
    for cfg, length in zip(cfgs, (7, 20), strict=True):
        store = replay_to_store(cfg.run_dir, tmp_path / f"store-{length}", quiet=True)
        assert len(store.index) == 22 // length
        assert not (cfg.run_dir / "state.before.pt").exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Config]:
    cfgs = together(tmp_path_factory.mktemp("undisturbed"))
    train_specialists(cfgs)
    return cfgs


@pytest.mark.parametrize("save", [2, 4, 5])
def test_kill_in_a_save_is_undone_for_all(
    save: int, undisturbed: list[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before, between and after the saves of two runs, they continue bit for bit."""
    original, count = run_dir.save, 0

    def killed(*args: Any, **keys: Any) -> None:
        nonlocal count
        count += 1
        if count == save:
            raise Killed
        original(*args, **keys)

    cfgs = together(tmp_path / "killed")
    monkeypatch.setattr(run_dir, "save", killed)
    with pytest.raises(Killed):
        train_specialists(cfgs)
    monkeypatch.undo()
    train_specialists(cfgs)
    for one, other in zip(cfgs, undisturbed, strict=True):
        assert_same(one.run_dir, other.run_dir)


def test_run_that_went_on_alone_after_a_kill_keeps_what_it_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill while all were saved, one run is trained to its end alone; the others do not undo that."""
    cfgs = together(tmp_path, steps=22)
    saved = iter([True])

    def killed(*args: Any, **keys: Any) -> None:
        if not next(saved, False):
            raise Killed
        original(*args, **keys)

    original = run_dir.save
    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "save", killed)
        with pytest.raises(Killed):
            train_specialists(cfgs)
    train_online(cfgs[0], None)
    with pytest.raises(ValueError, match=r"2 is at step 0 and .*1 at 22: runs of a stack go on together"):
        train_specialists(cfgs)
    assert torch.load(cfgs[0].run_dir / "state.pt", weights_only=True)["step"] == 22


def test_signal_saves_all_and_the_same_call_goes_on(
    undisturbed: list[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two signals arrives in the burst of updates after the seed steps."""
    cfgs = together(tmp_path / "stopped")
    for step in (21, 28):
        with monkeypatch.context() as patch:
            once = iter([signal.SIGTERM])  # a second signal would end the process
            interrupt(patch, step, lambda once=once: [signal.raise_signal(number) for number in once])
            with pytest.raises(SystemExit) as end:
                train_specialists(cfgs)
            assert end.value.code == STOPPED
        steps = {torch.load(cfg.run_dir / "state.pt", weights_only=True)["step"] for cfg in cfgs}
        assert steps == {step}
    train_specialists(cfgs)
    for one, other in zip(cfgs, undisturbed, strict=True):
        assert_same(one.run_dir, other.run_dir)


def test_runs_at_different_steps_are_refused(tmp_path: Path) -> None:
    """One run went on alone; the message names both runs."""
    cfgs = together(tmp_path, steps=22)
    train_online(cfgs[0], None)
    with pytest.raises(ValueError, match=r"2 is at step 0 and .*1 at 22: runs of a stack go on together"):
        train_specialists(cfgs)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dry_run": True}, "dry_run=true estimates one run"),
        ({"steps": 50}, "has steps=50"),
        ({"seed_steps": 21}, "seed_steps=21"),
        ({"lr": 1e-3}, "lr"),
    ],
)
def test_runs_that_do_not_fit_are_refused_before_anything_is_done(
    keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    one, other = together(tmp_path)
    with pytest.raises(ValueError, match=message):
        train_specialists([one, other.replace(**keys)])
    assert not list(tmp_path.iterdir())


def test_runs_with_worker_processes_are_the_same(undisturbed: list[Config], tmp_path: Path) -> None:
    """With workers, the environments of all runs step at the same time, each in its own process."""
    cfgs = together(tmp_path, env_workers=1)
    train_specialists(cfgs)
    for one, other in zip(cfgs, undisturbed, strict=True):
        assert_same(one.run_dir, other.run_dir)


def test_environment_that_fails_saves_all_runs_before_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other run's environment has already made that step, which is discarded; the same call continues."""
    original, seen = EachAlone.step, Counter[int]()

    def step(self: EachAlone, actions: Any) -> Any:
        seen[id(self)] += 1
        fails = len(seen) == 2 and seen[id(self)] == 26 and id(self) != next(iter(seen))
        return dict.fromkeys(actions, "the robot fell") if fails else original(self, actions)

    cfgs = together(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(EachAlone, "step", step)
        with pytest.raises(ValueError, match=r"the robot fell \(step 26; what was learned before is saved"):
            train_specialists(cfgs)
    states = [torch.load(cfg.run_dir / "state.pt", weights_only=True) for cfg in cfgs]
    assert [state["step"] for state in states] == [25, 25]
    running = [state["parts"]["explorer"]["running"][0] for state in states]
    assert running[1] is None
    assert len(running[0]["action"]) == 25 % 7
    train_specialists(cfgs)
    assert {torch.load(cfg.run_dir / "state.pt", weights_only=True)["step"] for cfg in cfgs} == {33}


@pytest.mark.parametrize("stacked", [False, True], ids=["each alone", "stacked"])
def test_run_of_a_stack_that_diverges_ends_all_before_they_act_again(
    stacked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stacked plan may be finite where the weights are not, and the next training line is far away."""
    begin, act, update = Together.__init__, Together._act, StackedAgents.update
    updates, turns = 0, 0

    def beginning(self: Together, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self._plans_together = stacked  # as on a GPU

    def acting(self: Together, step: int) -> None:
        nonlocal turns
        turns += updates > 0
        act(self, step)

    def diverging(self: StackedAgents, batches: Any) -> list[dict[str, torch.Tensor]]:
        nonlocal updates
        updates += 1
        one, other = update(self, batches)
        return [dict(one), {name: value * math.nan for name, value in other.items()}]

    monkeypatch.setattr(Together, "__init__", beginning)
    monkeypatch.setattr(Together, "_act", acting)
    monkeypatch.setattr(StackedAgents, "update", diverging)
    with pytest.raises(ValueError, match=r"Training diverged: .* not finite at step \d+\."):
        train_specialists(together(tmp_path, mpc=True, save_freq=1000, log_freq=1000, steps=200))
    assert turns == 1
