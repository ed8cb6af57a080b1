"""Regret of plans: when it is zero, its sign, other budgets, and the recipes on the published student."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tdmpc2 import planner
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tdmpc2.nn.math import decode
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.planner import Plan
from tdmpc2.quantization.recipes import RECIPES, quantize_state
from tdmpc2.quantization.regret import plan_regret, plan_regrets
from tests.helpers.reference import load_golden

OBS, TASK = torch.randn(5, 24, generator=torch.Generator().manual_seed(0)), torch.arange(5)


def trained(cfg: Config, seed: int = 0) -> WorldModel:
    """Make a model whose rewards and values differ from action to action."""
    generator = torch.Generator().manual_seed(seed)
    model = WorldModel(cfg, generator).requires_grad_(False)
    for param in model.parameters():
        if param.ndim > 1:
            param.normal_(0, 0.5, generator=generator)
    return model


def test_regret_of_same_model_is_zero(tiny_cfg: Config) -> None:
    model = trained(tiny_cfg)
    assert plan_regret(model, model, OBS, TASK).tolist() == [0] * 5
    new = WorldModel(tiny_cfg).requires_grad_(False)  # all rewards and values are zero
    assert plan_regret(new, new, OBS, TASK).tolist() == [0] * 5


def test_regret_of_wrong_model_is_positive(tiny_cfg: Config) -> None:
    cfg = tiny_cfg.replace(num_samples=64, iterations=4)
    model, wrong = trained(cfg), trained(cfg, 1)
    slightly = trained(cfg)
    slightly._reward[1].weight.mul_(1.01)
    both = plan_regrets(model, [wrong, slightly], OBS, TASK)
    assert both.shape == (2, 5)
    assert float(both[0].mean()) > max(0.2, float(both[1].mean()))
    assert_close(both[1], plan_regret(model, slightly, OBS, TASK), rtol=0, atol=1e-4)
    assert not torch.equal(both[0], plan_regret(model, wrong, OBS, TASK, seed=1))


def test_regret_of_models_of_images_searches_as_far_as_their_plans() -> None:
    """Spread 0.5 was 0 in bytes: nothing was searched."""
    sizes = {"model_size": None, "enc_dim": 8, "mlp_dim": 8, "latent_dim": 8, "num_q": 2, "num_channels": 2}
    model = trained(Config(task="cup-catch", obs="rgb", max_std=0.5, num_samples=16, num_pi_trajs=1, **sizes))
    kinds: list[torch.dtype] = []

    def noting(model: WorldModel, z: Tensor, task: Any, prev_mean: Tensor, *rest: Any, **keys: Any) -> Plan:
        kinds.append(prev_mean.dtype)  # that of the spread
        return planner.plan(model, z, task, prev_mean, *rest, **keys)

    obs = torch.randint(256, (2, 9, 64, 64), dtype=torch.uint8)
    assert plan_regrets(model, [model], obs, None, plan_fn=noting).tolist() == [[0, 0]]
    assert kinds == [torch.float32]


def test_regret_is_difference_of_reference_values(tiny_cfg: Config) -> None:
    """The regret is compared with its definition, written out."""
    model, other = trained(tiny_cfg), trained(tiny_cfg, 1)
    plans: list[Plan] = []

    def keeping(*args: Any, **kwargs: Any) -> Plan:
        plans.append(planner.plan(*args, **kwargs))
        return plans[-1]

    def value(mean: Tensor) -> Tensor:
        z, total = model.encode(OBS, TASK), torch.zeros(5, 1)
        for t in range(tiny_cfg.horizon):
            total += model.discounts[TASK, None] ** t * decode(model.reward(z, mean[:, t], TASK), model.bins)
            z = model.next(z, mean[:, t], TASK)
        action = model.pi(z, TASK, torch.zeros(5, 6))[1]["mean"]
        last = decode(model.Q(z, action, TASK, "all"), model.bins).mean(0)
        return (total + model.discounts[TASK, None] ** tiny_cfg.horizon * last).squeeze(1)

    found = plan_regret(model, other, OBS, TASK, plan_fn=keeping)
    plan_regret(model, model, OBS, TASK, plan_fn=keeping)
    once = WorldModel(tiny_cfg.replace(iterations=1)).requires_grad_(False)  # its only iteration is the first
    once.load_state_dict(model.state_dict())
    plan_regret(model, once, OBS, TASK, plan_fn=keeping)
    theirs, own, first = plans
    assert_close(found, (value(own.mean) - value(theirs.mean)) / first.last.value.std(-1))


def test_regret_of_other_horizon_is_refused(tiny_cfg: Config) -> None:
    model = trained(tiny_cfg)

    def with_budget(**keys: int) -> WorldModel:
        other = WorldModel(tiny_cfg.replace(**keys)).requires_grad_(False)
        other.load_state_dict(model.state_dict())
        return other

    cheap = with_budget(num_samples=8, iterations=1, num_pi_trajs=2)
    dear = with_budget(num_samples=256, iterations=6, num_pi_trajs=8, num_elites=16)
    regrets = plan_regrets(model, [cheap, dear], OBS, TASK)
    assert float(regrets[0].mean()) > float(regrets[1].mean())
    with pytest.raises(ValueError, match="horizon=2 against the reference's horizon=3"):
        plan_regret(model, with_budget(horizon=2), OBS, TASK)


def test_regret_of_single_task_model_works() -> None:
    cfg = Config(task="cup-catch", model_size=None, enc_dim=8, mlp_dim=8, latent_dim=8, num_bins=11, num_samples=32,
                 num_elites=4, num_pi_trajs=4, iterations=2)  # fmt: skip
    found = plan_regret(trained(cfg), trained(cfg, 1), torch.randn(3, 8), None)
    assert found.shape == (3,)
    assert bool(found.any())


def test_regret_of_recipes_on_published_student_is_small(published: dict[str, Tensor]) -> None:
    """Plans are made for recorded real observations, with a smaller budget to save time."""
    g, cfg = load_golden("model_forward.npz"), {"num_samples": 128, "iterations": 4, "device": "cpu"}
    full = load_agent({"model": published}, precision="fp32", **cfg).model.requires_grad_(False)
    models = []
    for name, precision in (("bf16", "auto"), ("int8", "int8")):
        recipe = RECIPES[name]
        payload = {"model": quantize_state(published, recipe), "recipe": recipe.entry()}
        models.append(load_agent(payload, precision=precision, **cfg).model)
    rows = slice(0, 12)
    found = plan_regrets(full, models, g["obs"][rows], g["task"][rows])
    assert found.mean(1).amax() < 0.1, found.mean(1)
