"""Learning online in environments that fail, terminate or do not repeat, and runs that cannot work at all."""

from __future__ import annotations

import itertools
import os
import re
import signal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from tdmpc2.envs.workers import Worker, WorkerLost
from tdmpc2.training.online import train_online
from tests.helpers.online import assert_same, config, interrupt
from tests.helpers.toy_envs import FALLS


class Faulty(gymnasium.Env[Any, Any]):
    """An environment that fails at one step of the listed episodes, in the given way."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)
    bad: set[int] = set()  # noqa: RUF012
    way = "raise"
    episodes = 0
    fails_at = 4

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.number = 0, Faulty.episodes
        Faulty.episodes += 1
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        if self.t == self.fails_at and self.number in self.bad:
            if self.way == "raise":
                raise RuntimeError("the robot fell\noff the table")
            if self.way == "shape":
                return obs[:1].repeat(5), 0.0, False, False, {}
            obs[0] = np.nan
            return obs, 0.0, self.way == "terminate", False, {}
        return obs, 0.0, False, False, {}


if "Faulty-v0" not in gymnasium.registry:
    gymnasium.register("Faulty-v0", Faulty, max_episode_steps=7)


@pytest.mark.parametrize(("way", "said"), [
    ("raise", "RuntimeError: the robot fell off the table"),
    ("nan", "entry 0 of the observation is nan"),
    ("shape", "an observation of 5 numbers, but its observation_space declares 2"),
])  # fmt: skip
def test_online_environment_that_fails_is_named_and_the_run_goes_on(
    tmp_path: Path, way: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps before the fault are saved, and the same command begins a new episode instead of the broken one."""
    cfg = config(tmp_path, "Faulty-v0", num_envs=2)
    for name, value in {"bad": {5}, "way": way, "episodes": 0}.items():
        monkeypatch.setattr(Faulty, name, value)
    with pytest.raises(ValueError, match=said) as error:
        train_online(cfg, None)
    assert re.match(r"environment 2 of 2: Faulty-v0 \(seed \d+, step 4\): ", str(error.value))
    assert str(error.value).endswith(
        " (step 36 of the run; what it learned before is saved, and the same command goes on with a new episode there)"
    )
    assert "\n" not in str(error.value)
    monkeypatch.setattr(Faulty, "bad", set())
    train_online(cfg, None)
    assert torch.load(cfg.run_dir / "state.pt", weights_only=True)["step"] == 46


def test_online_environment_that_fails_in_the_first_step_advises_another_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is saved yet, so the same command would meet the same fault."""
    for name, value in {"bad": {0}, "way": "raise", "episodes": 0}.items():
        monkeypatch.setattr(Faulty, name, value)
    monkeypatch.setattr(Faulty, "fails_at", 1)
    with pytest.raises(
        ValueError, match=r"step 1\): .*\(step 1 of the run\); if that depends on the episode, try another seed$"
    ) as error:
        train_online(config(tmp_path, "Faulty-v0"), None)
    assert "same command" not in str(error.value)


def test_online_environment_that_fails_to_reset_begins_another_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed that the environment cannot be reset with used to be tried again forever."""
    monkeypatch.setattr(Faulty, "bad", set())
    reset, calls, cold = Faulty.reset, itertools.count(1), set[int | None]()

    def failing(self: Faulty, *, seed: int | None = None, options: Any = None) -> Any:
        if next(calls) == 3:
            cold.add(seed)
        if seed in cold:
            raise RuntimeError("the motors are cold")
        return reset(self, seed=seed)

    monkeypatch.setattr(Faulty, "reset", failing)
    cfg = config(tmp_path, "Faulty-v0")
    with pytest.raises(ValueError, match="the motors are cold"):
        train_online(cfg, None)
    train_online(cfg, None)
    assert torch.load(cfg.run_dir / "state.pt", weights_only=True)["step"] == 45


def test_online_environment_that_fails_where_it_is_played_again_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in the episode that a continued run plays again used to end every start."""
    cfg = config(tmp_path, "Faulty-v0")
    monkeypatch.setattr(Faulty, "bad", set())
    interrupt(monkeypatch, 31, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        train_online(cfg, None)
    monkeypatch.undo()
    for name, value in {"bad": {0}, "way": "raise", "episodes": 0}.items():
        monkeypatch.setattr(Faulty, name, value)
    monkeypatch.setattr(Faulty, "fails_at", 1)
    train_online(cfg, None)
    said = "Faulty-v0 (environment 1) does not repeat its episodes, so its running one is dropped"
    assert said in capsys.readouterr().out


def test_online_termination_without_episodic_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Falls-v0 .*step 3\): the episode terminated.*: set episodic=true"):
        train_online(config(tmp_path, FALLS), None)


def test_online_termination_without_episodic_does_not_advise_to_go_on(tmp_path: Path) -> None:
    """The same command would only meet the next one, whatever the seed."""
    for saves in (True, False):
        with pytest.raises(ValueError, match=r"the episode terminated.*: set episodic=true") as error:
            train_online(config(tmp_path / str(saves), FALLS, save_agent=saves), None)
        assert not re.search("another seed|same command", str(error.value))


def test_online_run_whose_worker_is_killed_names_its_episodes_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(tmp_path, num_envs=2, env_workers=1, eval_freq=0)
    processes: list[int] = []
    begin = Worker.begin

    def noting(self: Worker, name: str, *args: Any, **kwargs: Any) -> None:
        processes.append(self._process.pid)
        begin(self, name, *args, **kwargs)

    monkeypatch.setattr(Worker, "begin", noting)
    interrupt(monkeypatch, 36, lambda: os.kill(processes[-1], signal.SIGKILL))
    task = re.escape(cfg.task)
    said = rf"steps {task} \(seed \d+\), {task} \(seed \d+\) was killed by signal 9 .*, and the same command goes on"
    with pytest.raises(ValueError, match=said):
        train_online(cfg, None)
    monkeypatch.undo()
    train_online(cfg, None)
    assert torch.load(cfg.run_dir / "state.pt", weights_only=True)["step"] == 46


def test_worker_killed_while_episodes_are_played_again_loses_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start ends before anything is saved, and the next one continues as if there had been none between."""
    cfg = config(tmp_path / "cut", num_envs=2, env_workers=1, eval_freq=0)
    whole = config(tmp_path / "whole", num_envs=2, env_workers=1, eval_freq=0)
    train_online(whole, None)
    interrupt(monkeypatch, 36, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        train_online(cfg, None)
    monkeypatch.undo()
    begin, resets = Worker.begin, 0

    def killing(self: Worker, name: str, *args: Any, **kwargs: Any) -> None:
        nonlocal resets
        resets += name == "reset_one"
        begin(self, name, *args, **kwargs)
        if (
            resets == 2 and name == "step_each"
        ):  # the second environment's episode, while the first one's is there again
            os.kill(self._process.pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "begin", killing)
        with pytest.raises(
            ValueError, match=r"was killed by signal 9 .* Nothing of the run is changed: the same command continues it"
        ):
            train_online(cfg, None)
    train_online(cfg, None)
    assert_same(cfg.run_dir, whole.run_dir)


def test_online_evaluation_whose_worker_is_killed_has_no_score_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: Any, **__: Any) -> None:
        raise WorkerLost("the process that steps the environments was killed by signal 9 (step)")

    monkeypatch.setattr("tdmpc2.training.online.evaluate", lost)
    train_online(cfg := config(tmp_path, eval_freq=15), None)
    assert "has no score: the process that steps" in capsys.readouterr().out
    assert torch.load(cfg.run_dir / "state.pt", weights_only=True)["step"] == 45
    monkeypatch.undo()
    train_online(cfg, None)  # the evaluation of the last step is made after all
    assert len((cfg.run_dir / "eval.csv").read_text().splitlines()) == 2


def test_online_environment_that_does_not_repeat_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running episode cannot be restored, so it is dropped with a message."""
    cfg = config(tmp_path, "Faulty-v0")
    monkeypatch.setattr(Faulty, "bad", set())
    interrupt(monkeypatch, 31, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        train_online(cfg, None)
    monkeypatch.undo()
    reset = Faulty.reset
    monkeypatch.setattr(Faulty, "reset", lambda self, *, seed=None, options=None: reset(self, seed=12345))
    train_online(cfg, None)
    said = "Faulty-v0 (environment 1) does not repeat its episodes, so its running one is dropped"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("keys", "message"), [
    ({"buffer_size": 7}, "buffer_size=7 does not hold an episode: set it to 8 or more"),
    ({"task": "mt30", "mode": "online", "tasks": ["cup-catch", "cup-spin", "pendulum-spin"], "buffer_size": 1502},
     "buffer_size=1,502 does not hold an episode of each of 3 tasks: set it to 1,503 or more"),
    ({"task": "lift-cube"}, "ManiSkill 3 has no task 'lift-cube' any more"),
    ({"data_device": "cuda"}, "data_device=cuda, but training is on cpu"),
    ({"data_device": "cpu", "buffer_size": 10**15, "steps": 10**14},
     "data_device=cpu: .* GB are needed for the replay buffer.* Use data_device=disk, or a lower buffer_size"),
])  # fmt: skip
def test_online_run_that_cannot_work_is_refused_before_the_first_step(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train_online(config(tmp_path, **keys), None)
    assert not (tmp_path / "run").exists()
