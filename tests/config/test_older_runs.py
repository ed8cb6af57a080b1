"""Runs and checkpoints that are older than some keys: they continue and load, or are refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.config import Config, completed, from_record
from tdmpc2.training import run_record

#: run.json as the version before the table of keys wrote it (685bc23), with num_samples=64, a mixture as text and a
#: buffer size.
RECORD: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "run_of_first_version.json").read_text())


@pytest.fixture
def run(tmp_path: Path) -> Config:
    """Return today's configuration of a run in ``tmp_path`` that an older version began."""
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    return Config(
        tasks=("pendulum-spin",), data_dir="data", work_dir=str(tmp_path), device="cpu", num_threads=1, steps=2,
        batch_size=8, eval_freq=0, num_samples=64, num_elites=64, num_pi_trajs=24, mix=["1 random"],
        buffer_size=60_000,
    )  # fmt: skip


def test_older_record_is_completed() -> None:
    assert "mode" not in RECORD
    now = completed(RECORD)
    assert now.keys() == {*Config().to_dict(), "teacher_sha256", "data"}
    assert (now["mode"], now["policy_loss"], now["num_elites"]) == ("offline", "opt", 64)
    assert now["mix"] == [{"share": 1.0, "kind": "random", "checkpoint": None, "noise": None}]
    assert now["data"] == RECORD["data"]


def test_older_run_continues_without_a_difference(run: Config) -> None:
    _, note = run_record.check(run.replace(save_freq=50_000), None, RECORD["data"])  # its default
    assert note == f"Continuing with other settings: work_dir: golden there, {run.work_dir} now"


def test_older_run_continues_with_the_elites_of_today(run: Config) -> None:
    """The command line now implies fewer elites than it did; no update reads them, so a note suffices."""
    _, note = run_record.check(run.replace(num_elites=None, num_pi_trajs=None), None, RECORD["data"])
    assert "num_elites: 64 there, 8 now; num_pi_trajs: 24 there, 3 now" in note


def test_older_run_of_another_configuration_is_refused(run: Config) -> None:
    with pytest.raises(ValueError, match=r"holds a run of another configuration \(lr: 0\.0003 there, 0\.001 now\)"):
        run_record.check(run.replace(lr=1e-3), None, RECORD["data"])


def test_record_that_is_refused_today_names_the_reason(run: Config) -> None:
    (run.run_dir / "run.json").write_text(json.dumps({**RECORD, "enc_dim": 512}))
    with pytest.raises(ValueError, match=r"run\.json cannot be continued by this version \(enc_dim=512 beside"):
        run_record.check(run, None, RECORD["data"])


def test_key_that_is_no_more_is_refused_with_its_name(run: Config) -> None:
    (run.run_dir / "run.json").write_text(json.dumps({**RECORD, "old_key": 3}))
    with pytest.raises(ValueError, match=r"another configuration \(old_key: 3 there, null now\)"):
        run_record.check(run, None, RECORD["data"])


def test_older_checkpoint_configuration_is_read() -> None:
    """A checkpoint of the older version holds the same keys except those of the run."""
    cfg = from_record(RECORD)
    assert (cfg.model_size, cfg.enc_dim, cfg.task_dim) == (1, 256, 96)
    assert cfg.replace(num_samples=32).num_elites == 32


@pytest.mark.parametrize("obs", ["state", "rgb"])
def test_older_run_of_images_has_an_encoder_as_it_began(tmp_path: Path, obs: str) -> None:
    """A report told it from none of the later runs, whose encoders are scaled; the same command goes on."""
    cfg = Config(task="cup-catch", mode="online", obs=obs, work_dir=str(tmp_path))
    record = {**cfg.to_dict(), "data": None, "teacher_sha256": None}
    del record["fit_encoder"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert from_record(record).fit_encoder is (obs == "state")
    run_record.check(cfg, None, None)


def test_older_record_of_a_policy_alone_may_have_a_budget_of_plans() -> None:
    cfg = Config(task="cup-catch", mode="online", mpc=False)
    assert from_record({**cfg.to_dict(), "collect_num_samples": 64}) == cfg
