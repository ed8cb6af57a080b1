"""Tasks that share a body learn from each other's steps: what is stored, continued, or refused."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.ring import ReplayRing
from tdmpc2.envs import stepping
from tdmpc2.envs.checked import CheckedEnv
from tdmpc2.envs.registry import build_env
from tdmpc2.envs.wrappers import TASK_REWARDS
from tdmpc2.play import explorer
from tdmpc2.play.rollout import Episode, Job
from tdmpc2.tasks import MT30, lookup
from tdmpc2.training.demonstrations import Batches
from tdmpc2.training.guards import STOPPED
from tdmpc2.training.learner import Learner
from tdmpc2.training.online import train_online
from tdmpc2.training.ring import make_ring
from tests.helpers.online import assert_same, config, interrupt

TASKS = ("cup-catch", "walker-run", "walker-stand", "walker-walk")
PAYS = {task: k + 1.0 for k, task in enumerate(TASKS)}
LENGTH = 7


class Stub(gymnasium.Env[Any, Any]):
    """A stand-in for a body whose tasks pay multiples of one number and that observes start, step and action."""

    observation_space = Box(-np.inf, np.inf, (24,), np.float32)
    action_space = Box(-1, 1, (6,), np.float32)

    def __init__(self, task: str) -> None:
        self.task, self.others = task, ()

    def score_also(self, tasks: Sequence[str]) -> None:
        self.others = tuple(tasks)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.start = 0, np.float32(self.np_random.uniform())
        return self._obs(np.zeros(6)), {"success": 0.0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        rewards = {task: float(np.float32(PAYS[task]) * (self.start + action[0])) for task in (self.task, *self.others)}
        return (
            self._obs(action),
            rewards.pop(self.task),
            False,
            self.t == LENGTH,
            {"success": 0.0, TASK_REWARDS: rewards},
        )

    def _obs(self, action: Any) -> Any:
        return np.array([self.start, self.t, *action, *np.zeros(16)], np.float32)


def stub(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stepping, "build_env", lambda name, seed, obs: CheckedEnv(Stub(name), name, seed))


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch)


def shared(directory: Path, **keys: Any) -> Config:
    some: dict[str, Any] = {
        "task": "mt30",
        "mode": "online",
        "tasks": TASKS,
        "task_dim": 4,
        "task_balance": "tasks",
        "share_body": True,
    }
    if keys.get("task", "mt30") == "mt30":
        some["task_specs"] = [replace(spec, episode_length=LENGTH) for spec in map(lookup, MT30)]
    return config(directory, **{"steps": 56, "seed_steps": 28, "save_freq": 28, "utd": 0.5, **some, **keys})


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Any, Any, Any]]:
    """Record the episodes that a run adds to its buffer: task, observations, actions and rewards."""
    episodes: list[tuple[int, Any, Any, Any]] = []
    add = ReplayRing.add

    def recorded(ring: ReplayRing, obs: Any, action: Any, reward: Any, task: int, *rest: Any) -> int:
        episodes.append((task, obs, action, reward))
        return add(ring, obs, action, reward, task, *rest)

    monkeypatch.setattr(ReplayRing, "add", recorded)
    return episodes


def test_share_body_stores_an_episode_for_all_tasks_with_the_rewards_of_each(
    stubs: None, added: list[Any], tmp_path: Path
) -> None:
    """A walker's episode counts for all three walker tasks, and the cup's for the cup only."""
    cfg = shared(tmp_path)
    train_online(cfg, None)
    walkers = [cfg.task_names.index(task) for task in TASKS[1:]]
    tasks = [task for task, *_ in added]
    assert sorted(tasks[:10]) == sorted([cfg.task_names.index("cup-catch"), *3 * walkers])
    assert tasks == 2 * tasks[:10]
    for task, obs, action, reward in added:
        np.testing.assert_array_equal(reward[1:], (PAYS[cfg.task_names[task]] * (obs[1:, 0] + action[1:, 0])))
    rows = (cfg.run_dir / "episodes.csv").read_text().splitlines()[1:]
    assert len(rows) == 8, "what was played is logged, once"


def test_share_body_episodes_of_real_simulators_are_those_of_each_tasks_own(tmp_path: Path) -> None:
    """Each stored episode equals, to the last bit, the same actions played in its task's own environment."""
    cfg = shared(tmp_path, tasks=["pendulum-swingup", "pendulum-spin"], task_specs=())
    with explorer.Explorer(cfg, TDMPC2(cfg)) as played:
        played.begin()
        for step in range(500):
            ended = played.step(played.act(step, random=True))
        episodes = played.take_ended()
    assert [episode.job.task_id for episode in ended] == list(cfg.task_ids)
    assert len({episode.job for episode in episodes}) == 4
    for episode in episodes:
        env = build_env(cfg.task_names[episode.job.task_id], 1)
        obs = [env.reset(seed=episode.job.seed)[0]]
        rewards = []
        for action in episode.action[1:]:
            row, reward, *_ = env.step(action[:1])
            obs.append(row)
            rewards.append(reward)
        np.testing.assert_array_equal(episode.obs[:, :3], obs)
        np.testing.assert_array_equal(episode.reward[1:], np.float32(rewards))
        assert episode.episode_return == np.sum(rewards)


def test_share_body_makes_updates_by_steps_and_draws_tasks_uniformly(
    stubs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Updates are counted by steps and not by rows, and tasks that share steps are not drawn more often."""
    drawn, update = [], TDMPC2.update
    monkeypatch.setattr(TDMPC2, "update", lambda self, batch: drawn.append(batch) or update(self, batch))
    cfg = shared(tmp_path, batch_size=256)
    train_online(cfg, None)
    assert len(drawn) == (cfg.steps - 1) // 2
    counts = torch.cat([batch.task for batch in drawn]).bincount(minlength=30)
    assert counts.nonzero().flatten().tolist() == sorted(cfg.task_ids)
    assert counts.max() < 1.1 * counts[counts > 0].min()
    pays = torch.tensor([PAYS.get(task, 0.0) for task in cfg.task_names])
    for batch in drawn:
        paid = pays[batch.task] * (batch.obs[1:, :, 0] + batch.action[:, :, 0])
        torch.testing.assert_close(batch.reward[..., 0], paid)


def test_share_body_off_stores_an_episode_for_its_own_task(stubs: None, added: list[Any], tmp_path: Path) -> None:
    cfg = shared(tmp_path, share_body=False)
    train_online(cfg, None)
    assert sorted(task for task, *_ in added) == sorted(2 * cfg.task_ids)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run that is never stopped, with a buffer that does not hold all of it."""
    with pytest.MonkeyPatch.context() as patch:
        stub(patch)
        return train_online(shared(tmp_path_factory.mktemp("undisturbed"), buffer_size=150), None).parent


@pytest.mark.parametrize("stop_at", [28, 44])
@pytest.mark.parametrize("how", ["SIGTERM", "kill"])
def test_share_body_run_continues_bit_for_bit(
    undisturbed: Path, stubs: None, how: str, stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops where ended episodes are not stored yet, and in the middle of episodes."""
    cfg = shared(tmp_path, buffer_size=150)

    def die() -> None:
        if how == "kill":
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        interrupt(patch, stop_at, die)
        with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
            train_online(cfg, None)
    assert how == "kill" or ended.value.code == STOPPED
    train_online(cfg, None)
    assert_same(undisturbed, cfg.run_dir)


def test_share_body_buffer_counts_the_rows_of_all_tasks(tmp_path: Path) -> None:
    """A step of three walkers and the cup makes ten rows, for which the buffer needs room."""
    cfg = shared(tmp_path, steps=400)
    # an episode of seven steps has eight rows; ten and four episodes may not have ended
    assert make_ring(cfg, torch.device("cpu")).capacity == 404 * 10 // 4 + 145 + 10
    assert make_ring(cfg.replace(share_body=False), torch.device("cpu")).capacity == 404 + 58 + 4
    assert make_ring(cfg.replace(buffer_size=1100), torch.device("cpu")).capacity == 1100


def test_share_body_estimate_counts_the_rows_of_all_tasks(
    stubs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_online(shared(tmp_path, dry_run=True), None)
    text = capsys.readouterr().out
    assert re.search(
        r"^acting      56 steps in 4 environments, each step stored for 2.5 tasks on average$", text, re.MULTILINE
    )
    assert "182 rows, 0.00 GB in memory" in text


@pytest.mark.parametrize(("keys", "message"), [
    ({"mode": "offline"}, "mode=offline takes none: set mode=online"),
    ({"task": "walker-walk", "tasks": None}, "task=walker-walk has no two tasks .* tasks=.walker-walk"),
    ({"tasks": ["cup-catch", "cup-spin"]}, r"tasks=\[cup-catch,cup-spin\] has no two tasks that are one body"),
    ({"tasks": ["walker-run", "cheetah-run"]}, r"has no two tasks .*: leave out share_body, or name such tasks"),
    ({"episodic": True}, "share a body never terminate: leave out episodic"),
    ({"obs": "rgb"}, "obs=rgb learns one task, and task=mt30 is a set"),
])  # fmt: skip
def test_share_body_that_has_no_meaning_is_refused_with_the_way_out(
    keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        shared(tmp_path, **keys)
    assert "\n" not in str(error.value)


def test_share_body_buffer_too_small_for_all_tasks_of_an_episode_is_refused(tmp_path: Path) -> None:
    """Such a ring would never keep an episode of the first task."""
    with pytest.raises(
        ValueError, match="buffer_size=79 does not hold an episode of each of 4 tasks: set it to 80 or more"
    ):
        train_online(shared(tmp_path, buffer_size=79), None)


def test_share_body_counts_short_episodes_once(tmp_path: Path) -> None:
    """An episode's copies for other tasks used to count as short episodes, too, which ended runs early."""
    cfg = shared(tmp_path)
    replay = make_ring(cfg.replace(horizon=3), torch.device("cpu"))
    run: Any = SimpleNamespace(cfg=cfg, message=lambda text: None)
    learner = Learner(run, replay, Batches(cfg, replay, torch.device("cpu")))

    def play(seed: int, steps: int) -> None:
        obs, action = np.zeros((steps + 1, 24), np.float32), np.zeros((steps + 1, 6), np.float32)
        reward = np.zeros(steps + 1, np.float32)
        copies = [Episode(Job(task, seed), obs, action, reward, 0.0, 0.0, False, []) for task in cfg.task_ids[1:]]
        learner.store(seed, copies)

    counts = []
    for seed, steps in enumerate((2, 2, 7, 2)):
        play(seed, steps)
        counts.append(learner.short)
    assert counts == [1, 2, 0, 1]
    assert replay.num_added == 12


@pytest.mark.parametrize(
    "metrics", [{"total_loss": "0.5"}, {"total_loss": torch.ones(2)}, {"total_loss": torch.tensor(torch.nan)}]
)
def test_learner_that_continues_from_other_metrics_than_finite_numbers_refuses_them(
    metrics: dict[str, Any], tmp_path: Path
) -> None:
    """A text among the metrics of a damaged state used to end in a traceback at the next save."""
    cfg = shared(tmp_path)
    replay = make_ring(cfg, torch.device("cpu"))
    run: Any = SimpleNamespace(cfg=cfg)
    learner = Learner(run, replay, Batches(cfg, replay, torch.device("cpu")))
    state = {"done": 3, "owed": 0, "interrupted": False, "metrics": metrics, "short": 0}
    with pytest.raises(
        ValueError, match=r"state\.pt.*learner.*metrics is .*, expected finite numbers by name"
    ) as error:
        learner.load_state(state)
    assert "\n" not in str(error.value)
    learner.load_state({**state, "metrics": {"total_loss": torch.tensor(0.5)}})
    assert learner.done == 3
