"""The replay buffer of a run, converted to an episode store for training and as demonstrations."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2.commands.data import main as data_command
from tdmpc2.config import Config, parse_cfg
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.episodes import write_episodes
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.tools.convert import to_store
from tdmpc2.data.tools.verify import verify
from tdmpc2.envs import task_spec
from tdmpc2.tasks import MT30
from tdmpc2.training.offline import train
from tdmpc2.training.online import train_online
from tdmpc2.training.ring import plan_ring
from tdmpc2.training.run_dir import lock
from tdmpc2.training.saved_replay import replay_to_store
from tests.helpers.data_command import flip
from tests.helpers.online import config
from tests.helpers.toy_envs import FALLS, FALLS_AT, STANDS_FOR

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Train a run whose environment terminates and whose buffer has dropped its oldest episodes."""
    cfg = config(tmp_path_factory.mktemp("played"), FALLS, episodic=True, buffer_size=25, save_freq=9)
    train_online(cfg, None)
    return cfg


def test_replay_buffer_becomes_a_store(played: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_command(["from-run", str(played.run_dir), str(tmp_path / "store")])
    assert f"{tmp_path}/store: episode store, float32, 6 episodes" in capsys.readouterr().out
    store = EpisodeStore.open(tmp_path / "store")
    assert not verify(store.path).problems
    assert store.index.lengths.tolist() == [FALLS_AT] * 6  # the newest that 25 rows hold
    assert store.index.terminated.all()
    assert store.meta.tasks == played.task_specs
    obs = EpisodeDataset.map(store).obs.view(6, FALLS_AT + 1, 4)
    assert obs[:, :, 1].tolist() == [list(range(FALLS_AT + 1))] * 6
    saved = torch.load(played.run_dir / "state.pt", weights_only=True)["parts"]["replay"]
    last = torch.load(played.run_dir / "replay" / saved["files"][-1]["name"], weights_only=True)
    assert torch.equal(store.read(5, 1)[:, :4], last["rows"][-FALLS_AT - 1 :, :4])


def test_disk_that_a_buffer_takes_is_counted_with_files_that_are_deleted_later(played: Config) -> None:
    """Of episodes that were dropped a file lies there until the next save."""
    files = sum(path.stat().st_size for path in (played.run_dir / "replay").glob("episodes_*.pt"))
    plan = plan_ring(played, torch.device("cpu"))
    assert plan.bytes < plan.file_bytes
    words = torch.load(played.run_dir / "state.pt", weights_only=True)["parts"]["replay"]["files"]
    kept = sum(len(torch.load(played.run_dir / "replay" / file["name"])["rows"]) for file in words)
    assert plan.bytes < kept * 4 * plan.row_format.words <= plan.file_bytes
    assert files > plan.bytes
    roomy = played.replace(buffer_size=10_000)
    assert plan_ring(roomy, torch.device("cpu")).file_bytes == plan_ring(roomy, torch.device("cpu")).bytes


def test_buffer_holds_what_the_run_can_fill() -> None:
    """It was planned for episodes of one step: twice the memory, where TD-MPC2's tasks have 500."""
    for task, rows in (("cup-catch", 500_001 + 1_001 + 1), (FALLS, 1_000_000)):
        cfg = parse_cfg({"task": task, "mode": "online", "steps": 500_000})
        assert plan_ring(cfg, torch.device("cpu")).capacity == rows


def test_stored_replay_buffer_is_data_and_demonstrations(played: Config, tmp_path: Path) -> None:
    """Offline training and demonstrations can both use the episodes of an online run."""
    store = replay_to_store(played.run_dir, tmp_path / "store", dtype="float16", quiet=True)
    train(played.replace(mode="offline", data_dir=str(store.path), work_dir=str(tmp_path / "offline"), steps=2), None)
    train_online(played.replace(demonstrations=str(store.path), work_dir=str(tmp_path / "again"), steps=25), None)
    assert (tmp_path / "again" / "model.pt").exists()


def test_episodes_that_never_terminate_give_a_store_of_the_former_format(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    train_online(cfg, None)
    store = replay_to_store(cfg.run_dir, tmp_path / "store", quiet=True)
    assert store.meta.format == 1
    assert store.rows.shape[1] == STANDS_FOR + 1


def test_run_of_one_task_is_stored_as_part_of_a_set(tmp_path: Path) -> None:
    """It has the ids and padding of the set, so that it merges with what others have played."""
    cfg = config(tmp_path, "pendulum-spin", seed_steps=5, steps=501)
    train_online(cfg, None)
    alone = replay_to_store(cfg.run_dir, tmp_path / "alone", quiet=True)
    store = replay_to_store(cfg.run_dir, tmp_path / "part", quiet=True, task_set="mt30")
    assert store.meta.tasks == tuple(map(task_spec, MT30))
    assert store.index.task.tolist() == [MT30.index("pendulum-spin")]
    episode, own = (EpisodeDataset.map(data) for data in (store, alone))
    assert torch.equal(episode.obs[..., :3], own.obs)
    assert not episode.obs[..., 3:].any()
    assert torch.equal(episode.action[:, 1:, :1], own.action[:, 1:])
    assert not episode.action[:, 1:, 1:].any()
    assert episode.action[:, 0].isnan().all() == own.action[:, 0].isnan().all()
    assert torch.equal(episode.reward[:, 1:], own.reward[:, 1:])
    assert not verify(store.path).problems
    more = tmp_path / "more"
    write_episodes(more, "cup-catch", [(np.zeros((501, 8)), np.zeros((500, 2)), np.ones(500))], task_set="mt30")
    assert to_store([str(store.path), str(more)], tmp_path / "both").meta.episodes == 2

    back = replay_to_store(
        cfg.run_dir, tmp_path / "set", quiet=True, task_set=_set(tmp_path, "pendulum-spin", "cup-catch")
    )
    assert (back.meta.task, back.index.task.tolist()) == ("mine", [0])


def _set(directory: Path, *tasks: str) -> str:
    file = directory / "mine.yaml"
    file.write_text(f"tasks: {list(tasks)}")
    return str(file)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"task_set": "mt3"}, "task_set='mt3' is not one of mt30, mt80. Did you mean 'mt30'"),
        ({"task_set": "mt30"}, f"'{FALLS}' is not a task of mt30."),
        ({"task_set": "mt30", "alone": True}, "alone=true makes data of one task, and task_set of a set"),
    ],
)
def test_set_that_cannot_hold_a_run_is_refused(
    played: Config, tmp_path: Path, words: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replay_to_store(played.run_dir, tmp_path / "store", quiet=True, **words)
    assert not (tmp_path / "store").exists()


def _damaged(cfg: Config) -> None:
    flip(next((cfg.run_dir / "replay").glob("episodes_*.pt")), -300)


REFUSED: dict[str, tuple[dict[str, Any], Callable[[Config], Any], str]] = {
    "missing file": ({}, lambda cfg: next((cfg.run_dir / "replay").glob("episodes_*.pt")).unlink(), "is missing"),
    "damaged file": ({}, _damaged, r"episodes_\d\.pt"),
    "no state": ({}, lambda cfg: (cfg.run_dir / "state.pt").unlink(), r"state\.pt"),
    "no run": ({}, lambda cfg: (cfg.run_dir / "run.json").unlink(), r"has no run\.json: name the directory of a run"),
    "no episode yet": ({"steps": 5}, lambda cfg: None, "has saved no whole episode yet"),
    "store is there": ({}, lambda cfg: (cfg.run_dir.parent / "store").mkdir(), "store exists: name another directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_run_without_a_buffer_to_store_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    keys, damage, message = REFUSED[case]
    cfg = config(tmp_path, **{"steps": 22, **keys})
    train_online(cfg, None)
    damage(cfg)
    with pytest.raises(ValueError, match=message) as error:
        replay_to_store(cfg.run_dir, tmp_path / "store", quiet=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "store" / "meta.json").exists()


def test_run_that_is_going_on_is_not_read(played: Config, tmp_path: Path) -> None:
    """The run's next save might delete files while they are read."""
    with lock(played.run_dir), pytest.raises(ValueError, match="Another process is training in"):
        replay_to_store(played.run_dir, tmp_path / "store", quiet=True)


def test_run_that_learned_offline_has_no_buffer(tmp_path: Path, cfg: Config) -> None:
    train(cfg.replace(steps=1), None)
    with pytest.raises(ValueError, match="learned offline and has no replay buffer: its data are in"):
        replay_to_store(cfg.run_dir, tmp_path / "store", quiet=True)
