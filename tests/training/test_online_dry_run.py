"""Dry runs of learning online: an estimate that writes nothing."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.training.online import train_online
from tests.helpers.cpu_kernels import needs_library
from tests.helpers.online import config
from tests.helpers.toy_envs import FALLS


def test_online_dry_run_estimates_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = config(tmp_path, FALLS, dry_run=True, num_envs=2, eval_freq=15, eval_episodes=1, episodic=True)
    train_online(cfg, None)
    text = capsys.readouterr().out
    for line in (
        r"updates +45 x [\d.]+ ms = 0:00:\d\d", r"plans +12 x ", r"steps +22 x ", r"evaluation +4 x 9 plans",
        r"buffer +94 rows, 0\.00 GB in memory", r"memory ", r"disk ", r"in all +about 0:00:\d\d .planned plainly",
    ):  # fmt: skip
        assert re.search(rf"^{line}", text, re.MULTILINE), line
    assert not list(tmp_path.iterdir())


def test_run_of_random_steps_alone_is_said_to_learn_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """That was said when all steps had been taken, and the estimate counted updates that would not be made."""
    logger = logging.getLogger("tdmpc2")
    logger.addHandler(caplog.handler)
    try:
        train_online(config(tmp_path, dry_run=True, seed_steps=45, steps=45), None)
    finally:
        logger.removeHandler(caplog.handler)
    assert re.search(r"^updates +0 x", capsys.readouterr().out, re.MULTILINE)
    assert any(line.startswith("steps=45: all are of the random ones") for line in caplog.messages)


def test_online_dry_run_of_a_begun_run_estimates_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config(tmp_path, eval_freq=15, eval_episodes=1)
    train_online(cfg.replace(steps=30), None)
    before = {path: path.read_bytes() for path in cfg.run_dir.glob("*.pt")}
    capsys.readouterr()
    train_online(cfg.replace(dry_run=True), None)
    text = capsys.readouterr().out
    for line in (r"run .*, continues at step 30", r"updates +15 x", r"plans +15 x", r"steps +15 x", r"evaluation +1 x"):
        assert re.search(rf"^{line}", text, re.MULTILINE), (line, text)
    assert {path: path.read_bytes() for path in cfg.run_dir.glob("*.pt")} == before


@needs_library
def test_online_dry_run_plans_as_the_run_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain plans take many times as long as the kernels that the run itself would use."""
    train_online(config(tmp_path, dry_run=True, compile="auto", eval_freq=15, eval_episodes=1), None)
    assert re.search(r"in all +about .*\(planned by the CPU kernels, without compilation\)", capsys.readouterr().out)


def test_online_dry_run_refuses_what_the_run_would(tmp_path: Path) -> None:
    cfg = config(tmp_path, dry_run=True, collect_precision="bf16")
    with pytest.raises(ValueError, match="collect_precision=bf16 is for the CPU kernels"):
        train_online(cfg, None)


def test_online_dry_run_allocates_no_replay_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run used to spend minutes on allocating a large buffer, only to state its size."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the replay buffer was made")

    monkeypatch.setattr("tdmpc2.training.ring.ReplayRing", refuse)
    train_online(config(tmp_path, FALLS, dry_run=True, eval_freq=0, episodic=True), None)
