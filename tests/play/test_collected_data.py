"""Collected chunk files hold what was played."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import Config, parse_cfg
from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.chunks import read_chunk
from tdmpc2.data.store.parts import Part
from tdmpc2.data.tools.convert import to_store
from tdmpc2.data.tools.verify import verify
from tdmpc2.play.collector import collect, episode_returns
from tdmpc2.training.offline import train
from tests.helpers.playing import SMALL_AGENT, by_hand
from tests.helpers.runs import TASKS, TINY, snapshot
from tests.helpers.toy_envs import FALLS, FALLS_AT, STANDS, STANDS_FOR

pytestmark = pytest.mark.usefixtures("own_folder")


def test_collect_chunks_hold_what_was_played(data_dir: Path) -> None:
    """A file's actions, played again with its seed, give its observations and rewards."""
    cfg = Config(tasks=TASKS, episodes_per_task=3)
    assert sorted(path.name for path in data_dir.glob("chunk*")) == ["chunk_0.pt", "chunk_1.pt"]
    for number, task_id in enumerate(cfg.task_ids):
        spec = cfg.task_specs[task_id]
        chunk = read_chunk(data_dir / f"chunk_{number}.pt")
        assert chunk["obs"].shape == (3, 501, 24)
        assert (chunk["task"] == task_id).all()
        assert (chunk["action"][:, 1:, spec.action_dim :] == 0).all()
        assert len(chunk["obs"][:, 0].unique(dim=0)) == 3  # every episode has its own seed
        seed = int(np.random.SeedSequence((cfg.seed, number)).generate_state(2)[1])
        observations, rewards, *_ = by_hand(spec, seed, list(chunk["action"][0, 1:].numpy()))
        np.testing.assert_array_equal(chunk["obs"][0, :, : spec.obs_dim], observations)
        np.testing.assert_array_equal(chunk["reward"][0, 1:], rewards.astype(np.float32))


def test_collect_with_other_seed_adds_other_episodes(data_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(data_dir, tmp_path / "data")
    before = snapshot(tmp_path / "data")
    del before["collect.json"]  # the next collection extends it
    cfg = Config(tasks=("pendulum-spin",), episodes_per_task=1)
    returns: dict[str, np.ndarray] = {}
    paths = collect(cfg, None, tmp_path / "data", lambda shard, values: returns.update({shard.task: values}))
    assert [path.name for path in paths] == ["chunk_2.pt"]
    assert snapshot(tmp_path / "data").items() > before.items()
    new, old = read_chunk(paths[0]), read_chunk(tmp_path / "data" / "chunk_0.pt")
    assert not (new["obs"][0, 0] == old["obs"][:, 0]).all(1).any()
    assert returns["pendulum-spin"] == pytest.approx(new["reward"][:, 1:].sum(1).numpy(), rel=1e-4)
    assert collect(cfg, None, tmp_path / "other")[0].read_bytes() != paths[0].read_bytes()


def test_collect_chunk_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    cfg = parse_cfg({"task": STANDS, "episodes_per_task": 20})
    (first,), (same,) = (collect(cfg, None, tmp_path / name) for name in "ab")
    (other,) = collect(cfg.replace(seed=2**31 - 1), None, tmp_path / "c")
    assert first.read_bytes() == same.read_bytes()
    assert (read_chunk(first)["obs"][0, 0] != read_chunk(other)["obs"][0, 0]).any()
    assert read_chunk(first)["obs"].shape == (20, STANDS_FOR + 1, 4)


def test_collect_with_agent_adds_noise(tmp_path: Path) -> None:
    cfg = parse_cfg({"task": STANDS, "episodes_per_task": 4, **{k: v for k, v in TINY.items() if k != "tasks"}})
    agent = TDMPC2(cfg)
    (first,), (same,) = (collect(cfg, agent, tmp_path / name) for name in "ab")
    assert first.read_bytes() == same.read_bytes()
    assert read_chunk(first)["action"][:, 1:].abs().max() <= 1


def test_collect_of_episodes_that_terminate_keeps_their_ends(tmp_path: Path) -> None:
    """An environment that terminates used to be refused, since all episodes had to have one length."""
    cfg = parse_cfg({"task": FALLS, "episodes_per_task": 5, "episodes_per_file": 3})
    paths = collect(cfg, None, tmp_path / "data")
    part = Part.of_chunk(paths[0], Layout.of(cfg.task_specs))
    assert part.index.lengths.tolist() == [FALLS_AT] * 3
    assert part.index.terminated.tolist() == [True] * 3
    assert part.read(torch.arange(3))["obs"][:, -1, 1].tolist() == [FALLS_AT] * 3
    first = [path.read_bytes() for path in paths]
    paths[0].unlink()
    assert collect(cfg, None, tmp_path / "data") == paths  # continued
    assert [path.read_bytes() for path in paths] == first
    assert not verify(tmp_path / "data").problems
    assert {name: len(returns) for name, returns in episode_returns(paths, cfg).items()} == {FALLS: 5}


def test_collect_of_inverted_pendulum_and_training_on_it(tmp_path: Path) -> None:
    """Random episodes of this Gymnasium environment have some ten steps of at most a thousand."""
    task = "InvertedPendulum-v5"
    data_dir = tmp_path / "data"
    collect(parse_cfg({"task": task, "episodes_per_task": 12}), None, data_dir)
    store = to_store([str(data_dir)], tmp_path / "store")
    assert store.index.terminated.all()
    assert len(store.index.lengths.unique()) > 1
    assert store.meta.files["rows.npy"].bytes < 60_000  # far less than a thousand steps need
    train(
        parse_cfg(
            {
                **SMALL_AGENT, "task": task, "data_dir": str(store.path), "episodic": True, "horizon": 2, "steps": 3,
                "batch_size": 4, "eval_freq": 0, "work_dir": str(tmp_path / "run"), "compile": "false", "num_q": 2,
            }
        ),
        None,
    )  # fmt: skip
    assert "_termination.2.weight" in load_file(tmp_path / "run" / "model.pt").model


def test_collect_of_long_mt80_task_is_cut(tmp_path: Path) -> None:
    (path,) = collect(Config(task="mt80", tasks=("pendulum-spin",), episodes_per_task=2), None, tmp_path)
    assert read_chunk(path)["obs"].shape == (2, 101, 39)
