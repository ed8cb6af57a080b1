"""Writing a user's own episodes as data: what is stored and what is refused."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tdmpc2.data
from examples import own_data
from tdmpc2.config import parse_cfg
from tdmpc2.data import EpisodeDataset, import_episodes, write_episodes
from tdmpc2.data.chunks import read_chunk
from tdmpc2.data.source import tasks_present
from tdmpc2.data.tools.convert import to_store
from tdmpc2.tasks import MT30, lookup
from tests.helpers.data import SPECS, fields, save_raw
from tests.helpers.reference import REPO
from tests.helpers.toy_envs import FALLS, STANDS

T, OBS, A = 7, 4, 2  # of the toy environment STANDS


def episode(seed: int = 0, steps: int = T, obs_dim: int = OBS, action_dim: int = A) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((steps + 1, obs_dim)),
        rng.uniform(-1, 1, (steps, action_dim)),
        rng.standard_normal(steps),
    ]


def test_written_episodes_are_read_as_given(tmp_path: Path) -> None:
    """Users had to find the file's layout and types by trial and error before ``write_episodes`` existed."""
    logs = [episode(0), episode(1)]
    assert write_episodes(tmp_path, STANDS, logs) == tmp_path / "chunk_0.pt"
    cfg = parse_cfg({"task": STANDS, "data_dir": str(tmp_path)})
    data = EpisodeDataset.load(tmp_path, cfg.task_specs, cfg.task_ids)
    for number, (obs, action, reward) in enumerate(logs):
        np.testing.assert_array_equal(data.obs[number], obs.astype(np.float32))
        np.testing.assert_array_equal(data.action[number, 1:], action.astype(np.float32))
        np.testing.assert_array_equal(data.reward[number, 1:], reward.astype(np.float32))
    assert data.action[:, 0].isnan().all()


def test_rewards_follow_their_actions(tmp_path: Path) -> None:
    """Row t holds what led to observation t: reward[0] belongs to action[0] and obs[1]."""
    obs, action, reward = np.zeros((T + 1, OBS)), np.zeros((T, A)), np.zeros(T)
    obs[1], action[0], reward[0] = 1, 0.5, 7
    write_episodes(tmp_path, STANDS, [(obs, action, reward)])
    chunk = read_chunk(tmp_path / "chunk_0.pt")
    assert chunk["obs"][0, 1].tolist() == [1] * OBS
    assert chunk["action"][0, 1].tolist() == [0.5] * A
    assert chunk["reward"][0, 1] == 7


def test_each_call_adds_a_file(tmp_path: Path) -> None:
    paths = [write_episodes(tmp_path, STANDS, [episode(seed)]) for seed in range(3)]
    assert [path.name for path in paths] == ["chunk_0.pt", "chunk_1.pt", "chunk_2.pt"]
    assert tasks_present(tmp_path) == {STANDS: 3}


def test_calls_at_the_same_time_write_different_files(tmp_path: Path) -> None:
    threads = [threading.Thread(target=write_episodes, args=(tmp_path, STANDS, [episode(seed)])) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tasks_present(tmp_path) == {STANDS: 6}
    assert not list(tmp_path.glob("*.tmp"))


def test_number_types_are_converted(tmp_path: Path) -> None:
    obs, action, reward = np.ones((T + 1, OBS), np.int64), torch.zeros(T, A), [True] * T
    write_episodes(tmp_path, STANDS, [(obs, action, reward)])
    chunk = read_chunk(tmp_path / "chunk_0.pt")
    assert chunk["reward"].dtype == torch.float32
    assert chunk["reward"][0, 1:].tolist() == [1] * T


def test_episodes_of_a_task_set_are_padded_and_have_its_id(tmp_path: Path) -> None:
    spec = lookup("cup-spin")
    write_episodes(tmp_path, "cup-spin", [episode(0, 500, spec.obs_dim, spec.action_dim)], task_set="mt30")
    cfg = parse_cfg({"task": "mt30", "tasks": ["cup-spin"]})
    data = EpisodeDataset.load(tmp_path, cfg.task_specs, cfg.task_ids)
    assert data.task.tolist() == [MT30.index("cup-spin")]
    assert data.obs.shape == (1, 501, 24)
    assert not data.obs[..., spec.obs_dim :].any()
    assert not data.action[:, 1:, spec.action_dim :].any()
    assert tasks_present(tmp_path) == {"cup-spin": 1}


def test_long_episodes_of_a_mixed_set_are_whole(tmp_path: Path) -> None:
    """Four fifths of an episode, and that it terminated, were lost without a word."""
    spec, specs = lookup("cup-spin"), parse_cfg({"task": "mt80"}).task_specs
    whole = episode(0, 500, spec.obs_dim, spec.action_dim)
    write_episodes(tmp_path, "cup-spin", [whole], task_set="mt80", terminated=[True])
    assert read_chunk(tmp_path / "chunk_0.pt")["reward"].shape == (501,)
    store = import_episodes([tmp_path], tmp_path / "store", "mt80", specs, quiet=True)
    assert (store.index.lengths.tolist(), store.index.terminated.tolist()) == ([500], [True])


def test_episodes_of_tensors_of_any_kind_are_written(tmp_path: Path) -> None:
    obs, action, reward = (torch.from_numpy(np.asarray(part, np.float32)) for part in episode(0))
    write_episodes(tmp_path, STANDS, [(obs.requires_grad_(), action.bfloat16(), reward.half())])
    assert read_chunk(tmp_path / "chunk_0.pt")["action"].dtype == torch.float32


def test_written_episodes_become_a_store(tmp_path: Path) -> None:
    write_episodes(tmp_path / "data", STANDS, [episode(0)])
    specs = parse_cfg({"task": STANDS}).task_specs
    store = import_episodes([tmp_path / "data"], tmp_path / "store", STANDS, specs, quiet=True)
    assert isinstance(store, tdmpc2.data.EpisodeStore)
    assert tasks_present(tmp_path / "store") == {STANDS: 1}


def _change(part: int, index: tuple[int, ...], value: float) -> list[np.ndarray]:
    parts = episode()
    parts[part][index] = value
    return parts


REFUSED: dict[str, tuple[Any, str]] = {
    "not three": ([np.zeros(3)] * 2, r"episodes\[1\] must be \(obs, action, reward\)"),
    "long": (episode(steps=8), r"episodes\[1\] has 8 actions, but episodes of '.*Stands-v0' have 1 to 7 steps"),
    "no step": (episode(steps=0), r"episodes\[1\] has 0 actions"),
    "obs as many as actions": (
        [np.zeros((T, OBS)), np.zeros((T, A)), np.zeros(T)],
        r"obs has shape \(7, 4\), expected \(8, 4\).*one more than actions",
    ),
    "obs size": (episode(obs_dim=3), r"obs has shape \(8, 3\), expected \(8, 4\)"),
    "action size": (episode(action_dim=1), r"action has shape \(7, 1\), expected \(7, 2\)"),
    "reward column": ([*episode()[:2], np.zeros((T, 1))], r"reward has shape \(7, 1\), expected \(7,\)"),
    "nan": (_change(0, (3, 1), np.nan), r"episodes\[1\]: obs\[3, 1\] is nan"),
    "too large": (_change(2, (6,), 1e300), r"reward\[6\] is inf as float32"),
    "action outside": (_change(1, (2, 1), -1.5), r"an action is 1.5, but actions must lie in \[-1, 1\]: scale"),
    "text": ([np.full((T + 1, OBS), "x"), *episode()[1:]], "obs is of type <U1, expected real numbers"),
    "ragged": ([[[1.0], [1.0, 2.0]], *episode()[1:]], "obs is no array"),
    "scalar": ([0.0, 0.0, 0.0], r"obs has shape \(\), expected"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_episode_is_refused_and_nothing_written(tmp_path: Path, case: str) -> None:
    bad, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        write_episodes(tmp_path / "data", STANDS, [episode(), bad])
    assert not (tmp_path / "data").exists()


def test_rounding_above_one_is_cut(tmp_path: Path) -> None:
    write_episodes(tmp_path, STANDS, [_change(1, (0, 0), 1 + 1e-6)])
    assert read_chunk(tmp_path / "chunk_0.pt")["action"][0, 1, 0] == 1


def test_episodes_that_end_early_are_kept_with_their_ends(tmp_path: Path) -> None:
    """Logs of a robot that falls, or whose recording was stopped, have different lengths."""
    logs = [episode(0, 3), episode(1), episode(2, 5)]
    write_episodes(tmp_path, STANDS, logs, terminated=[True, False, False])
    cfg = parse_cfg({"task": STANDS})
    data = EpisodeDataset.load(tmp_path, cfg.task_specs, cfg.task_ids, terminations=True)
    assert data.lengths.tolist() == [3, T, 5]
    assert data.terminated is not None
    assert data.terminated.tolist() == [True, False, False]
    np.testing.assert_array_equal(data.obs[-6:], logs[2][0].astype(np.float32))
    with pytest.raises(ValueError, match="terminated has 1 entries for 3 episodes"):
        write_episodes(tmp_path, STANDS, logs, terminated=[True])


def test_no_episodes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no episodes of .* to write"):
        write_episodes(tmp_path, STANDS, [])


@pytest.mark.parametrize(
    ("task", "task_set", "message"),
    [
        ("walker-wlak", None, "Did you mean 'walker-walk'"),
        ("walker-walk", "mt3", "task_set='mt3' is not one of mt30, mt80. Did you mean 'mt30'"),
        ("cup-spinn", "mt30", "'cup-spinn' is not a task of mt30. Did you mean 'cup-spin'"),
    ],
)
def test_unknown_task_is_refused(tmp_path: Path, task: str, task_set: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_episodes(tmp_path, task, [episode()], task_set=task_set)


def test_directory_of_other_data_is_refused(tmp_path: Path) -> None:
    write_episodes(tmp_path, STANDS, [episode()])
    with pytest.raises(ValueError, match=r"holds data of task=.*Stands-v0"):
        write_episodes(tmp_path, FALLS, [episode(steps=9)])
    assert [path.name for path in tmp_path.glob("chunk_*.pt")] == ["chunk_0.pt"]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_task_ids_of_other_integers_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    """A hand-made file with int64 ids, numpy's default, used to be refused."""
    data = fields([0, 0])
    save_raw(tmp_path / "chunk_0.pt", {**data, "task": data["task"].to(dtype)})
    assert EpisodeDataset.load(tmp_path, SPECS, (0,)).task.tolist() == [0, 0]


def test_task_ids_that_fit_no_set_are_refused_not_cut(tmp_path: Path) -> None:
    data = fields([0, 0])
    save_raw(tmp_path / "chunk_0.pt", {**data, "task": data["task"].long() + 2**32})
    with pytest.raises(ValueError, match="the task id is 4294967296 in episode 0"):
        EpisodeDataset.load(tmp_path, SPECS, (0,))


def test_importing_the_package_stays_cheap() -> None:
    """Importing ``tdmpc2.data`` loads neither torch nor torchrl; its names are resolved on first use."""
    code = (
        "import sys, tdmpc2.data; print([name for name in ('torch', 'torchrl', 'tensordict') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_example_of_own_data_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(own_data, "STEPS", 20)
    own_data.main(tmp_path)
    out = capsys.readouterr().out
    assert "read: 20 episodes" in out
    assert "trained; its action in the first state:" in out
    assert (tmp_path / "run" / "model.pt").exists()
    own_data.main(tmp_path)  # adds no second copy of the episodes
    assert "read: 20 episodes" in capsys.readouterr().out


def test_episodes_are_added_beside_files_with_padded_numbers(tmp_path: Path) -> None:
    """chunk_00.pt was read as chunk_0.pt, which is not there, and said to be a broken download."""
    write_episodes(tmp_path, STANDS, [episode(0)])
    (tmp_path / "chunk_0.pt").rename(tmp_path / "chunk_00.pt")
    (tmp_path / "collect.json").unlink()
    assert write_episodes(tmp_path, STANDS, [episode(1)]).name == "chunk_1.pt"


def test_conversion_of_a_pattern_takes_the_tasks_that_there_are(tmp_path: Path) -> None:
    spec = lookup("walker-walk")
    write_episodes(tmp_path / "data", "walker-walk", [episode(0, 500, spec.obs_dim, spec.action_dim)], task_set="mt30")
    store = to_store([str(tmp_path / "data")], tmp_path / "store", tasks=["walker-*"])
    assert store.task.tolist() == [MT30.index("walker-walk")]
    with pytest.raises(ValueError, match=r"has no episodes of a task that cheetah-\* matches"):
        to_store([str(tmp_path / "data")], tmp_path / "other", tasks=["cheetah-*"])
    with pytest.raises(ValueError, match="has no episodes of walker-run"):
        to_store([str(tmp_path / "data")], tmp_path / "other", tasks=["walker-run"])
