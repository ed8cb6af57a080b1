"""Ways of planning: which one is chosen, and that each follows changes of the weights."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tdmpc2.acceleration.cpu import library
from tdmpc2.acceleration.fast_planner import FastPlanner
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.planner import draw_noise
from tdmpc2.support.runtime import has_cpp_compiler
from tests.helpers.agents import random_batch

SMALL: dict[str, Any] = {
    "model_size": None, "enc_dim": 32, "mlp_dim": 32, "latent_dim": 16, "num_samples": 32, "num_elites": 8,
    "num_pi_trajs": 4, "iterations": 2,
}  # fmt: skip
needs_library = pytest.mark.skipif(bool(library.reason()), reason=library.reason())
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.fixture
def agent() -> TDMPC2:
    return TDMPC2(Config(device="cpu", **SMALL))


def test_fast_planner_is_chosen_where_it_pays(agent: TDMPC2, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(num_plans: int, **changes: Any) -> tuple[str, str]:
        other = TDMPC2(agent.cfg.replace(**changes))
        line = other.compile_planner(num_plans)
        return other.planner.kind, line

    assert chosen(10**6, compile=False) == ("plain", "")
    assert chosen(10**6, mpc=False, compile=False) == ("plain", "")
    if not library.reason():
        assert chosen(1) == chosen(1, compile=True) == chosen(1, mpc=False) == ("kernels", "")
    monkeypatch.setattr("tdmpc2.acceleration.cpu.library._load", lambda: (None, "this processor is a toaster"))
    assert chosen(999) == ("plain", "")
    assert chosen(10**6, mpc=False, compile=True) == ("plain", "")  # a policy is not compiled
    kind, line = chosen(1000)
    assert line.startswith("The CPU kernels are not available: this processor is a toaster. ")
    if has_cpp_compiler():
        assert kind == "compiled"
        assert "compile=false turns it off" in line
        assert chosen(1, compile=True)[0] == "compiled"
    else:
        assert kind == "plain"
        assert "no compiler for cpu" in line


@needs_library
def test_planner_that_is_told_to_plan_plainly_does(agent: TDMPC2, monkeypatch: pytest.MonkeyPatch) -> None:
    """compile=false left the kernels on, where they had been chosen."""
    agent.compile_planner()
    sent = pickle.dumps(agent.planner)
    agent.planner.speed_up("false", 1)
    assert agent.planner.kind == "plain"
    monkeypatch.setattr("tdmpc2.acceleration.cpu.library._load", lambda: (None, "no kernels there"))
    assert pickle.loads(sent).kind == "plain"  # and compiles nothing


@needs_library
def test_kernels_after_weight_change_plan_with_new_weights(agent: TDMPC2) -> None:
    """An agent that trains between evaluations must not play with the weights that were packed first."""
    agent = TDMPC2(agent.cfg.replace(seed=3))
    agent.compile_planner()
    assert agent.planner.kind == "kernels"
    obs = torch.ones(agent.cfg.obs_dim)

    kernels, plain_planner = agent.planner, FastPlanner(agent.model)

    def means() -> list[torch.Tensor]:
        found = []
        for agent.planner in (kernels, plain_planner):
            agent.generator.manual_seed(0)
            agent.act(obs, t0=True, eval_mode=True, task=agent.cfg.task_ids[0])
            assert agent._player.plan_mean is not None
            found.append(agent._player.plan_mean.clone())
        return found

    before, plain = means()
    assert_close(before, plain, rtol=0, atol=1e-4)
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    after, plain = means()
    assert_close(after, plain, rtol=0, atol=1e-4)
    assert float((after - before).abs().max()) > 1e-2


@needs_library
def test_kernels_after_update_are_packed_once() -> None:
    """The kernels notice the optimiser's changes, which PyTorch does not count; with tau=0 nothing else changes."""
    cfg = Config(task="cartpole-balance", device="cpu", lr=0.05, tau=0.0, **SMALL)
    agent = TDMPC2(cfg)
    agent.compile_planner()
    obs = torch.ones(cfg.obs_dim)
    packed = []
    for seed in range(3):
        agent.update(random_batch(cfg, seed, 32))
        for _ in range(2):
            agent.act(obs, t0=True, eval_mode=True)
            packed.append(agent.planner._networks)
        plain = FastPlanner(agent.model)
        noise = draw_noise(cfg, 1, agent.device, torch.Generator().manual_seed(0))
        arguments = (agent.model.encode(obs[None]), agent.model.context(None),
                     torch.zeros(1, cfg.horizon, cfg.action_dim), noise)  # fmt: skip
        with torch.no_grad():
            plans = [planner(*arguments, eval_mode=True) for planner in (agent.planner, plain)]
        assert_close(plans[0].mean, plans[1].mean, rtol=0, atol=1e-4)
    assert [id(networks) for networks in packed[::2]] == [id(networks) for networks in packed[1::2]]
    assert len({id(networks) for networks in packed}) == 3


@needs_library
@pytest.mark.parametrize("place", ["a layer", "a Q head", "bins"])
def test_kernels_notice_another_scale_of_int8_weights(place: str) -> None:
    """Scales and bins are no parameters; a change of them used to go unnoticed, and old weights planned on."""
    agent = TDMPC2(Config(device="cpu", **SMALL))
    agent.set_precision("int8", lambda matrix: "int8", torch.float32)
    agent.compile_planner()
    agent.act(torch.zeros(agent.cfg.obs_dim), t0=True, task=0)
    networks = agent.planner._networks
    assert networks is not None
    model = agent.model
    changed = {"a layer": model._reward[0].scale, "a Q head": model._Qs.scale1, "bins": model.bins}[place]
    changed.mul_(1.5)
    assert networks.outdated()
    agent.act(torch.zeros(agent.cfg.obs_dim), t0=True, task=0)
    assert agent.planner._networks is not networks


@needs_library
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))])
def test_fast_planner_copied_uses_its_own_model(copied: Any) -> None:
    model = WorldModel(Config(device="cpu", **SMALL)).requires_grad_(False)
    planner = FastPlanner(model)
    planner.speed_up("true", 1)
    other = copied(planner)
    assert (other.kind, planner.kind) == ("kernels", "kernels")
    assert other._model is not model
    assert not other._networks.outdated()


@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_cuda_graph_plan_equals_plain_plan(precision: str) -> None:
    agent = TDMPC2(Config(device="cuda", **SMALL))
    agent.compile_planner()
    cfg = agent.cfg
    for seed in range(4):
        if seed == 2 and precision != "fp32":  # after plans in float32 were captured
            agent.set_precision(precision, lambda matrix: precision, torch.bfloat16)
        elif seed == 2:
            agent.update(random_batch(cfg, seed, 32))
        ids = torch.tensor([seed, 7], device="cuda")
        noise = draw_noise(cfg, 2, agent.device, torch.Generator("cuda").manual_seed(seed))
        obs = torch.randn(2, cfg.obs_dim, device="cuda")
        with torch.no_grad():
            context = agent.model.context(ids)
            given = (agent.model.encode(obs, context), context,
                     torch.zeros(2, cfg.horizon, cfg.action_dim, device="cuda"), noise)  # fmt: skip
            graphed, plain = (planner(*given, eval_mode=True) for planner in (agent.planner, FastPlanner(agent.model)))
        rounding = 1e-4 if agent.precision == "fp32" else 0.1
        assert_close(graphed.mean, plain.mean, rtol=0, atol=rounding)


@needs_library
def test_kernels_multiply_float32_weights_in_bf16_if_they_are_asked_to() -> None:
    """As they do for a model whose weights are bf16; what first layers add for tasks and actions keeps its digits."""
    agent = TDMPC2(Config(device="cpu", task="walker-walk", **SMALL))
    for parameter in agent.model.parameters():
        parameter.data.copy_(parameter.data.bfloat16())  # so that both have the same digits
    low = copy.deepcopy(agent)
    low.set_precision("bf16", lambda matrix: "bf16", torch.bfloat16)
    obs = torch.randn(2, agent.cfg.obs_dim, generator=torch.Generator().manual_seed(0))

    def plan(agent: TDMPC2, products: torch.dtype | None) -> torch.Tensor:
        planner = agent.planner.for_model(agent.model)
        planner.speed_up("auto", 1, products)
        copied = pickle.loads(pickle.dumps(planner))
        context, noise = agent.model.context(None), draw_noise(agent.cfg, 2, "cpu", torch.Generator().manual_seed(1))
        mean = torch.zeros(2, agent.cfg.horizon, agent.cfg.action_dim)
        plans = [own(own.encode(obs, context), context, mean, noise, eval_mode=True).mean for own in (planner, copied)]
        assert torch.equal(*plans)
        return plans[0]

    found, wanted, exact = plan(agent, torch.bfloat16), plan(low, None), plan(agent, None)
    assert_close(found, wanted, rtol=0, atol=1e-5)
    assert not torch.equal(found, exact)


@needs_library
def test_kernels_chosen_in_one_thread_are_waited_for_in_others(agent: TDMPC2, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two players that began together planned plainly, and so with other bits."""
    agent.planner.speed_up_with_use("auto")
    began, seen, original = threading.Event(), [], FastPlanner._use_kernels

    def slowly(self: FastPlanner) -> str:
        began.set()
        second.join(0.3)  # it would be through by then if it did not wait
        return original(self)

    def prepare() -> None:
        agent.planner._prepare()
        seen.append(agent.planner._networks is not None)

    def second_of_two() -> None:
        began.wait()
        prepare()

    monkeypatch.setattr(FastPlanner, "_use_kernels", slowly)
    second = threading.Thread(target=second_of_two)
    second.start()
    prepare()
    second.join()
    assert seen == [True, True]


@needs_library
def test_kernels_are_left_by_a_model_that_moves_to_another_device(agent: TDMPC2) -> None:
    """The kernels would read an address of the other device's memory, which ends the process."""
    other = TDMPC2(agent.cfg.replace(seed=4))
    other.compile_planner()
    assert other.planner.kind == "kernels"
    other.model.to("meta")
    context = other.model.context(torch.zeros(1, dtype=torch.long, device="meta")) if other.cfg.multitask else None
    z = other.planner.encode(torch.zeros(1, other.cfg.obs_dim, device="meta"), context or other.model.context(None))
    assert (z.device.type, other.planner.kind) == ("meta", "plain")


@needs_library
def test_kernels_are_left_by_a_choice_made_after_the_model_has_moved(agent: TDMPC2) -> None:
    """They were packed from there, which read address 0 and ended the process."""
    agent.compile_planner()
    agent.model.to("meta")
    agent.compile_planner(1)
    assert agent.planner.kind == "plain"
