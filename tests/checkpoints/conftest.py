"""Fixtures: a small configuration and a state of its sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel
from tests.helpers.checkpoints import SMALL


@pytest.fixture(scope="module")
def config() -> Config:
    return Config(task="mt30", **SMALL)


@pytest.fixture(scope="module")
def state(config: Config) -> dict[str, Tensor]:
    return dict(WorldModel(config, torch.Generator().manual_seed(0)).state_dict())
