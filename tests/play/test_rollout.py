"""Episodes played side by side equal the same actions played one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import gymnasium
import numpy as np
import pytest

from tdmpc2.config import Config
from tdmpc2.envs import task_spec
from tdmpc2.play.actors import random_actor
from tdmpc2.play.rollout import Actor, Episode, Floats, Job, play
from tdmpc2.tasks import MT30
from tests.helpers.playing import by_hand
from tests.helpers.toy_envs import FALLS, FALLS_AT, STANDS, STANDS_FOR

PENDULUM, CARTPOLE, CUP = MT30.index("pendulum-spin"), MT30.index("cartpole-balance"), MT30.index("cup-spin")


def toy_config() -> Config:
    """Configure a set of three tasks: 500 steps, early termination, a short time limit."""
    return Config(task="mt30", task_specs=tuple(map(task_spec, ("pendulum-spin", FALLS, STANDS))))


def scripted(cfg: Config, num_envs: int, seed: int = 0) -> tuple[Actor, np.ndarray]:
    """Make an actor that plays fixed random actions, [500, E, A], which are not masked."""
    script = np.random.default_rng(seed).uniform(-1, 1, (500, num_envs, cfg.action_dim)).astype(np.float32)
    actions = iter(script)
    return lambda obs, t0, task_ids: next(actions), script


def check(cfg: Config, episode: Episode, actions: Sequence[Floats]) -> None:
    spec = cfg.task_specs[episode.job.task_id]
    observations, rewards, terminated, success = by_hand(spec, episode.job.seed, actions)
    steps = len(rewards)
    assert episode.obs.shape == (steps + 1, cfg.obs_dim)
    assert episode.action.shape == (steps + 1, cfg.action_dim)
    np.testing.assert_array_equal(episode.obs[:, : spec.obs_dim], observations)
    np.testing.assert_array_equal(episode.obs[:, spec.obs_dim :], 0)
    np.testing.assert_array_equal(episode.action[1:], actions[:steps])
    np.testing.assert_array_equal(episode.reward[1:], rewards.astype(np.float32))
    assert np.isnan(episode.action[0]).all()
    assert np.isnan(episode.reward[0])
    assert episode.episode_return == pytest.approx(float(rewards.sum()), rel=1e-14)
    assert (episode.terminated, episode.success) == (terminated, success)
    assert episode.obs.dtype == episode.action.dtype == episode.reward.dtype == np.float32


def test_play_side_by_side_equals_single_episodes() -> None:
    cfg = Config()
    jobs = [Job(PENDULUM, 3), Job(CARTPOLE, 4), Job(CUP, 5), Job(PENDULUM, 6)]
    actor, script = scripted(cfg, len(jobs))
    episodes = play(cfg, actor, jobs)
    assert [episode.job for episode in episodes] == jobs
    for i, episode in enumerate(episodes):
        assert len(episode.reward) == 501
        assert not episode.terminated
        check(cfg, episode, script[:, i])


def test_play_sums_return_in_float64() -> None:
    """A float32 sum of a cartpole's 500 rewards near 1 is wrong in the seventh digit."""
    episode = play(Config(), lambda obs, t0, ids: np.zeros((1, 6), np.float32), [Job(CARTPOLE, 0)])[0]
    assert isinstance(episode.episode_return, float)
    assert episode.episode_return != float(np.cumsum(episode.reward[1:])[-1])
    assert episode.episode_return == pytest.approx(episode.reward[1:].sum(dtype=np.float64), rel=1e-7)


def test_play_of_different_lengths_equals_single_episodes() -> None:
    cfg = toy_config()
    jobs = [Job(1, 1), Job(0, 1), Job(2, 1), Job(1, 2), Job(2, 9)]
    actor, script = scripted(cfg, len(jobs))
    playing: list[int] = []
    episodes = play(cfg, actor, jobs, on_step=playing.append)
    for i, episode in enumerate(episodes):
        check(cfg, episode, script[:, i])
    assert [len(episode.reward) - 1 for episode in episodes] == [FALLS_AT, 500, STANDS_FOR, FALLS_AT, STANDS_FOR]
    assert [episode.terminated for episode in episodes] == [True, False, False, True, False]
    assert [episode.success for episode in episodes] == [1, 0, 0, 1, 0]
    assert playing == [5] * FALLS_AT + [3] * (STANDS_FOR - FALLS_AT) + [1] * (500 - STANDS_FOR)


def test_play_stops_when_last_episode_ends() -> None:
    calls: list[np.ndarray] = []

    def act(obs: Floats, t0: np.ndarray, task_ids: np.ndarray) -> Floats:
        calls.append(t0)
        return np.zeros((len(obs), 2), np.float32)

    cfg = toy_config()
    play(cfg, act, [Job(1, 0), Job(2, 0)])
    assert len(calls) == STANDS_FOR
    assert all(calls[0])
    assert not np.any(calls[1:])


def test_play_actor_sees_observations_tasks_and_starts() -> None:
    cfg = toy_config()
    seen: list[tuple[Floats, np.ndarray]] = []

    def act(obs: Floats, t0: np.ndarray, task_ids: np.ndarray) -> Floats:
        seen.append((obs.copy(), task_ids))
        return np.full((len(obs), 2), 0.5, np.float32)

    episodes = play(cfg, act, [Job(2, 0), Job(0, 0)], max_steps=5)
    for t, (obs, task_ids) in enumerate(seen):
        assert obs.dtype == np.float32
        assert task_ids.tolist() == [2, 0]
        for i, episode in enumerate(episodes):
            np.testing.assert_array_equal(obs[i], episode.obs[t])


def test_play_max_steps_cuts_long_episodes_only() -> None:
    cfg = toy_config()
    actor, script = scripted(cfg, 3)
    episodes = play(cfg, actor, [Job(0, 0), Job(1, 0), Job(2, 0)], max_steps=5)
    assert [len(episode.reward) - 1 for episode in episodes] == [5, FALLS_AT, 5]
    for i, episode in enumerate(episodes):
        check(cfg, episode, script[:5, i])


def test_play_seed_decides_the_episode() -> None:
    cfg = toy_config()
    jobs = [Job(0, 7), Job(0, 8), Job(0, 7)]
    same_actions = random_actor(cfg, 0)
    once = play(cfg, same_actions, jobs, max_steps=1)
    again = play(cfg, random_actor(cfg, 0), jobs[:1], max_steps=1)
    np.testing.assert_array_equal(once[0].obs[0], once[2].obs[0])
    np.testing.assert_array_equal(once[0].obs, again[0].obs)
    assert (once[0].obs[0] != once[1].obs[0]).any()


def test_random_actor_is_bounded_masked_and_seeded() -> None:
    cfg = Config()
    ids = np.array([PENDULUM, CUP, 0])
    obs, t0 = np.zeros((3, 24), np.float32), np.zeros(3, bool)
    actor = random_actor(cfg, 1)
    actions = np.stack([actor(obs, t0, ids) for _ in range(500)])
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1
    assert abs(actions[:, 2].mean()) < 0.05
    assert actions[:, 2].std() == pytest.approx(np.sqrt(1 / 3), abs=0.02)  # uniform on [-1, 1]
    for row, used in ((0, 1), (1, 2), (2, 6)):
        assert (actions[:, row, used:] == 0).all()
        assert (actions[:, row, :used] != 0).all()
    np.testing.assert_array_equal(actions[0], random_actor(cfg, 1)(obs, t0, ids))
    assert (actions[0] != random_actor(cfg, 2)(obs, t0, ids)).any()


def test_play_films_only_chosen_environments() -> None:
    cfg = toy_config()
    actor, _ = scripted(cfg, 3)
    episodes = play(cfg, actor, [Job(2, 0), Job(1, 0), Job(1, 1)], render=[0, 2])
    assert [len(episode.frames) for episode in episodes] == [STANDS_FOR, 0, FALLS_AT]
    assert [frame[0, 0, 0] for frame in episodes[2].frames] == [0, 20, 40]  # the state each action is chosen in


def test_play_failing_actor_closes_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(
        gymnasium.vector.SyncVectorEnv, "close_extras", lambda self, **kwargs: closed.append("closed"), raising=True
    )

    def act(obs: Floats, t0: np.ndarray, task_ids: np.ndarray) -> Floats:
        raise RuntimeError("no action")

    with pytest.raises(RuntimeError, match="no action"):
        play(toy_config(), act, [Job(1, 0)])
    assert closed == ["closed"]


def test_play_ends_an_episode_at_its_own_length_beside_longer_ones() -> None:
    """An environment may go on for longer than the task that was learned; what plays beside it must not matter."""
    cfg = toy_config()
    short = dataclasses.replace(cfg.task_specs[2], episode_length=3)
    cfg = cfg.replace(task_specs=(*cfg.task_specs[:2], short))
    actor, _ = scripted(cfg, 2)
    episodes = play(cfg, actor, [Job(2, 1), Job(0, 1)])
    assert [len(episode.reward) - 1 for episode in episodes] == [3, 500]
