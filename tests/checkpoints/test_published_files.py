"""The published checkpoint files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tdmpc2.checkpoints import layouts, sizes
from tdmpc2.checkpoints.files import file_sha256, load_file, precision_of
from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel
from tests.helpers.checkpoints import assert_same, published_file
from tests.helpers.reference import shared_file

KINDS = ("fp16", "int8", "mixed")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_load_file_of_published_file_reads_weights_and_sizes(kind: str) -> None:
    path = published_file(kind)
    read = load_file(path)
    assert precision_of(read.model) == kind
    assert layouts.layout_of(read.model) == "a"
    assert sizes.infer_config(read.model) == Config(task="mt30", model_size=1)
    assert [spec.name for spec in read.task_specs][-1] == "pendulum-spin"
    state = layouts.to_layout_a(read.model)
    assert len(state) == 61
    with np.load(shared_file("golden/quantized.npz")) as golden:
        assert file_sha256(path) == golden[f"{kind}/sha256"].tobytes().hex()
        assert path.stat().st_size == golden[f"{kind}/file_size"]
        for name, tensor in state.items():
            assert tensor.dtype == torch.float32
            assert tensor.double().sum().item() == pytest.approx(golden[f"{kind}/param_sum/{name}"], rel=1e-9, abs=1e-6)
            want = golden[f"{kind}/param_abssum/{name}"]
            assert tensor.double().abs().sum().item() == pytest.approx(want, rel=1e-9, abs=1e-6)
    model = WorldModel(Config(task="mt30", model_size=1))
    sizes.check_state(state, model.state_dict(), read.origin)
    model.load_state_dict(read.model)
    assert_same(dict(model.state_dict()), state)
