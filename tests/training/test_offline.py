"""Offline training on data from the real collector: learning and the files of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import RUN_KEYS, Config, key_names, parse_cfg
from tdmpc2.data.store.selection import chunk_fingerprints
from tdmpc2.loading import load_agent
from tdmpc2.play.collector import collect
from tdmpc2.support.names import safe_name
from tdmpc2.training.offline import train
from tests.helpers.runs import TASKS, TINY, equal, rows
from tests.helpers.toy_envs import STANDS

pytestmark = pytest.mark.usefixtures("own_folder")


def test_train_lowers_losses(cfg: Config) -> None:
    train(cfg.replace(steps=200, log_freq=1, lr=1e-3, batch_size=64), None)
    log = rows(cfg.run_dir / "train.csv")
    assert [row["step"] for row in log] == list(range(1, 201))
    for name in ("total_loss", "reward_loss", "value_loss"):
        values = [row[name] for row in log]
        assert np.mean(values[-20:]) < 0.9 * np.mean(values[:20]), name
    assert all(np.isfinite(list(row.values())).all() for row in log)
    assert "distillation_loss" not in log[0]


def test_train_writes_the_files_of_a_run(cfg: Config) -> None:
    path = train(cfg, None)
    assert path == cfg.run_dir / "model.pt"
    names = ["model.pt", "run.json", "speed.csv", "state.pt", "train.csv", "train.log"]
    assert sorted(p.name for p in cfg.run_dir.iterdir()) == names
    record = json.loads((cfg.run_dir / "run.json").read_text())
    assert record.pop("teacher_sha256") is None
    assert record.pop("data") == chunk_fingerprints(cfg.data_dir)
    assert Config(**record) == cfg
    stored = load_file(path)
    assert stored.step == 20
    assert stored.config is not None
    assert stored.config.keys() == {*key_names(), "task_specs"} - RUN_KEYS  # keys of the agent, not of its run
    agent = load_agent(path, device="cpu")
    assert agent.cfg.tasks == TASKS  # evaluated on what it was trained on
    assert agent.cfg.replace(**{key: getattr(cfg, key) for key in ("data_dir", "work_dir", "steps", "batch_size",
        "log_freq", "eval_freq", "num_threads")}) == cfg  # fmt: skip
    assert [row["step"] for row in rows(cfg.run_dir / "train.csv")] == [5, 10, 15, 20]


def test_load_agent_of_run_takes_tasks_and_overrides(cfg: Config) -> None:
    path = train(cfg.replace(steps=1), None)
    for task, expected in (("mt30", None), ("cup-spin", ("cup-spin",)), (None, TASKS)):
        assert load_agent(path, device="cpu", **({"task": task} if task else {})).cfg.tasks == expected
    agent = load_agent(path, device="cpu", num_samples=12, seed=9)
    elites = 3  # in the file's proportion, 4 of 16
    assert (agent.cfg.num_samples, agent.cfg.seed, agent.cfg.num_elites) == (12, 9, elites)
    with pytest.raises(ValueError, match=r"Unknown key 'num_sample' in the overrides. Did you mean 'num_samples'\?"):
        load_agent(path, device="cpu", num_sample=12)


def test_train_seed_decides_the_weights(cfg: Config, tmp_path: Path) -> None:
    first = train(cfg, None)
    second = train(cfg.replace(work_dir=str(tmp_path / "same")), None)
    other = train(cfg.replace(work_dir=str(tmp_path / "other"), seed=2), None)
    assert equal(first, second)
    assert not equal(first, other)


def test_train_with_evaluations_gives_equal_weights(cfg: Config, tmp_path: Path) -> None:
    cfg = cfg.replace(steps=6, tasks=("pendulum-spin",), mpc=False, eval_episodes=2)
    quiet = train(cfg, None)
    watched = train(cfg.replace(work_dir=str(tmp_path / "watched"), eval_freq=4), None)
    assert equal(quiet, watched)
    log = rows(tmp_path / "watched" / "eval.csv")
    assert [row["step"] for row in log] == [4]
    assert all(row["low"] <= row["normalized_score"] <= row["high"] for row in log)
    table = (tmp_path / "watched" / "eval_tasks.csv").read_text().splitlines()
    assert table[0] == "step,task,episodes,return,success"
    assert table[1].startswith("4,pendulum-spin,2,")


def test_evaluation_of_one_episode_has_no_interval(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """The score of one episode used to be shown with an interval from that score to itself."""
    train(cfg.replace(steps=2, tasks=("pendulum-spin",), mpc=False, eval_episodes=1, eval_freq=2), None)
    assert list(rows(cfg.run_dir / "eval.csv")[0]) == ["step", "normalized_score"]
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("eval: step 2"))
    assert "low" not in line


def test_train_with_failing_evaluation_keeps_checkpoint(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(cfg.replace(work_dir=str(tmp_path / "straight"), steps=8), None)
    cfg = cfg.replace(steps=8, eval_freq=4, save_freq=4)
    monkeypatch.setattr("tdmpc2.training.offline.evaluate", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(cfg, None)
    assert load_file(cfg.run_dir / "model.pt").step == 4
    assert equal(train(cfg.replace(eval_freq=0), None), straight)


def test_train_with_videos_writes_them(data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="videos need imageio-ffmpeg")
    keys = {**TINY, "task": STANDS, "tasks": None, "steps": 2, "eval_freq": 2, "horizon": 2, "episodes_per_task": 2}
    cfg = parse_cfg({**keys, "data_dir": tmp_path / "data", "work_dir": tmp_path / "run", "save_video": True})
    collect(cfg, None, Path(cfg.data_dir))
    train(cfg, None)
    assert [path.name for path in (cfg.run_dir / "videos").iterdir()] == [f"{safe_name(STANDS)}-2.mp4"]


def test_train_without_saving_leaves_no_checkpoint(cfg: Config) -> None:
    train(cfg.replace(save_agent=False, save_csv=False), None)
    assert [path.name for path in cfg.run_dir.iterdir()] == ["run.json"]
