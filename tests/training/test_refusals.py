"""Data and settings for which training refuses to start."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, parse_cfg
from tdmpc2.data.chunks import read_chunk, write_chunk
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.loading import load_agent
from tdmpc2.play.collector import collect
from tdmpc2.training.offline import train
from tdmpc2.training.preflight import preflight
from tests.helpers.runs import TINY
from tests.helpers.toy_envs import STANDS

pytestmark = pytest.mark.usefixtures("own_folder")


def broken(data_dir: Path, to: Path, name: str, index: tuple[int, ...], value: float) -> Path:
    """Copy the data and change one value of chunk 1, in the file only."""
    to.mkdir()
    shutil.copy(data_dir / "chunk_0.pt", to)
    chunk = read_chunk(data_dir / "chunk_1.pt")
    chunk[name] = chunk[name].clone()
    marker = 123456.0
    chunk[name][index] = marker
    write_chunk(to / "chunk_1.pt", **chunk)
    content = (to / "chunk_1.pt").read_bytes()
    needle, patch = np.float32(marker).tobytes(), np.float32(value).tobytes()
    assert content.count(needle) == 1
    (to / "chunk_1.pt").write_bytes(content.replace(needle, patch))
    return to


@pytest.mark.parametrize(
    ("name", "index"),
    [("obs", (1, 0, 3)), ("action", (2, 17, 0)), ("reward", (0, 500))],
    ids=["obs", "action", "reward"],
)
def test_train_on_nan_row_is_refused(
    cfg: Config, data_dir: Path, tmp_path: Path, name: str, index: tuple[int, ...]
) -> None:
    bad = broken(data_dir, tmp_path / "bad", name, index, float("nan"))
    episode, row = index[:2]
    with pytest.raises(ValueError, match=rf"chunk_1\.pt: {name} is nan in episode {episode}, row {row}"):
        train(cfg.replace(data_dir=str(bad)), None)
    assert not cfg.run_dir.exists()


def test_train_refused_for_data_leaves_directory_free(cfg: Config, tmp_path: Path) -> None:
    """After a refused command, the corrected one must not be taken for another run."""
    with pytest.raises(ValueError, match="cup-spin"):
        train(cfg.replace(tasks=("cup-spin",)), None)
    assert not cfg.run_dir.exists()
    train(cfg.replace(steps=1), None)


def test_train_lists_everything_missing_at_once(cfg: Config, tmp_path: Path) -> None:
    nowhere = {"data_dir": str(tmp_path / "none"), "checkpoint": str(tmp_path / "start.pt")}
    with pytest.raises(ValueError, match="something is missing") as error:
        train(cfg.replace(**nowhere), Config(checkpoint=None))
    text = str(error.value)
    assert [line.split(":")[0].strip() for line in text.splitlines()[1:]] == [
        "data_dir", "teacher", "weights to start from",
    ]  # fmt: skip
    assert "python collect.py" in text
    assert "teacher_config=null" in text
    assert not cfg.run_dir.exists()


def test_train_with_unplayable_evaluations_is_refused(
    cfg: Config, data_dir: Path, monkeypatch: pytest.MonkeyPatch, without_meta_world: None
) -> None:
    keys = {**TINY, "task": "mt80", "tasks": ("mw-reach",), "data_dir": str(data_dir), "eval_freq": 2}
    with pytest.raises(ValueError, match=r"evaluation: Task 'mw-reach'.*\(eval_freq=0 trains without\)"):
        train(Config(**keys), None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r"evaluation: save_video needs imageio"):
        train(cfg.replace(eval_freq=2, save_video=True), None)
    assert not cfg.run_dir.exists()
    train(cfg.replace(steps=1, eval_freq=2, save_video=True), None)  # no evaluation would be played


def test_train_on_data_of_other_lengths_is_refused(cfg: Config, tmp_path: Path) -> None:
    short = parse_cfg({"task": STANDS, "episodes_per_task": 2})
    collect(short, None, tmp_path / "short")
    with pytest.raises(ValueError, match="episodes of length 7, but the task set has 500"):
        train(cfg.replace(data_dir=str(tmp_path / "short")), None)


def test_agent_loaded_to_act_does_not_train(cfg: Config, data_dir: Path, tmp_path: Path) -> None:
    TDMPC2(cfg).save(tmp_path / "x.pt")
    agent = load_agent(tmp_path / "x.pt", device="cpu", precision="bf16")
    data = EpisodeDataset.load(data_dir, cfg.task_specs, cfg.task_ids)
    with pytest.raises(ValueError, match="use precision='fp32' to train"):
        agent.update(SliceSampler(data).draw(0, 4, 3, 0))
    with pytest.raises(ValueError, match="use precision='fp32' to load weights"):
        agent.load(tmp_path / "x.pt")  # copied into int8 they were all but zero
    with pytest.raises(ValueError, match="use precision='fp32' to save"):
        agent.save(tmp_path / "y.pt")
    assert not (tmp_path / "y.pt").exists()


def test_train_in_a_precision_of_files_that_are_played_is_refused(cfg: Config) -> None:
    """It was accepted, recorded as what a result depends on, and not read by anything."""
    for low in (cfg.replace(precision="int8"), parse_cfg({"task": "walker-walk", "precision": "int8"})):
        with pytest.raises(ValueError, match=r"precision=int8 is that of files that are played.*update_precision=bf16"):
            preflight(low, None)
