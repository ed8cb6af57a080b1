"""Fixtures: teachers, and a store of random episodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.training.offline import train
from tests.helpers.agents import make_teacher
from tests.helpers.data import make_store
from tests.helpers.runs import TINY


@pytest.fixture
def store(tmp_path: Path, tiny_cfg: Config) -> EpisodeStore:
    return make_store(tmp_path / "store", tiny_cfg)


@pytest.fixture
def teacher(tiny_cfg: Config) -> TDMPC2:
    return make_teacher(tiny_cfg)


@pytest.fixture(scope="session")
def trained_teacher(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Train a teacher that is wider than the student."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    wider = {"latent_dim": 24, "num_q": 3, "seed": 5}
    return Config(checkpoint=str(train(Config(data_dir=str(data_dir), work_dir=str(run), **{**TINY, **wider}), None)))
