"""Collecting: mixtures, plans, continuing, records, disks that are full, and kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import file_sha256
from tdmpc2.config import Config, parse_cfg
from tdmpc2.data.chunks import read_chunk
from tdmpc2.envs import make_env
from tdmpc2.envs.vector import EnvPool
from tdmpc2.loading import load_agent
from tdmpc2.play.collector import Shard, collect, episode_returns, num_envs, plan
from tdmpc2.play.mixture import Player, Source, load_players, noisy_actor, parse_mix, player_of, sources_of, split
from tdmpc2.play.rollout import Job, play
from tdmpc2.tasks import MT30

from .conftest import REPO, largest_file
from .kill import killed_at_random
from .toy_envs import FALLS, STANDS

SIZES: dict[str, Any] = {
    "model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "task_dim": 8, "num_samples": 16,
    "num_elites": 4, "num_pi_trajs": 4, "iterations": 1, "horizon": 2, "device": "cpu", "num_threads": 1,
}  # fmt: skip
TOY = {**SIZES, "task": STANDS}


def toy(**keys: Any) -> Config:
    return parse_cfg({**TOY, "episodes_per_task": 7, "episodes_per_file": 3, **keys})


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A checkpoint of an agent for the toy task."""
    TDMPC2(toy()).save(tmp_path / "toy.pt")
    return str(tmp_path / "toy.pt")


def chunks(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("chunk_*"))}


# Mixtures


def test_entries_of_a_mixture() -> None:
    entries = ["0.5 random", "1 policy logs/a b/m.pt noise 0.3", "0.5  planner  m.pt", "2 planner m.pt noise 0"]
    assert parse_mix(entries) == [
        Source(0.125, "random"),
        Source(0.25, "policy", "logs/a b/m.pt", 0.3),
        Source(0.125, "planner", "m.pt"),
        Source(0.5, "planner", "m.pt", 0.0),
    ]
    assert [str(s) for s in parse_mix(entries)][1:] == [
        "policy logs/a b/m.pt noise 0.3",
        "planner m.pt",
        "planner m.pt noise 0",
    ]


def test_a_mixture_as_it_is_typed() -> None:
    """The text between the double quotes of the README and of collect.py's docstring."""
    typed = "mix=[0.2 random, 0.3 policy models/early-1_a.pt noise 0.3, 0.5 planner logs/mt30/1/default/model.pt]"
    (override,) = OverridesParser.create().parse_overrides([typed])
    sources = parse_mix(parse_cfg({"mix": override.value()}).mix or ())
    assert [(s.kind, s.checkpoint, s.noise) for s in sources] == [
        ("random", None, None),
        ("policy", "models/early-1_a.pt", 0.3),
        ("planner", "logs/mt30/1/default/model.pt", None),
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("random", "is not of the form"),
        ("0.5 expert x.pt", "is not of the form"),
        ("half random", "the share in 'half random' must be a positive number"),
        ("0 random", "must be a positive number"),
        ("-1 random", "must be a positive number"),
        ("inf random", "must be a positive number"),
        ("1 random x.pt", "neither a checkpoint nor noise"),
        ("1 random noise 0.1", "neither a checkpoint nor noise"),
        ("1 policy", "names no checkpoint"),
        ("1 planner noise 0.1", "names no checkpoint"),
        ("1 policy x.pt noise loud", "the noise in '1 policy x.pt noise loud'"),
        ("1 policy x.pt noise -0.1", "must be a number, 0 or more"),
    ],
)
def test_bad_entries_are_named(entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_mix(["1 random", entry])
    assert f"'{entry}'" in str(error.value)


def test_where_sources_come_from() -> None:
    assert sources_of(None, None, True) == [Source(1, "random")]
    assert sources_of(None, "x.pt", True) == [Source(1, "planner", "x.pt")]
    assert sources_of(None, "x.pt", False) == [Source(1, "policy", "x.pt")]
    with pytest.raises(ValueError, match=r"checkpoint=x\.pt beside mix"):
        sources_of(["1 random"], "x.pt", True)
    with pytest.raises(ValueError, match="no entries"):
        parse_mix([])


@given(st.integers(0, 10_000), st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8))
def test_parts_are_the_shares_to_less_than_one(total: int, weights: list[float]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    parts = split(total, shares)
    assert sum(parts) == total
    assert all(abs(part - total * share) < 1 + 1e-6 for part, share in zip(parts, shares, strict=True))
    remainders = sorted(total * share - part for part, share in zip(parts, shares, strict=True))
    assert remainders[-1] - remainders[0] <= 1 + 1e-6  # who was rounded up had the larger remainder


def test_the_largest_remainder_first() -> None:
    assert split(10, [0.26, 0.35, 0.39]) == [3, 3, 4]  # 2.6, 3.5, 3.9
    assert split(10, [0.1 + 0.2, 0.7]) == [3, 7]
    assert split(1, [0.5, 0.5]) == [1, 0]


# Plans


def players(*shares: float) -> list[Player]:
    return [Player(Source(share, "random")) for share in shares]


def test_first_files_of_all_tasks_come_first() -> None:
    cfg = Config(tasks=("walker-walk", "cup-spin"), episodes_per_task=10, episodes_per_file=3)
    shards = plan(cfg, players(0.7, 0.3), first=5)
    walk, spin = MT30.index("walker-walk"), MT30.index("cup-spin")
    assert [(s.task_id, s.player, s.episodes) for s in shards] == [
        (walk, 0, 3), (walk, 1, 3), (spin, 0, 3), (spin, 1, 3), (walk, 0, 3), (spin, 0, 3), (walk, 0, 1), (spin, 0, 1),
    ]  # fmt: skip
    assert [s.number for s in shards] == list(range(5, 13))
    assert shards[2] == Shard(7, spin, "cup-spin", 0, "random", 3)


@given(st.integers(1, 50), st.integers(1, 20), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_a_plan_has_every_episode_once(per_task: int, per_file: int, weights: list[int]) -> None:
    cfg = Config(tasks=("walker-walk", "cup-spin"), episodes_per_task=per_task, episodes_per_file=per_file)
    shares = [weight / sum(weights) for weight in weights]
    shards = plan(cfg, players(*shares))
    assert shards == plan(cfg, players(*shares))
    assert all(1 <= shard.episodes <= per_file for shard in shards)
    for task_id in cfg.task_ids:
        counts = [sum(s.episodes for s in shards if (s.task_id, s.player) == (task_id, i)) for i in range(len(shares))]
        assert counts == split(per_task, shares)


def test_batches_are_about_equal() -> None:
    random, policy, planner = (player_of(agent) for agent in (None, TDMPC2(toy(mpc=False)), TDMPC2(toy())))
    assert [num_envs(planner, n) for n in (1, 4, 5, 8, 9)] == [1, 4, 3, 4, 3]
    assert [num_envs(random, n) for n in (1, 5, 100)] == [1, 3, 4]
    assert [num_envs(policy, n) for n in (1, 16, 17, 100)] == [1, 16, 9, 15]


# Playing


def test_continuing_gives_the_same_files(model: str, tmp_path: Path) -> None:
    """Whatever was there before and whatever is played first in a process: a file depends on its number alone."""
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


def test_an_agent_continues_with_the_same_files(tmp_path: Path) -> None:
    """Also where the agent has acted in between."""
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


def test_environments_used_again_are_as_new() -> None:
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


def test_what_a_pool_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def make(name: str, seed: int) -> Any:
        built.append(name)
        return make_env(name, seed)

    monkeypatch.setattr("tdmpc2.envs.vector.make_env", make)
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
        assert built == [STANDS, STANDS]  # a user's environment may keep something between episodes


def test_levels_of_noise(model: str) -> None:
    """Without noise the agent's own action, with it something around that, in both kinds of agent."""
    cfg = toy()
    obs, t0, ids = np.linspace(-1, 1, 400, dtype=np.float32).reshape(100, 4), np.ones(100, bool), np.zeros(100, int)
    for kind in ("policy", "planner"):
        sources = [Source(0.25, kind, model, noise) for noise in (0.0, 0.1, 5.0, None)]
        none, some, much, own = (player.actor(cfg, 3)(obs, t0, ids) for player in load_players(sources, load_toy))
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


def test_noise_is_for_the_tasks_own_dimensions() -> None:
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


def test_one_file_for_policy_and_planner(model: str) -> None:
    """is loaded once and keeps its own plans."""
    loads: list[bool] = []

    def load(path: str, mpc: bool) -> TDMPC2:
        loads.append(mpc)
        return load_toy(path, mpc)

    policy, planner = load_players([Source(0.5, "policy", model), Source(0.5, "planner", model)], load)
    assert loads == [False]
    assert policy.agent is not None
    assert planner.agent is not None
    assert (policy.agent.cfg.mpc, planner.agent.cfg.mpc) == (False, True)
    assert policy.agent.model is planner.agent.model
    assert policy.sha256 == planner.sha256 == file_sha256(model)
    assert "planner" in planner.settings()
    assert "planner" not in policy.settings()


def test_agents_of_other_tasks_do_not_mix(model: str, tmp_path: Path) -> None:
    TDMPC2(Config(**SIZES)).save(tmp_path / "mt30.pt")
    sources = [Source(0.5, "policy", model), Source(0.5, "policy", str(tmp_path / "mt30.pt"))]
    with pytest.raises(ValueError, match=r"toy.pt plays 1 tasks of .*, .*mt30.pt 30 of 'mt30': they need one task set"):
        load_players(sources, load_toy)
    with pytest.raises(ValueError, match=r"policy .*mt30.pt plays task=mt30, not task=tests.toy_envs"):
        collect(toy(), load_players(sources[1:], load_toy), tmp_path / "data")


def test_a_compiled_planner_always_sees_one_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = toy(episodes_per_file=4, episodes_per_task=6)
    agent = TDMPC2(cfg)
    sizes: list[int] = []
    act = agent.act

    def watched(obs: Any, **keys: Any) -> Any:
        sizes.append(len(obs))
        return act(obs, **keys)

    monkeypatch.setattr(agent, "act", watched)
    collect(cfg, agent, tmp_path / "plain")
    assert set(sizes) == {4, 2}
    sizes.clear()
    agent.planner.kind = "compiled"  # says that it is, and is not
    collect(cfg, agent, tmp_path / "compiled")
    assert set(sizes) == {4}
    assert len(read_chunk(tmp_path / "compiled" / "chunk_1.pt")["obs"]) == 2


def test_it_stops_at_the_first_early_end(tmp_path: Path) -> None:
    steps: list[int] = []
    cfg = parse_cfg({"task": FALLS, "episodes_per_task": 50})
    player = player_of(None)
    original = player.actor(cfg, 1)

    class Watched(Player):
        def actor(self, cfg: Config, seed: int) -> Any:
            def act(obs: np.ndarray, t0: np.ndarray, task_ids: np.ndarray) -> np.ndarray:
                steps.append(len(obs))
                return original(obs, t0, task_ids)

            return act

    with pytest.raises(ValueError, match="ended after 3 of 9 steps"):
        collect(cfg, [Watched(Source(1.0, "random"))], tmp_path / "data")
    assert len(steps) == 3


# Records


def test_the_same_command_adds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports: list[Shard] = []
    first = collect(toy(), None, tmp_path, lambda shard, returns: reports.append(shard))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert [(shard.number, shard.episodes) for shard in reports] == [(0, 3), (1, 3), (2, 1)]
    assert "chunk_0.pt to chunk_2.pt; 0.0 MB to collect" in capsys.readouterr().out
    assert collect(toy(), None, tmp_path, lambda shard, returns: reports.append(shard)) == first
    assert len(reports) == 3
    assert "7 episodes in 3 files, chunk_0.pt to chunk_2.pt: complete; change seed" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    del before[tmp_path / "collect.lock"], after[tmp_path / "collect.lock"]
    assert after == before
    second = collect(toy(seed=2), None, tmp_path)
    assert [path.name for path in second] == ["chunk_3.pt", "chunk_4.pt", "chunk_5.pt"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "collect.json", "collect.lock", *(f"chunk_{i}.pt" for i in range(6)),
    }  # fmt: skip


def test_what_the_record_says(model: str, tmp_path: Path) -> None:
    mix = ("0.5 random", f"0.5 planner {model} noise 0.2")
    collect(toy(mix=mix), None, tmp_path / "data")
    record = json.loads((tmp_path / "data" / "collect.json").read_text())
    assert (record["format"], record["task"]) == (1, STANDS)
    assert record["tasks"] == [dict(spec) for spec in toy().to_dict()["task_specs"]]
    (entry,) = record["collections"]
    random, planner = entry["settings"].pop("sources")
    assert entry["settings"] == {"tasks": [STANDS], "seed": 1, "episodes_per_task": 7, "episodes_per_file": 3}
    assert random == {"share": 0.5, "kind": "random"}
    assert (planner["sha256"], planner["noise"]) == (file_sha256(model), 0.2)
    assert planner["planner"]["num_samples"] == 16
    assert entry["computing"]["num_threads"] == 1
    assert entry["players"] == ["0.5 random", f"0.5 planner {model} noise 0.2"]


def test_files_without_a_record_stay(tmp_path: Path) -> None:
    """Published files, and those of a deleted record."""
    collect(toy(), None, tmp_path)
    (tmp_path / "collect.json").unlink()
    (tmp_path / "chunk_1.pt").rename(tmp_path / "chunk_41.pt")
    before = chunks(tmp_path)
    paths = collect(toy(), None, tmp_path)
    assert paths[0].name == "chunk_42.pt"
    assert chunks(tmp_path).items() > before.items()


def test_reserved_numbers_are_not_given_twice(tmp_path: Path) -> None:
    """Also where a collection has none of its files yet."""
    for path in collect(toy(), None, tmp_path):
        path.unlink()
    assert collect(toy(seed=2), None, tmp_path)[0].name == "chunk_3.pt"
    assert collect(toy(), None, tmp_path)[0].name == "chunk_0.pt"


def test_another_task_set_is_refused(tmp_path: Path) -> None:
    collect(toy(), None, tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    message = r"holds data of task=tests.toy_envs:Stands-v0 \(1 tasks\), not of task=mt30 \(30 tasks\)"
    with pytest.raises(ValueError, match=message):
        collect(Config(tasks=("cup-spin",)), None, tmp_path)
    (tmp_path / "collect.json").unlink()
    with pytest.raises(ValueError, match=r"chunk_0\.pt has episodes of length 7, but the task set has 500"):
        collect(Config(tasks=("cup-spin",)), None, tmp_path)
    (tmp_path / "meta.json").touch()
    with pytest.raises(ValueError, match="is an episode store"):
        collect(toy(), None, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before - {"collect.json"} | {"meta.json"}


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is damaged"), ('{"format": 1}', "is damaged"), (None, "has format 2")]
)
def test_damaged_records_are_refused(text: str | None, message: str, tmp_path: Path) -> None:
    collect(toy(), None, tmp_path)
    record = tmp_path / "collect.json"
    record.write_text(text or record.read_text().replace('"format": 1', '"format": 2'))
    before = record.read_bytes()
    with pytest.raises(ValueError, match=rf"collect.json {message}"):
        collect(toy(), None, tmp_path)
    assert record.read_bytes() == before


def test_a_strange_file_under_a_planned_name(tmp_path: Path) -> None:
    collect(toy(), None, tmp_path)
    shutil.copy(tmp_path / "chunk_2.pt", tmp_path / "chunk_0.pt")
    with pytest.raises(ValueError, match=r"chunk_0.pt holds 1 episodes of task 0, but collect.json plans 3 of task 0"):
        collect(toy(), None, tmp_path)


def test_continuing_with_other_threads_is_refused(tmp_path: Path) -> None:
    """Their number decides the last bits of an agent's actions, and nothing of random ones."""
    agent = TDMPC2(toy())
    paths = collect(toy(), agent, tmp_path / "agent")
    random = collect(toy(), None, tmp_path / "random")
    expected = chunks(tmp_path / "random")
    torch.set_num_threads(2)
    try:
        assert collect(toy(), agent, tmp_path / "agent") == paths  # nothing to do
        paths[1].unlink()
        with pytest.raises(ValueError, match=r"was begun with num_threads=1, now it is num_threads=2, .*another seed"):
            collect(toy(), agent, tmp_path / "agent")
        random[1].unlink()
        collect(toy(), None, tmp_path / "random")
        assert chunks(tmp_path / "random") == expected
    finally:
        torch.set_num_threads(1)
    collect(toy(), agent, tmp_path / "agent")
    assert paths[1].exists()


def test_returns_are_read_back(tmp_path: Path) -> None:
    reported: list[float] = []
    cfg = toy()
    paths = collect(cfg, None, tmp_path, lambda shard, returns: reported.extend(returns))
    read = episode_returns(paths, cfg)
    assert list(read) == [STANDS]
    assert read[STANDS] == pytest.approx(reported, rel=1e-6)


# Disks


def test_too_small_a_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Config(tasks=("cup-spin", "pendulum-spin"), episodes_per_task=100)
    needed = 2 * 100 * 501 * 128  # bytes of the values
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, needed))
    with pytest.raises(ValueError, match=r"2 files with 0\.013 GB are to be collected, but .* has 0\.013 GB free"):
        collect(cfg, None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["collect.lock"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 20_000))
    collect(toy(), None, tmp_path)
    (tmp_path / "chunk_2.pt").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 0))
    with pytest.raises(ValueError, match="1 files with"):  # what is there needs no room
        collect(toy(), None, tmp_path)


def test_a_full_disk_loses_no_file(tmp_path: Path) -> None:
    """The files grow with their numbers of episodes here; the first that does not fit is the end."""
    cfg = Config(tasks=("pendulum-spin",), episodes_per_task=3, episodes_per_file=1)
    good = collect(cfg, None, tmp_path / "good")
    size = good[0].stat().st_size
    monster = cfg.replace(seed=2, episodes_per_task=2, episodes_per_file=2)
    before = chunks(tmp_path / "good")
    with largest_file(size + 1000), pytest.raises(ValueError, match=r"Could not write .*chunk_3.pt.*unchanged"):
        collect(monster, None, tmp_path / "good")
    assert chunks(tmp_path / "good") == before
    assert not list((tmp_path / "good").glob(".*"))
    assert collect(monster, None, tmp_path / "good")[0].name == "chunk_3.pt"


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"Could not write .*collect.lock"):
        collect(toy(), None, tmp_path / "file" / "data")


# Processes


COMMAND = "collect.py tasks=[pendulum-spin,cup-spin] episodes_per_task=40 episodes_per_file=2 data_dir=data"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A collection at work, with at least one file done."""
    script, *arguments = COMMAND.split()
    process = subprocess.Popen(
        [sys.executable, str(REPO / script), *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "data").glob("chunk_*.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_the_same_command_twice_at_once(running: subprocess.Popen[bytes], tmp_path: Path) -> None:
    cfg = Config(tasks=("pendulum-spin", "cup-spin"), episodes_per_task=40, episodes_per_file=2)
    with pytest.raises(ValueError, match=r"data: another process is collecting these episodes .*chunk_0.pt"):
        collect(cfg, None, tmp_path / "data")
    other = collect(cfg.replace(seed=2, episodes_per_task=1), None, tmp_path / "data")
    assert [path.name for path in other] == ["chunk_40.pt", "chunk_41.pt"]
    assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.wait()
    with FileLock(tmp_path / "data" / "collect_0.lock", timeout=0):
        pass  # nobody holds it
    assert len(chunks(tmp_path / "data")) < 42


def test_what_a_kill_leaves_is_removed(tmp_path: Path) -> None:
    paths = collect(toy(), None, tmp_path)
    expected = chunks(tmp_path)
    paths[1].unlink()
    (tmp_path / ".chunk_1.pt.0a0a0a0a.tmp").write_bytes(b"half")
    (tmp_path / ".chunk_11.pt.0a0a0a0a.tmp").write_bytes(b"of another collection")
    (tmp_path / ".collect.json.0a0a0a0a.tmp").write_bytes(b"half")
    collect(toy(), None, tmp_path)
    assert chunks(tmp_path) == expected
    collect(toy(seed=2), None, tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == [".chunk_11.pt.0a0a0a0a.tmp"]


@pytest.mark.slow
def test_killed_collections_finish_as_undisturbed_ones(tmp_path: Path) -> None:
    killed_at_random("collect", times=3, seed=1, root=tmp_path)
