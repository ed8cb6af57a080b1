"""Planning in lower precision and compiled, compared with plain float32.

The sampled elite may flip on the last bit, so precisions are compared by regret (tdmpc2/quantization/regret.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tdmpc2 import planner
from tdmpc2.acceleration.fast_planner import compiled_functions
from tdmpc2.acceleration.low_precision import set_precision
from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.quantization.regret import plan_regret
from tdmpc2.support.runtime import has_cpp_compiler
from tests.helpers.reference import load_golden

CFG = Config(device="cpu")
SMALLER = CFG.replace(num_samples=256, iterations=4)  # to save two thirds of the time


def make_model(state: dict[str, Tensor], dtype: torch.dtype = torch.float32, cfg: Config = CFG) -> WorldModel:
    model = WorldModel(cfg)
    model.load_state_dict(state)
    return set_precision(model, {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype])


def regret(reference: WorldModel, other: WorldModel, rows: slice, **compiled: Any) -> Tensor:
    """Compute the regret of ``other`` on some of the recorded real observations, [E]."""
    g = load_golden("model_forward.npz")
    return plan_regret(reference, other, g["obs"][rows], g["task"][rows], plan_fn=partial(planner.plan, **compiled))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_planner_in_low_precision_has_little_regret(published: dict[str, Tensor], dtype: torch.dtype) -> None:
    rows = slice(0, 15) if dtype == torch.bfloat16 else slice(15, 18)  # fp16 products are slow on a CPU
    found = regret(make_model(published, cfg=SMALLER), make_model(published, dtype, SMALLER), rows)
    assert float(found.mean()) < 0.1
    assert float(found.abs().max()) < 1.0


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="compiling needs a C++ compiler")
def test_planner_compiled_equals_plain(published: dict[str, Tensor]) -> None:
    g, model = load_golden("plan.npz"), make_model(published)
    compiled = compiled_functions(model)
    task = model.context(g["task"][:1])
    noise = planner.PlanNoise(
        policy=torch.zeros(3, 1, 24, 6),
        samples=g["noise"][:1, 0].transpose(0, 1),
        value=torch.zeros(6, 1, 512, 6),
        heads=torch.tensor([[0, 1]] * 6),
        elite=torch.zeros(1, 64).index_fill(1, g["selected_idx"][0, 0], 1e9),
        action=g["final_noise"][:1, 0],
    )
    z = model.encode(g["obs"][:1, 0], task)
    plan = planner.plan(model, z, task, torch.zeros(1, 3, 6), noise, eval_mode=True, **compiled)
    assert_close(plan.mean, g["mean"][:1, 0, -1], rtol=0, atol=1e-3)
    assert_close(plan.last.std, g["std"][:1, 0, -1], rtol=0, atol=1e-3)
    assert_close(plan.action, g["selected_action"][:1, 0], rtol=0, atol=1e-3)
    low = make_model(published, torch.bfloat16)
    found = regret(model, low, slice(0, 6), **compiled_functions(low))
    assert float(found.mean()) < 0.1
