"""Planning in lower precision and compiled, against plain float32.

The sampled elite may flip on the last bit, so precisions are compared by regret: how much worse, by the float32 model,
the low-precision plan's mean sequence is than float32's own, in standard deviations of the first sweep's values.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tdmpc2 import planner
from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.runtime import has_cpp_compiler
from tests.conftest import load_golden

CFG = Config(device="cpu")


def make_model(state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> WorldModel:
    model = WorldModel(CFG)
    model.load_state_dict(state)
    return model.requires_grad_(False).set_precision(
        {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    )


def regret(reference: WorldModel, other: WorldModel, rows: slice, **compiled: object) -> Tensor:
    """Regret of ``other`` on some of the recorded real observations, [E]."""
    g = load_golden("model_forward.npz")
    obs, ids = g["obs"][rows], g["task"][rows]
    noise = planner.draw_noise(CFG, len(ids), torch.device("cpu"), torch.Generator().manual_seed(0))
    context, discount = reference.context(ids), reference.discounts[ids].unsqueeze(-1)
    z = reference.encode(obs, context)
    prev = torch.zeros(len(ids), CFG.horizon, CFG.action_dim)
    plans = [
        planner.plan(model, model.encode(obs, context), context, discount, prev, noise, eval_mode=True, **extra)  # type: ignore[arg-type]
        for model, extra in ((reference, {}), (other, compiled))
    ]
    means = torch.stack([plan.mean for plan in plans], 2)  # [E, H, 2, A]
    eps = torch.zeros(len(ids), 2, CFG.action_dim)
    value = planner.estimate_value(
        reference, z, context.unsqueeze(1), discount, means, eps, torch.tensor([0, 1])
    )  # [E, 2]
    policy = planner.policy_rollout(reference, z, context.unsqueeze(1), noise.policy)
    first = planner.sweep(
        reference, z, context.unsqueeze(1), discount, prev, torch.full_like(prev, CFG.max_std), policy,
        noise.samples[0], noise.value[0], noise.heads[0],
    )  # fmt: skip
    return (value[:, 0] - value[:, 1]) / first.value.std(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_plans_are_as_good(published: dict[str, Tensor], dtype: torch.dtype) -> None:
    rows = slice(0, 15) if dtype == torch.bfloat16 else slice(15, 18)  # fp16 products are slow on a CPU
    found = regret(make_model(published), make_model(published, dtype), rows)
    assert float(found.mean()) < 0.1
    assert float(found.abs().max()) < 1.0


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="compiling needs a C++ compiler")
def test_compiled_planner_equals_the_plain_one(published: dict[str, Tensor]) -> None:
    g, model, compiled = load_golden("plan.npz"), make_model(published), planner.compiled()
    task, discount = model.context(g["task"][:1]), model.discounts[g["task"][:1]].unsqueeze(-1)
    noise = planner.PlanNoise(
        policy=torch.zeros(3, 1, 24, 6),
        samples=g["noise"][:1, 0].transpose(0, 1),
        value=torch.zeros(6, 1, 512, 6),
        heads=torch.tensor([[0, 1]] * 6),
        elite=torch.zeros(1, 64).index_fill(1, g["selected_idx"][0, 0], 1e9),
        action=g["final_noise"][:1, 0],
    )
    z = model.encode(g["obs"][:1, 0], task)
    plan = planner.plan(model, z, task, discount, torch.zeros(1, 3, 6), noise, eval_mode=True, **compiled)
    assert_close(plan.mean, g["mean"][:1, 0, -1], rtol=0, atol=1e-3)
    assert_close(plan.sweep.std, g["std"][:1, 0, -1], rtol=0, atol=1e-3)
    assert_close(plan.action, g["selected_action"][:1, 0], rtol=0, atol=1e-3)
    low = make_model(published, torch.bfloat16)
    found = torch.cat([regret(model, low, slice(i, i + 12), **compiled) for i in (0, 12, 24)])
    assert float(found.mean()) < 0.1
