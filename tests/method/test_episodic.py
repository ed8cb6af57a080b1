"""Tasks whose episodes may terminate: head, loss, target and planner value, for one task and for many."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tdmpc2 import losses, planner
from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.sizes import infer_config
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.loading import load_agent
from tdmpc2.losses import termination_loss
from tdmpc2.nn.math import decode
from tdmpc2.noise import draw_update_noise
from tdmpc2.quantization.recipes import RECIPES, quantize_state
from tests.helpers.agents import random_batch
from tests.helpers.cpu_kernels import needs_library


@pytest.fixture
def agent(tiny_cfg: Config) -> TDMPC2:
    """Make an agent of many tasks whose head predicts the end for some steps and not for others."""
    agent = TDMPC2(tiny_cfg.replace(episodic=True))
    with torch.no_grad():
        agent.model._task_emb.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
        for layer in agent.model._termination:
            layer.weight.normal_(0, 1, generator=torch.Generator().manual_seed(2))
    return agent


def episodic_batch(cfg: Config, seed: int = 0) -> Batch:
    ends = torch.zeros(cfg.horizon, 8, 1)
    ends[-1, ::3] = 1
    return random_batch(cfg, seed)._replace(terminated=ends)


def test_termination_head_reads_latent_and_task(agent: TDMPC2) -> None:
    z = torch.rand(5, agent.cfg.latent_dim)
    one, two = (agent.model.termination(z, torch.full((5,), task)) for task in (0, 7))
    assert one.shape == (5, 1)
    assert not torch.allclose(one, two)


def test_model_without_terminations_has_no_head(tiny_cfg: Config) -> None:
    """The reference opens a file of such a model, and would refuse one with a termination head."""
    assert not [name for name in TDMPC2(tiny_cfg).model.state_dict() if "termination" in name]


@pytest.mark.parametrize(("logits", "labels", "f1"), [
    ([3, 3, -3, -3], [1, 1, 0, 0], 1.0),
    ([3, -3, 3, -3], [1, 1, 0, 0], 0.5),
    ([3, 3, 3, 3], [1, 0, 0, 0], 0.4),
    ([-3, -3, -3, -3], [0, 0, 0, 0], 0.0),
])  # fmt: skip
def test_termination_loss_measures_the_last_step(logits: list[int], labels: list[int], f1: float) -> None:
    logit = torch.stack([torch.full((4, 1), 9.0), torch.tensor(logits)[:, None].float()])
    label = torch.stack([torch.zeros(4, 1), torch.tensor(labels)[:, None].float()])
    result = termination_loss(logit, label)
    p = logit.sigmoid()
    assert_close(result.loss, -(label * p.log() + (1 - label) * (1 - p).log()).mean(), rtol=1e-3, atol=1e-4)
    assert float(result.rate) == pytest.approx(sum(labels) / 4)
    assert float(result.f1) == pytest.approx(f1, abs=1e-6)


def test_td_target_of_a_terminated_step_is_its_reward(agent: TDMPC2) -> None:
    cfg, batch = agent.cfg, episodic_batch(agent.cfg)
    with torch.no_grad():  # values that are not zero
        for params in (agent.model._Qs.params, agent.model._target_Qs.params):
            params[8].normal_(0, 1, generator=torch.Generator().manual_seed(3))
    task, noise = agent.model.context(batch.task), draw_update_noise(cfg, 8, agent.device, agent.generator)
    z = agent.model.encode(batch.obs[1:], task)
    assert batch.terminated is not None
    target = losses.td_target(agent.model, z, batch.reward, task, noise, batch.terminated)
    open_end = losses.td_target(agent.model, z, batch.reward, task, noise)
    ended = batch.terminated == 1
    assert torch.equal(target[ended], batch.reward[ended])
    assert torch.equal(target[~ended], open_end[~ended])
    assert not torch.isclose(open_end[ended], batch.reward[ended]).any()


def value_step_by_step(model: Any, z: Tensor, task: Any, actions: Tensor, eps: Tensor, heads: Tensor) -> Tensor:
    """Compute the planner's value by its definition: nothing counts after a predicted termination."""
    total, ended, discount = torch.zeros(actions.shape[0], actions.shape[2]), 0, task.discount.squeeze(-1)
    z = z.unsqueeze(1).expand(-1, actions.shape[2], -1)
    for t in range(actions.shape[1]):
        reward = decode(model.reward(z, actions[:, t], task), model.bins).squeeze(-1)
        total = total + discount**t * (1 - ended) * reward
        z = model.next(z, actions[:, t], task)
        ended = torch.clamp(ended + (model.termination(z, task).sigmoid().squeeze(-1) > 0.5).float(), max=1)
    last = model.Q(z, model.pi(z, task, eps)[0], task, "avg", heads=heads).squeeze(-1)
    return total + discount ** actions.shape[1] * (1 - ended) * last


def test_planner_value_ends_with_a_predicted_termination(agent: TDMPC2) -> None:
    """Several tasks are planned for at once, each with its own embedding."""
    model, cfg, draw = agent.model, agent.cfg, torch.Generator().manual_seed(4)
    with torch.no_grad():
        for layer in (model._reward[-1].weight, model._Qs.params[8]):
            layer.normal_(0, 0.5, generator=draw)
        z = torch.rand(3, cfg.latent_dim, generator=draw).softmax(-1)
        task = model.context(torch.tensor([0, 5, 29])).unsqueeze(1)
        actions = torch.rand(3, cfg.horizon, 40, cfg.action_dim, generator=draw) * 2 - 1
        eps, heads = torch.randn(3, 40, cfg.action_dim, generator=draw), torch.tensor([0, 2])
        found = planner.estimate_value(model, z, task, actions, eps, heads)
        assert_close(found, value_step_by_step(model, z, task, actions, eps, heads), rtol=1e-4, atol=1e-4)
        never = TDMPC2(cfg.replace(episodic=False)).model
        never.load_state_dict({name: x for name, x in model.state_dict().items() if "termination" not in name})
        open_ended = planner.estimate_value(never, z, task, actions, eps, heads)
    assert not torch.allclose(open_ended, found, rtol=0, atol=1e-2)
    ends = torch.stack([model.termination(z[:, None], task) > 0])
    assert ends.any()


def test_update_of_many_episodic_tasks_trains_head_and_embedding(agent: TDMPC2) -> None:
    before = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}
    stats = agent.update(episodic_batch(agent.cfg))
    assert {"termination_loss", "termination_rate", "termination_f1"} <= stats.keys()
    assert float(stats["termination_rate"]) == pytest.approx(3 / 8)
    moved = {name for name, tensor in agent.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in before if name.startswith(("_termination.", "_task_emb"))} <= moved


def test_total_loss_weighs_the_termination_loss(tiny_cfg: Config) -> None:
    totals = []
    for coef in (0.0, 3.0):
        stats = TDMPC2(tiny_cfg.replace(episodic=True, termination_coef=coef)).update(episodic_batch(tiny_cfg))
        totals.append(float(stats["total_loss"]))
    assert totals[1] - totals[0] == pytest.approx(3 * float(stats["termination_loss"]), rel=1e-4)


def test_update_without_terminations_is_refused_by_an_episodic_agent(agent: TDMPC2) -> None:
    with pytest.raises(ValueError, match="'terminated' is missing, which episodic=true learns from"):
        agent.update(random_batch(agent.cfg, 0))


def test_update_that_is_not_episodic_ignores_terminations(tiny_cfg: Config) -> None:
    one, two = (TDMPC2(tiny_cfg).update(batch) for batch in (random_batch(tiny_cfg, 0), episodic_batch(tiny_cfg)))
    assert {name: float(value) for name, value in one.items()} == {name: float(value) for name, value in two.items()}


# -- fast paths and files ---------------------------------------------------------------------------------------------


def test_compiled_losses_of_an_episodic_agent_are_one_graph(tiny_cfg: Config) -> None:
    cfg = tiny_cfg.replace(episodic=True)
    plain, compiled = TDMPC2(cfg), TDMPC2(cfg)
    torch.compiler.reset()
    compiled._model_losses = torch.compile(losses.model_losses, fullgraph=True, dynamic=False, backend="aot_eager")
    for seed in range(2):
        one, two = (agent.update(episodic_batch(cfg, seed)) for agent in (plain, compiled))
        for name, value in one.items():
            assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@needs_library
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_episodic_agent_from_a_file_plans_with_the_kernels(agent: TDMPC2, precision: str) -> None:
    """The kernels are chosen automatically, as they are for other agents."""
    file = {"model": agent.model.state_dict(), "config": agent.cfg.to_dict()}
    loaded = load_agent(file, device="cpu", precision=precision, quiet=True)
    loaded.act(torch.zeros(2, agent.cfg.obs_dim), t0=True, task=[0, 3])
    assert loaded.planner.kind == "kernels"


@pytest.mark.parametrize("recipe", RECIPES)
def test_quantised_episodic_model_is_loaded_and_acts(agent: TDMPC2, recipe: str) -> None:
    state = quantize_state(agent.model.state_dict(), RECIPES[recipe])
    loaded = load_agent({"model": state, "config": agent.cfg.to_dict()}, device="cpu", quiet=True)
    action = loaded.act(torch.zeros(2, agent.cfg.obs_dim), t0=True, task=[0, 3])
    assert action.shape == (2, agent.cfg.action_dim)
    assert loaded.cfg.episodic


def test_file_without_configuration_tells_that_it_is_episodic() -> None:
    cfg = Config(task="cheetah-run", episodic=True)
    found = infer_config(TDMPC2(cfg).model.state_dict(), "cheetah-run")
    assert found.episodic
    assert (found.rho, found.discount_max) == (0.7, 0.99)


@pytest.mark.parametrize(
    ("file", "model", "said"), [(True, False, "episodic=true, which"), (False, True, "episodic=false and")]
)
def test_file_of_the_other_kind_is_named(tiny_cfg: Config, file: bool, model: bool, said: str) -> None:
    state = TDMPC2(tiny_cfg.replace(episodic=file)).model.state_dict()
    with pytest.raises(ValueError, match=f"It was trained with {said}"):
        TDMPC2(tiny_cfg.replace(episodic=model)).load(state)
