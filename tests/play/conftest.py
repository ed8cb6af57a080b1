"""Fixtures: agents for toy tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.config import parse_cfg
from tests.helpers.playing import SMALL_AGENT, toy
from tests.helpers.toy_envs import STANDS


@pytest.fixture
def model(tmp_path: Path) -> str:
    """Save a checkpoint of an agent for the toy task."""
    TDMPC2(toy()).save(tmp_path / "toy.pt")
    return str(tmp_path / "toy.pt")


@pytest.fixture(scope="module")
def agent() -> TDMPC2:
    """Make an untrained agent of one short task."""
    return TDMPC2(parse_cfg({"task": STANDS, "eval_episodes": 3, **SMALL_AGENT}))
