"""Bytes in memory, as a quantisation report states them."""

from __future__ import annotations

import pytest
import torch

from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.quantization.measure import Candidate, Settings, load_agents, weight_bytes
from tdmpc2.quantization.recipes import RECIPES, quantize_state


@pytest.mark.parametrize("fast", [False, True])
def test_weight_bytes_leave_out_target_heads_in_every_precision(
    tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """Without fast bf16 and int8, quantised files used to be reported as larger in memory than float32 ones."""
    monkeypatch.setattr("tdmpc2.precision.kernel_seconds", dict)
    floating = "bf16" if fast else "fp32"
    monkeypatch.setattr("tdmpc2.precision.fastest_float", lambda stored, *_: "fp32" if stored == "fp32" else floating)
    monkeypatch.setattr("tdmpc2.precision.has_fast_int8", lambda device: fast)
    state = WorldModel(tiny_cfg, torch.Generator().manual_seed(0)).state_dict()
    models = {"fp32": state, **{name: quantize_state(state, RECIPES[name]) for name in ("fp16", "int8")}}
    config = tiny_cfg.replace(mpc=False).to_dict()
    agents = load_agents([Candidate(n, {"model": m, "config": config}, 0) for n, m in models.items()], Settings("cpu"))
    fp32, fp16, int8 = (weight_bytes(agent.model) for agent in agents.values())
    assert fp32 == 4 * sum(tensor.numel() for name, tensor in state.items() if not name.startswith("_target_"))
    assert int8 < fp16 < fp32 if fast else int8 == fp16 == fp32
