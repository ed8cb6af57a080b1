"""Small checkpoints and published ones."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.helpers.reference import shared_file

SMALL = {"model_size": None, "enc_dim": 8, "mlp_dim": 16, "latent_dim": 16, "num_q": 3, "task_dim": 4, "num_bins": 11}


def assert_same(have: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert have.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(have[name], tensor), name


def published_file(kind: str) -> Path:
    return shared_file(f"checkpoints/mt30_1M_steps_045dist_{kind}.pt")
