"""The steps that are exported compute what the plain policy and planner do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdmpc2 import planner
from tdmpc2.config import Config
from tdmpc2.export.graph import PlanStep, PolicyStep, Step
from tdmpc2.loading import load_agent
from tdmpc2.nn.world_model import WorldModel
from tests.export.conftest import TASKS
from tests.helpers.agents import small_config


@pytest.fixture
def model(model_file: Path) -> WorldModel:
    return load_agent(model_file, device="cpu", compile=False, tasks=TASKS).model.requires_grad_(False)


def given(step: Step, seed: int = 0) -> dict[str, Tensor]:
    """Make the inputs of a plan in the middle of an episode."""
    generator = torch.Generator().manual_seed(seed)
    noise = planner.draw_noise(step.cfg, step.num_envs, torch.device("cpu"), generator)
    drawn = {f"noise_{name}": value for name, value in noise._asdict().items()} | {"noise": noise.action}
    images = torch.randint(256, (step.num_envs, 9, 64, 64), generator=generator, dtype=torch.uint8)
    own: dict[str, Any] = {
        "obs": images if step.cfg.obs == "rgb" else torch.randn(step.num_envs, step.cfg.obs_dim, generator=generator),
        "images": images,
        "plan": torch.rand(step.num_envs, step.cfg.horizon, step.cfg.action_dim, generator=generator) - 0.5,
        "t0": torch.arange(step.num_envs) == 1,
        "task": torch.arange(step.num_envs) % max(len(step.task_ids), 1),
    }
    return {item.name: (own | drawn)[item.name] for item in step.inputs}


def test_policy_step_is_the_policy_of_the_tasks_in_their_order(model: WorldModel) -> None:
    step = PolicyStep(model, num_envs=3)
    inputs = given(step)
    action, sample = step(*inputs.values())
    ids = torch.tensor([model.cfg.task_names.index(name) for name in TASKS])
    expected, info = model.pi(model.encode(inputs["obs"], ids), ids, inputs["noise"])
    assert torch.equal(sample, expected)
    assert torch.equal(action, info["mean"])


def test_plan_step_is_the_plan_and_forgets_where_an_episode_starts(model: WorldModel) -> None:
    step = PlanStep(model, num_envs=3)
    inputs = given(step)
    action, plan = step(*inputs.values())
    ids = torch.tensor([model.cfg.task_names.index(name) for name in TASKS])
    noise = planner.PlanNoise(**{name: inputs[f"noise_{name}"] for name in planner.PlanNoise._fields})
    previous = inputs["plan"].clone()
    previous[1] = 0
    expected = planner.plan(
        model, model.encode(inputs["obs"], ids), model.context(ids), previous, noise, eval_mode=False
    )
    assert torch.equal(action, expected.action)
    assert torch.equal(plan, expected.mean)


def test_plan_step_without_noise_of_the_action_does_not_explore(model: WorldModel) -> None:
    step = PlanStep(model, num_envs=3)
    inputs = given(step)
    explored, _ = step(*inputs.values())
    inputs["noise_action"] = torch.zeros_like(inputs["noise_action"])
    action, _ = step(*inputs.values())
    assert not torch.equal(action, explored)
    noise = planner.PlanNoise(**{name: inputs[f"noise_{name}"] for name in planner.PlanNoise._fields})
    context = step.context(inputs)
    previous = torch.where(inputs["t0"][:, None, None], 0.0, inputs["plan"])
    plan = planner.plan(model, model.encode(inputs["obs"], context), context, previous, noise, eval_mode=True)
    assert torch.equal(action, plan.action)


@pytest.mark.parametrize(
    ("keys", "absent"),
    [
        ({"task": "pendulum-spin", "num_q": 2}, {"task", "noise_heads"}),
        ({"task": "mt30", "tasks": ("cup-catch",)}, {"task"}),
        ({"task": "mt30", "plan_action": "mean"}, {"noise_elite"}),
        ({"task": "mt30", "plan_start": "policy"}, {"plan", "t0"}),
    ],
)
def test_inputs_that_a_model_does_not_need_are_absent(keys: dict[str, Any], absent: set[str]) -> None:
    """A model of one task takes no task number, and noise that changes nothing is no input."""
    cfg: Config = small_config(**keys)
    step = PlanStep(WorldModel(cfg, torch.Generator().manual_seed(1)).requires_grad_(False))
    names = {item.name for item in PlanStep(WorldModel(small_config(), torch.Generator())).inputs}
    assert names - {item.name for item in step.inputs} == absent
    action, plan = step(*given(step).values())
    assert (action.shape, plan.shape) == tuple(output.shape for output in step.outputs)


def test_inputs_of_images_and_state_are_two() -> None:
    """Observations are stored as bytes here, and ONNX cannot turn bytes into floats."""
    cfg = small_config(task="walker-walk", obs="rgb+state", num_channels=4)
    model = WorldModel(cfg, torch.Generator().manual_seed(1)).requires_grad_(False)
    step = PolicyStep(model)
    state, images = torch.randn(1, 24), torch.randint(256, (1, 9, 64, 64), dtype=torch.uint8)
    action, _ = step(state, images, torch.zeros(1, 6))
    both = torch.cat([state.view(torch.uint8), images.flatten(1)], 1)
    assert torch.equal(action, model.policy_mean(model.encode(both)))
