"""Collecting: the plan of files, continuing, policies with noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import file_sha256
from tdmpc2.config import Config, MixEntry
from tdmpc2.data.chunks import read_chunk
from tdmpc2.envs import make_env
from tdmpc2.envs.vector import EnvPool
from tdmpc2.loading import load_agent
from tdmpc2.play.actors import noisy_actor
from tdmpc2.play.collector import Shard, collect, list_shards, num_envs
from tdmpc2.play.mixture import load_policies, policy_from_agent, split
from tdmpc2.play.rollout import Job, play
from tdmpc2.tasks import MT30
from tests.helpers.playing import SIZES, chunks, policies, toy
from tests.helpers.toy_envs import STANDS

# Plans


def test_plan_starts_with_first_files_of_all_tasks() -> None:
    cfg = Config(tasks=("walker-walk", "cup-spin"), episodes_per_task=10, episodes_per_file=3)
    shards = list_shards(cfg, policies(0.7, 0.3), first=5)
    walk, spin = MT30.index("walker-walk"), MT30.index("cup-spin")
    assert [(s.task_id, s.policy, s.episodes) for s in shards] == [
        (walk, 0, 3), (walk, 1, 3), (spin, 0, 3), (spin, 1, 3), (walk, 0, 3), (spin, 0, 3), (walk, 0, 1), (spin, 0, 1),
    ]  # fmt: skip
    assert [s.number for s in shards] == list(range(5, 13))
    assert shards[2] == Shard(7, spin, "cup-spin", 0, "random", 3)


@given(st.integers(1, 50), st.integers(1, 20), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_plan_has_every_episode_once(per_task: int, per_file: int, weights: list[int]) -> None:
    cfg = Config(tasks=("walker-walk", "cup-spin"), episodes_per_task=per_task, episodes_per_file=per_file)
    shares = [weight / sum(weights) for weight in weights]
    shards = list_shards(cfg, policies(*shares))
    assert shards == list_shards(cfg, policies(*shares))
    assert all(1 <= shard.episodes <= per_file for shard in shards)
    for task_id in cfg.task_ids:
        counts = [sum(s.episodes for s in shards if (s.task_id, s.policy) == (task_id, i)) for i in range(len(shares))]
        assert counts == split(per_task, shares)


def test_plan_batches_are_about_equal() -> None:
    random, policy, planner = (policy_from_agent(agent) for agent in (None, TDMPC2(toy(mpc=False)), TDMPC2(toy())))
    assert [num_envs(planner, n) for n in (1, 4, 5, 8, 9)] == [1, 4, 3, 4, 3]
    assert [num_envs(random, n) for n in (1, 5, 100)] == [1, 3, 4]
    assert [num_envs(policy, n) for n in (1, 16, 17, 100)] == [1, 16, 9, 15]


# Playing


def test_collect_continued_gives_the_same_files(model: str, tmp_path: Path) -> None:
    """A file depends on its number only, not on existing files or on what a process has played before."""
    cfg = toy(mix=("0.4 random", f"0.3 planner {model}", f"0.3 policy {model} noise 0.2"))
    whole = collect(cfg, None, tmp_path / "whole")
    expected = chunks(tmp_path / "whole")
    assert [path.name for path in whole] == [f"chunk_{i}.pt" for i in range(3)]
    for number in range(3):
        (tmp_path / "whole" / f"chunk_{number}.pt").unlink()
        if number:
            (tmp_path / "whole" / f"chunk_{number - 1}.pt").unlink()
        assert collect(cfg, None, tmp_path / "whole") == whole
        assert chunks(tmp_path / "whole") == expected
    assert collect(cfg.replace(seed=2), None, tmp_path / "other")
    assert not set(chunks(tmp_path / "other").values()) & set(expected.values())
    assert read_chunk(whole[0])["obs"].shape == (3, 8, 4)


def test_collect_continued_with_agent_gives_the_same_files(tmp_path: Path) -> None:
    """The files are the same even if the agent has acted in between."""
    cfg = toy()
    agent = TDMPC2(cfg)
    paths = collect(cfg, agent, tmp_path)
    expected = chunks(tmp_path)
    paths[1].unlink()
    agent.act(np.zeros((5, 4), np.float32), t0=True)
    assert collect(cfg, agent, tmp_path) == paths
    assert chunks(tmp_path) == expected
    other = TDMPC2(cfg.replace(seed=3))
    assert collect(cfg, other, tmp_path)[0].name == "chunk_3.pt"  # other weights are another collection


def test_env_pool_reused_environment_is_as_new() -> None:
    cfg = Config(tasks=("cheetah-jump", "finger-spin", "cup-spin"))
    jobs = [Job(task_id, 40 + k) for task_id in cfg.task_ids for k in range(2)]

    def actor(obs: np.ndarray, t0: np.ndarray, task_ids: np.ndarray) -> np.ndarray:
        return np.tanh(1e3 * obs[:, :6])

    fresh = play(cfg, actor, jobs, max_steps=60)
    with EnvPool(cfg.obs_dim, cfg.action_dim) as pool:
        play(cfg, actor, [Job(job.task_id, 1) for job in jobs], max_steps=100, pool=pool)
        again = play(cfg, actor, jobs, max_steps=60, pool=pool)
        fewer = play(cfg, actor, jobs[3:], max_steps=60, pool=pool)
    for expected, *found in [*zip(fresh, again), *zip(fresh[3:], fewer)]:  # noqa: B905
        for episode in found:
            np.testing.assert_array_equal(episode.obs, expected.obs)
            np.testing.assert_array_equal(episode.reward, expected.reward)


def test_env_pool_builds_only_missing_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def make(name: str, seed: int, *_: Any) -> Any:
        built.append(name)
        return make_env(name, seed)

    monkeypatch.setattr("tdmpc2.envs.vector.build_env", make)
    cfg = Config()
    spin, cup = (cfg.task_specs[MT30.index(name)] for name in ("pendulum-spin", "cup-spin"))
    with EnvPool(24, 6) as pool:
        pool.make([spin, spin, cup])
        pool.make([spin, cup])
        pool.make([spin, spin])
        assert built == ["pendulum-spin", "pendulum-spin", "cup-spin"]
        pool.make([cup])
        assert built[3:] == ["cup-spin"]
    stands = toy().task_specs
    built.clear()
    with EnvPool(4, 2) as pool:
        pool.make(stands)
        pool.make(stands)
        assert built == [STANDS, STANDS]  # built twice, since users' environments may keep a state


def test_noisy_actor_levels_have_their_spread(model: str) -> None:
    """Without noise the actor takes the agent's own action, with noise one around it, by policy and by planner."""
    cfg = toy()
    obs, t0, ids = np.linspace(-1, 1, 400, dtype=np.float32).reshape(100, 4), np.ones(100, bool), np.zeros(100, int)
    for kind in ("policy", "planner"):
        sources = [MixEntry(0.25, kind, model, noise) for noise in (0.0, 0.1, 5.0, None)]
        none, some, much, own = (policy.actor(cfg, 3)(obs, t0, ids) for policy in load_policies(sources, load_toy))
        agent = load_toy(model, mpc=kind == "planner")
        agent.generator.manual_seed(3)
        np.testing.assert_array_equal(none, agent.act(obs, t0=t0, eval_mode=True, task=ids))
        agent.generator.manual_seed(3)
        np.testing.assert_array_equal(own, agent.act(obs, t0=t0, eval_mode=False, task=ids))
        inner = np.abs(some) < 1
        assert inner.mean() > 0.3
        assert np.std((some - none)[inner]) == pytest.approx(0.1, rel=0.3)
        assert np.abs(much).max() == 1
        assert (np.abs(much) == 1).mean() > 0.7


def load_toy(path: str, mpc: bool) -> TDMPC2:
    return load_agent(path, device="cpu", mpc=mpc)


def test_noisy_actor_leaves_padding_dimensions_zero() -> None:
    cfg = Config()
    ids = np.array([MT30.index(name) for name in ("pendulum-spin", "cup-spin", "walker-walk")])

    def still(obs: np.ndarray, t0: np.ndarray, task_ids: np.ndarray) -> np.ndarray:
        return np.zeros((len(obs), 6), np.float32)

    actor = noisy_actor(cfg, still, 0.5, seed=1)
    action = actor(np.zeros((3, 24), np.float32), np.zeros(3, bool), ids)
    assert action.dtype == np.float32
    assert [(row != 0).tolist() for row in action] == [[True] + [False] * 5, [True] * 2 + [False] * 4, [True] * 6]
    again = noisy_actor(cfg, still, 0.5, seed=1)(np.zeros((3, 24), np.float32), np.zeros(3, bool), ids)
    np.testing.assert_array_equal(action, again)


def test_load_players_reads_shared_file_once(model: str) -> None:
    """A checkpoint that policy and planner share is loaded once; each keeps its own plans."""
    loads: list[bool] = []

    def load(path: str, mpc: bool) -> TDMPC2:
        loads.append(mpc)
        return load_toy(path, mpc)

    policy, planner = load_policies([MixEntry(0.5, "policy", model), MixEntry(0.5, "planner", model)], load)
    assert loads == [True]  # loaded once, as an agent that plans
    assert policy.agent is planner.agent
    assert (policy.mpc, planner.mpc) == (False, True)
    assert policy.sha256 == planner.sha256 == file_sha256(model)
    assert "planner" in planner.settings()
    assert "planner" not in policy.settings()


def test_load_players_of_other_task_is_refused(model: str, tmp_path: Path) -> None:
    TDMPC2(Config(**SIZES)).save(tmp_path / "mt30.pt")
    sources = [MixEntry(0.5, "policy", model), MixEntry(0.5, "policy", str(tmp_path / "mt30.pt"))]
    with pytest.raises(ValueError, match=r"toy.pt plays 1 tasks of .*, .*mt30.pt 30 of 'mt30': they need one task set"):
        load_policies(sources, load_toy)
    with pytest.raises(ValueError, match=r"policy .*mt30.pt plays task=mt30, not task=tests.helpers.toy_envs"):
        collect(toy(), load_policies(sources[1:], load_toy), tmp_path / "data")


def test_collect_compiled_planner_sees_one_batch_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = toy(episodes_per_file=4, episodes_per_task=6)
    agent = TDMPC2(cfg)
    sizes: list[int] = []
    make_player = agent.player

    def watched_player(**keys: Any) -> Any:
        player = make_player(**keys)
        act = player.act

        def watched(obs: Any, *others: Any, **keys: Any) -> Any:
            sizes.append(len(obs))
            return act(obs, *others, **keys)

        monkeypatch.setattr(player, "act", watched)
        return player

    monkeypatch.setattr(agent, "player", watched_player)
    collect(cfg, agent, tmp_path / "plain")
    assert set(sizes) == {4, 2}
    sizes.clear()
    agent.planner.kind = "compiled"  # only pretends to be compiled
    collect(cfg, agent, tmp_path / "compiled")
    assert set(sizes) == {4}
    assert len(read_chunk(tmp_path / "compiled" / "chunk_1.pt")["obs"]) == 2
