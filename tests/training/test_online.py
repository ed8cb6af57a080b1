"""Learning online: the order of events, and runs that continue exactly."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.ring import ReplayRing
from tdmpc2.envs.stepping import EachAlone
from tdmpc2.play import explorer
from tdmpc2.play.evaluation import Evaluation, TaskResult
from tdmpc2.play.explorer import Explorer
from tdmpc2.player import Player
from tdmpc2.training import online
from tdmpc2.training.guards import STOPPED
from tdmpc2.training.online import train_online
from tdmpc2.training.schedule import Schedule
from tests.helpers.agents import make_teacher
from tests.helpers.online import assert_same, config, interrupt
from tests.helpers.runs import rows, weights
from tests.helpers.toy_envs import FALLS, FALLS_AT, SEES, STANDS, STANDS_FOR

# -- order of events --------------------------------------------------------------------------------------------------


def specified(steps: int, seed_steps: int, eval_freq: int, length: int) -> list[Any]:
    """List the events of the reference's loop, with the departures that docs/algorithm.md names."""
    events: list[Any] = ["evaluate"] if eval_freq else []
    rows_of_episode = 0
    for step in range(steps):
        if rows_of_episode in (0, length + 1):
            events += [("store", rows_of_episode)] if rows_of_episode else []
            events.append("reset")
            rows_of_episode = 1
        events.append(("plan", rows_of_episode == 1) if step > seed_steps else "random")
        events.append("step")
        rows_of_episode += 1
        if step >= seed_steps:
            events += ["update"] * (seed_steps if step == seed_steps else 1)
        if step + 1 == steps and rows_of_episode == length + 1:
            events.append(("store", rows_of_episode))
        if eval_freq and (step + 1) % eval_freq == 0:
            events.append("evaluate")
    return events


@pytest.mark.parametrize(("steps", "seed_steps", "eval_freq", "task", "length"), [
    (45, 20, 10, STANDS, STANDS_FOR),  # the burst falls into an episode
    (42, 14, 0, STANDS, STANDS_FOR),  # the burst and the end fall on the end of an episode
    (43, 13, 43, FALLS, FALLS_AT),  # episodes that terminate
    (20, 21, 5, STANDS, STANDS_FOR),  # nothing but random actions
])  # fmt: skip
def test_online_loop_has_the_order_of_events_of_the_reference(
    steps: int, seed_steps: int, eval_freq: int, task: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []

    def record(owner: Any, name: str, event: Callable[..., Any], answer: Callable[..., Any] | None = None) -> None:
        original = getattr(owner, name)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            if (what := event(*args, **kwargs)) is not None:
                events.append(what)
            return answer(*args, **kwargs) if answer else original(*args, **kwargs)

        monkeypatch.setattr(owner, name, recorded)

    record(Explorer, "_reset", lambda *_: "reset")
    record(EachAlone, "step", lambda *_: "step")
    record(Explorer, "act", lambda *_, random, **__: "random" if random else None)
    record(Player, "act", lambda _, obs, t0, **__: ("plan", bool(t0)), lambda _, obs, t0, **__: np.zeros((1, 2), "f4"))
    record(ReplayRing, "add", lambda _, obs, *__: ("store", len(obs)))
    record(TDMPC2, "update", lambda *_: "update", lambda *_: {"total_loss": torch.tensor(0.0)})
    record(online, "evaluate", lambda *_, **__: "evaluate", scored)
    train_online(
        config(
            tmp_path, task, steps=steps, seed_steps=seed_steps, eval_freq=eval_freq, episodic=task == FALLS, horizon=2
        ),
        None,
    )
    assert events == specified(steps, seed_steps, eval_freq, length)


def scored(*_: Any, **__: Any) -> Evaluation:
    return Evaluation((TaskResult(STANDS, (1,), (10.0,), (0.0,), False),))


@pytest.mark.parametrize("utd", [0.075, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("stride", [1, 3, 10])
def test_schedule_updates_add_up_to_the_ratio(utd: float, stride: int) -> None:
    """No update is lost by rounding a fraction of an update per step or by stepping several environments."""
    schedule, steps = Schedule(30, stride, utd), range(stride, 301, stride)
    due = [schedule.updates_due(step) for step in steps]
    assert sum(due) == int(utd * (steps[-1] - 1))
    assert all(count == 0 for step, count in zip(steps, due, strict=True) if step <= 30)
    later = due[31 // stride + 1 :]
    assert max(later) - min(later) <= 1
    assert [schedule.is_random(step) for step in steps] == [step - stride <= 30 for step in steps]


@pytest.mark.parametrize("utd", [0.5, 0.2, 0.3, 1.0])
def test_online_run_logs_every_interval_whatever_the_ratio(tmp_path: Path, utd: float) -> None:
    """With half an update per step, none used to fall on a logged step, so the log stayed empty."""
    cfg = config(tmp_path, utd=utd)
    train_online(cfg, None)
    assert [row["step"] for row in rows(cfg.run_dir / "train.csv")] == [25, 30, 35, 40, 45]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_online_run_plans_for_all_but_the_share_of_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """A plan begins anew after a step of the policy, since the one before is of a step earlier."""
    turns: list[str] = []
    monkeypatch.setattr(explorer, "prior_actions", lambda *_: turns.append("policy") or np.zeros((1, 2), "f4"))
    monkeypatch.setattr(
        Player, "act", lambda _, obs, t0, **__: turns.append("begin" if t0 else "plan") or np.zeros((1, 2), "f4")
    )
    monkeypatch.setattr(TDMPC2, "update", lambda *_: {"total_loss": torch.tensor(0.0)})
    train_online(config(tmp_path, steps=400, seed_steps=20, eval_freq=0, collect_policy=share), None)
    assert len(turns) == 379
    assert turns.count("policy") / len(turns) == pytest.approx(share, abs=0.06)
    pairs = list(itertools.pairwise(turns))
    assert {now for before, now in pairs if before == "policy"} <= {"policy", "begin"}
    begun = sum(now == "begin" and before != "policy" for before, now in pairs)
    assert begun <= 400 / STANDS_FOR  # otherwise only where an episode begins


def test_online_plans_in_bf16_are_for_the_kernels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"collect_precision=bf16 is for the CPU kernels.*compile=false.*leave it out"):
        train_online(config(tmp_path, collect_precision="bf16"), None)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="collect_precision=bf16 is that of plans, and mpc=false makes none"):
        config(tmp_path, collect_precision="bf16", mpc=False)


# -- continuing -------------------------------------------------------------------------------------------------------


VARIANTS: dict[str, dict[str, Any]] = {
    "one": {},
    "episodic": {"task": FALLS, "episodic": True, "horizon": 2, "buffer_size": 20},
    "several": {"num_envs": 2, "utd": 0.7, "collect_num_samples": 8, "buffer_size": 33, "seed_actions": "pink"},
    "bf16": {"collect_precision": "bf16", "compile": "auto"},
    "policy": {"mpc": False},
    "often the policy": {"num_envs": 2, "collect_policy": 0.5},
    "images": {"obs": "rgb", "horizon": 2},
    "images and numbers": {"task": SEES, "obs": "rgb+state", "horizon": 2},
}


@pytest.fixture(scope="module", params=VARIANTS)
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """Train a run that is never stopped, and return it with its keys."""
    keys = {"save_freq": 10, **VARIANTS[request.param]}
    directory = tmp_path_factory.mktemp("undisturbed")
    return keys, train_online(config(directory, **keys), None).parent


@pytest.mark.parametrize("stop_at", [14, 22, 35])
def test_online_run_told_to_stop_continues_bit_for_bit(
    undisturbed: tuple[dict[str, Any], Path], stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops at the end of a random episode, after the burst, and at the end of a planned episode."""
    keys, straight = undisturbed
    cfg = config(tmp_path, **keys)
    interrupt(monkeypatch, stop_at, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        train_online(cfg, None)
    assert ended.value.code == STOPPED
    monkeypatch.undo()
    train_online(cfg, None)
    assert_same(straight, cfg.run_dir)


@pytest.mark.parametrize("keys", [
    {"num_envs": 4, "steps": 44, "utd": 2.0},  # among the updates of an ordinary step
    {"num_envs": 2, "steps": 28, "seed_steps": 27},  # in the burst, when episodes end as well
])  # fmt: skip
def test_online_run_told_to_stop_between_its_last_updates_continues_bit_for_bit(
    tmp_path: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run stopped among its last updates used to lose the rest of them, since it passed for already trained."""
    straight = train_online(config(tmp_path / "straight", **keys), None).parent
    cfg = config(tmp_path, **keys)
    update, made = TDMPC2.update, itertools.count(1)

    def stopping(self: TDMPC2, batch: Any) -> Any:
        if next(made) == total - 2:
            signal.raise_signal(signal.SIGTERM)
        return update(self, batch)

    total = torch.load(straight / "state.pt", weights_only=True)["parts"]["learner"]["done"]
    monkeypatch.setattr(TDMPC2, "update", stopping)
    with pytest.raises(SystemExit):
        train_online(cfg, None)
    monkeypatch.undo()
    assert torch.load(cfg.run_dir / "state.pt", weights_only=True)["parts"]["learner"]["owed"] == 2
    train_online(cfg, None)
    assert_same(straight, cfg.run_dir)


@pytest.mark.parametrize("stop_at", [4, 21, 44])
def test_online_run_killed_continues_from_its_last_save_bit_for_bit(
    undisturbed: tuple[dict[str, Any], Path], stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is killed before the first save, before the burst of updates, and in the last step."""
    keys, straight = undisturbed
    cfg = config(tmp_path, **keys)

    def die() -> None:
        raise KeyboardInterrupt

    interrupt(monkeypatch, stop_at, die)
    with pytest.raises(KeyboardInterrupt):
        train_online(cfg, None)
    monkeypatch.undo()
    train_online(cfg, None)
    assert_same(straight, cfg.run_dir)


@pytest.mark.parametrize(("entry", "value", "message"), [
    ("begun", [1, 2], "another number of environments than 1"),
    ("begun", [-1], "begun is .*, expected"),
    ("running", [{"seed": 1}], "an episode: obs is missing"),
    ("running", ["obs"], "rows of another form than this run's"),
    ("player", {}, "player: generator is missing"),
])  # fmt: skip
def test_explorer_refuses_a_state_that_does_not_fit(tmp_path: Path, entry: str, value: Any, message: str) -> None:
    cfg = config(tmp_path)
    with Explorer(cfg, TDMPC2(cfg)) as explorer:
        explorer.begin()
        state = explorer.state()
        if value == ["obs"]:
            value = [{**state["running"][0], "obs": torch.zeros(2, 4)}]
        with pytest.raises(ValueError, match=message):
            explorer.load_state({**state, entry: value})
        explorer.load_state(state)


def test_online_burst_cut_short_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue gives a run seconds to save, but the burst of updates takes minutes."""
    straight = train_online(config(tmp_path / "straight"), None).parent
    cfg, update = config(tmp_path), TDMPC2.update
    calls = []

    def stopped(self: TDMPC2, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:
            signal.raise_signal(signal.SIGTERM)
        return update(self, batch)

    monkeypatch.setattr(TDMPC2, "update", stopped)
    with pytest.raises(SystemExit):
        train_online(cfg, None)
    assert len(calls) == 7
    train_online(cfg, None)
    assert len(calls) == 44
    assert_same(straight, cfg.run_dir)


def test_online_run_continues_with_more_steps(tmp_path: Path) -> None:
    straight = train_online(config(tmp_path / "straight"), None).parent
    cfg = config(tmp_path, steps=30)
    train_online(cfg, None)
    train_online(cfg.replace(steps=45), None)
    assert_same(straight, cfg.run_dir)


def test_online_evaluations_of_a_killed_run_are_those_of_an_undisturbed_one(tmp_path: Path) -> None:
    """The evaluation before the first step is made again if nothing was saved since."""
    keys = {"eval_freq": 15, "eval_episodes": 1}
    straight = train_online(config(tmp_path / "straight", **keys), None).parent
    cfg = config(tmp_path, **keys)
    for stop_at in (5, 33):
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, stop_at, lambda: signal.raise_signal(signal.SIGTERM))
            with pytest.raises(SystemExit):
                train_online(cfg, None)
    train_online(cfg, None)
    assert list(json.loads((straight / "evaluations.json").read_text())) == ["score", "0", "15", "30", "45"]
    for name in ("evaluations.json", "eval.csv"):
        assert (straight / name).read_bytes() == (cfg.run_dir / name).read_bytes(), name
    assert_same(straight, cfg.run_dir)


# -- what is learned from ---------------------------------------------------------------------------------------------


def test_online_run_logs_losses_speed_and_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = config(tmp_path, num_envs=2)
    train_online(cfg, None)
    assert [row["step"] for row in rows(cfg.run_dir / "train.csv")] == [26, 30, 36, 40, 46]
    assert {"updates_per_s", "acting", "environment", "updating"} <= rows(cfg.run_dir / "speed.csv")[0].keys()
    episodes = (cfg.run_dir / "episodes.csv").read_text().splitlines()
    assert episodes[0] == "step,task,return,length,success,terminated"
    assert [line.split(",")[0] for line in episodes[1:]] == ["14", "14", "28", "28", "42", "42"]
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("step 30/45"))
    for part in ("return ", "updates/s", "it/s", "acting ", "environment ", "updating ", "other ", "ETA 0:"):
        assert part in line
    assert "success" not in line  # the task defines no success


def test_online_run_without_an_update_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run shorter than an episode used to claim that it was trained, with random weights."""
    train_online(config(tmp_path, steps=6, seed_steps=2), None)
    assert (
        "No update was made: the first one needs more than seed_steps=2 steps, and an episode"
        in capsys.readouterr().out
    )


def test_online_terminations_reach_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    update = TDMPC2.update

    def recorded(self: TDMPC2, batch: Any) -> Any:
        batches.append(batch)
        return update(self, batch)

    monkeypatch.setattr(TDMPC2, "update", recorded)
    cfg = config(tmp_path, FALLS, episodic=True, horizon=2)
    train_online(cfg, None)
    ends = torch.cat([batch.terminated[-1, :, 0] for batch in batches])
    steps = torch.cat([batch.obs[-1, :, 1] for batch in batches])
    assert torch.equal(ends, (steps == FALLS_AT).float())
    assert 0 < float(ends.mean()) < 1
    logged = rows(cfg.run_dir / "train.csv")[-1]
    assert {"termination_loss", "termination_rate", "termination_f1"} <= logged.keys()
    assert "_termination.2.weight" in weights(cfg.run_dir / "model.pt")


def test_online_run_with_a_teacher_is_distilled(tmp_path: Path) -> None:
    """Teacher targets work as they do offline, including the one that is fitted to data."""
    teacher = make_teacher(config(tmp_path))
    teacher.save(tmp_path / "teacher.pt")
    cfg = config(tmp_path, distillation_targets=["reward", "next_state_pca 1"])
    train_online(cfg, Config(checkpoint=str(tmp_path / "teacher.pt")))
    last = rows(cfg.run_dir / "train.csv")[-1]
    assert last["distillation_loss"] > 0
    assert last["distillation_next_state_pca_loss"] > 0


@pytest.mark.slow
def test_online_run_of_many_tasks_learns_from_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One model learns from an environment of each task, with the padding and ids of their task set."""
    tasks = ("pendulum-spin", "cartpole-balance")
    keys = {"task": "mt30", "mode": "online", "tasks": tasks, "task_dim": 4, "task_balance": "tasks", "utd": 0.5}
    cfg = config(tmp_path, **keys, seed_steps=1000, steps=1020)
    drawn = []
    update = TDMPC2.update
    monkeypatch.setattr(TDMPC2, "update", lambda self, batch: drawn.append(batch.task) or update(self, batch))
    train_online(cfg, None)
    assert len(drawn) == 509
    counts = torch.cat(drawn).bincount(minlength=30)
    assert counts.nonzero().flatten().tolist() == sorted(cfg.task_names.index(task) for task in tasks)
    assert counts.max() < 1.2 * counts[counts > 0].min()
    played = (cfg.run_dir / "episodes.csv").read_text().splitlines()[1:]
    assert [line.split(",")[:2] for line in played] == [["1000", task] for task in cfg.tasks]


def test_online_run_saved_without_metrics_goes_on(tmp_path: Path) -> None:
    """Older runs did not save their metrics, which are needed for the log only."""
    cfg = config(tmp_path)
    train_online(cfg.replace(steps=30), None)
    path = cfg.run_dir / "state.pt"
    state = torch.load(path, weights_only=False)
    parts = state.get("parts", state)
    del parts["learner"]["metrics"]
    torch.save(state, path)
    train_online(cfg, None)
    assert rows(cfg.run_dir / "train.csv")[-1]["step"] > 30
