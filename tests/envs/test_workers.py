"""Environments in worker processes act as those in this process; none is lost, hangs or is left behind."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, parse_cfg
from tdmpc2.envs import workers
from tdmpc2.envs.workers import WorkerLost, Workers, WorkerVecEnv
from tdmpc2.play.collector import collect
from tdmpc2.play.explorer import Explorer
from tdmpc2.play.rollout import Episode, Job, play
from tdmpc2.training.online import train_online
from tests.helpers.faulty_envs import PREFIX
from tests.helpers.online import assert_same, config
from tests.helpers.toy_envs import FALLS, STANDS

JOBS = [Job(0, 3), Job(1, 4), Job(1, 5)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Config:
    (path := tmp_path_factory.mktemp("set") / "mixed.yaml").write_text(f"tasks: [pendulum-spin, '{STANDS}']")
    return parse_cfg({"task": str(path), "model_size": 1})


@pytest.fixture
def one() -> Iterator[WorkerVecEnv]:
    """Make one environment in a worker, at the start of an episode."""
    cfg = parse_cfg({"task": STANDS})
    with Workers(1) as all_of_them:
        env = WorkerVecEnv(all_of_them, 1).build(cfg.task_specs, [3], cfg.obs_dim, cfg.action_dim)
        env.reset(seed=[3])
        yield env


def process_of(env: WorkerVecEnv) -> int:
    ((worker, _),) = env._parts
    return worker._process.pid


def played(cfg: Config, **keys: Any) -> list[Episode]:
    rng = np.random.default_rng(0)
    actor = lambda obs, *_: rng.uniform(-1, 1, (len(obs), cfg.action_dim)).astype(np.float32)  # noqa: E731
    return play(cfg, actor, JOBS, max_steps=20, **keys)


@pytest.mark.parametrize("render", [(), (2,)])
def test_episodes_of_several_families_in_workers_equal_those_here(mixed: Config, render: tuple[int, ...]) -> None:
    """Two tasks with episodes of different lengths run in two processes; frames are kept of one episode."""
    here, there = played(mixed, render=render), played(mixed.replace(env_workers=2), render=render)
    for one, two in zip(here, there, strict=True):
        assert (one.episode_return, one.success, one.terminated) == (two.episode_return, two.success, two.terminated)
        np.testing.assert_array_equal(one.obs, two.obs)
        np.testing.assert_array_equal(one.frames, two.frames)
    assert len(there[2].frames) == (7 if render else 0)


def test_collected_data_are_the_same_with_workers(tmp_path: Path) -> None:
    for number in (0, 2):
        collect(parse_cfg({"task": FALLS, "episodes_per_task": 5, "env_workers": number}), None, tmp_path / str(number))
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).glob("chunk*.pt")} for name in ("0", "2")]
    assert files[0] == files[1] != {}


def test_run_that_learns_online_is_the_same_with_workers(tmp_path: Path) -> None:
    for number in (0, 2):
        train_online(config(tmp_path / str(number), num_envs=3, env_workers=number, steps=60), None)
    assert_same(tmp_path / "0" / "run", tmp_path / "2" / "run")


def test_fault_in_a_worker_is_named_as_one_here(tmp_path: Path) -> None:
    texts = []
    for number in (0, 1):
        cfg = config(tmp_path / str(number), f"{PREFIX}Raises-v0", env_workers=number, eval_freq=0)
        with pytest.raises(ValueError, match="raised KeyError") as error:
            train_online(cfg, None)
        texts.append(str(error.value))
    assert texts[0] == texts[1]


def test_worker_that_is_killed_is_named(one: WorkerVecEnv) -> None:
    os.kill(process_of(one), signal.SIGKILL)
    with pytest.raises(WorkerLost, match=r"was killed by signal 9 \(step\)"):
        one.step(np.zeros((1, 2), np.float32))


def test_worker_that_hangs_is_ended_after_the_time_limit(one: WorkerVecEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SECONDS", 0.2)
    os.kill(pid := process_of(one), signal.SIGSTOP)
    with pytest.raises(WorkerLost, match=r"did not answer for 0.2 s \(step\)"):
        one.step(np.zeros((1, 2), np.float32))
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)


def test_ended_run_leaves_no_worker(one: WorkerVecEnv) -> None:
    process = psutil.Process(process_of(one))
    one._workers.close()
    assert not process.is_running()


@pytest.mark.parametrize("started", ["make()", "thread = Thread(target=make); thread.start(); thread.join()"])
def test_worker_ends_with_a_caller_that_is_killed(started: str) -> None:
    """A worker outlives the thread that started it, and ends with its caller even while it is busy."""
    script = f"""
import time
from threading import Thread
from tdmpc2.envs.workers import Worker
def make():
    global worker
    worker = Worker()
    worker.ask("prepare", [])
{started}
time.sleep(0.05)  # the system ends a thread a moment after Python does
worker.ask("prepare", ["time"])
print(worker._process.pid, flush=True)
worker.begin("prepare", ["tests.helpers.waiting"])
input()
"""
    caller = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert caller.stdout is not None
    worker = psutil.Process(int(caller.stdout.readline()))
    caller.kill()
    caller.wait()
    assert psutil.wait_procs([worker], timeout=30)[1] == []


def test_environments_step_while_the_update_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With workers a turn asks for the step, makes the updates, and then waits; without them it waits first."""
    events: list[str] = []

    def noted(kind: type, name: str) -> None:
        inner = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *args, **keys: events.append(name) or inner(*args, **keys))

    for kind, name in (Explorer, "begin_step"), (TDMPC2, "update"), (Explorer, "step"):
        noted(kind, name)
    for number, order in (0, ["step", "update"]), (1, ["begin_step", "update", "step"]):
        events.clear()
        train_online(config(tmp_path / str(number), env_workers=number, eval_freq=0), None)
        assert events[-len(order) :] == order


def test_updates_made_beside_a_step_that_fails_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train_online(config(tmp_path / "straight", env_workers=1, eval_freq=0), None).parent
    cfg, step = config(tmp_path, env_workers=1, eval_freq=0), Explorer.step
    calls = itertools.count(1)

    def failing(self: Explorer, actions: Any) -> Any:
        if next(calls) == 40:
            os.kill(self._envs._workers._all[0]._process.pid, signal.SIGKILL)
        return step(self, actions)

    monkeypatch.setattr(Explorer, "step", failing)
    with pytest.raises(ValueError, match="was killed by signal 9"):
        train_online(cfg, None)
    monkeypatch.undo()
    assert learner_of(cfg.run_dir)["owed"] < 0
    train_online(cfg, None)
    assert learner_of(cfg.run_dir)["done"] == learner_of(straight)["done"]
    assert learner_of(cfg.run_dir)["owed"] == 0


def test_run_told_to_stop_while_workers_step_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"env_workers": 1, "num_envs": 2, "utd": 2.0, "steps": 60}
    straight = train_online(config(tmp_path / "straight", **keys), None).parent
    cfg, update, made = config(tmp_path, **keys), TDMPC2.update, itertools.count(1)

    def stopping(self: TDMPC2, batch: Any) -> Any:
        if next(made) == learner_of(straight)["done"] - 9:  # among the updates of one step
            signal.raise_signal(signal.SIGTERM)
        return update(self, batch)

    monkeypatch.setattr(TDMPC2, "update", stopping)
    with pytest.raises(SystemExit):
        train_online(cfg, None)
    monkeypatch.undo()
    assert learner_of(cfg.run_dir)["owed"] > 0
    train_online(cfg, None)
    assert_same(straight, cfg.run_dir)


def test_run_told_to_stop_in_a_turn_whose_step_fails_takes_the_turn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"env_workers": 1, "utd": 2.0, "eval_freq": 0, "log_freq": 1}
    cfg, update, step = config(tmp_path, **keys), TDMPC2.update, Explorer.step
    made, stopped = itertools.count(1), []

    def stopping(self: TDMPC2, batch: Any) -> Any:
        if next(made) == 60:
            signal.raise_signal(signal.SIGTERM)
            stopped.append(True)
        return update(self, batch)

    def failing(self: Explorer, actions: Any) -> Any:
        if stopped:
            process = self._envs._workers._all[0]._process
            process.kill()
            process.wait()
            self._envs._begun[0]._connection.close()  # what it may have answered before is lost
        return step(self, actions)

    monkeypatch.setattr(TDMPC2, "update", stopping)
    monkeypatch.setattr(Explorer, "step", failing)
    with pytest.raises(ValueError, match="the same command goes on"):
        train_online(cfg, None)
    monkeypatch.undo()
    assert learner_of(cfg.run_dir)["interrupted"] is False
    train_online(cfg, None)
    assert learner_of(cfg.run_dir)["owed"] == 0
    steps = [row.split(",")[0] for row in (cfg.run_dir / "train.csv").read_text().splitlines()[1:]]
    assert len(steps) == len(set(steps))


def learner_of(directory: Path) -> dict[str, Any]:
    return torch.load(directory / "state.pt", weights_only=True)["parts"]["learner"]
