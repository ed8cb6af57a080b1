"""Single-task agents are compared with numbers recorded from the reference's online training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tdmpc2 import losses, planner
from tdmpc2.acceleration.cpu.networks import PackedNetworks
from tdmpc2.agent import TDMPC2
from tdmpc2.data.batch import Batch
from tdmpc2.nn import optimisers
from tdmpc2.nn.math import decode
from tdmpc2.noise import UpdateNoise
from tests.helpers.cpu_kernels import needs_library
from tests.helpers.online_golden import Recorded, agent_files, config_of, read, weights_of
from tests.helpers.reference import shared_file


class Case(NamedTuple):
    g: Recorded
    weights: Recorded
    agent: TDMPC2  # with these weights


def _file(path: Path, latent_dim: int) -> object:
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if latent_dim > 128 else [])


@pytest.fixture(scope="module", params=[_file(*found) for found in agent_files()] or [None])
def case(request: pytest.FixtureRequest) -> Case:
    path: Path | None = request.param
    g = read(path or shared_file("golden/online/state_1m.npz"))
    cfg = config_of(g)
    weights = weights_of(g, cfg)
    agent = TDMPC2(cfg)
    agent.load(weights)
    return Case(g, weights, agent)


def test_recorded_weights_and_discount_are_those_of_the_rule(case: Case) -> None:
    """The files hold the seed and the sums of the weights instead of the weights themselves."""
    for name, tensor in case.weights.items():
        if name != "_termination.2.bias":
            total, absolute = case.g[f"weight_sum/{name}"].tolist()
            assert tensor.double().sum().item() == pytest.approx(total, abs=1e-4), name
            assert tensor.double().abs().sum().item() == pytest.approx(absolute, rel=1e-6), name
    assert case.agent.cfg.discounts[0] == pytest.approx(float(case.g["discount"]), abs=1e-12)


def test_forward_of_single_task_model_matches_recorded(case: Case) -> None:
    g, model = case.g, case.agent.model

    def near(name: str, value: Tensor, rtol: float, atol: float) -> None:
        assert_close(value, g[f"fwd/{name}"], rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")

    with torch.no_grad():
        z, action = model.encode(g["fwd/obs"], None, g.get("fwd/shift")), g["fwd/action"]
        near("z", z, 0, 1e-5)
        near("next_z", model.next(z, action), 0, 1e-5)
        near("reward_logits", model.reward(z, action), 0, 5e-5)
        near("reward", decode(model.reward(z, action), model.bins), 1e-4, 1e-4)
        for prefix, target in (("", False), ("target_", True)):
            logits = model.Q(z, action, None, "all", target)
            near(f"{prefix}q_logits", logits, 0, 5e-5)
            near(f"{prefix}q", decode(logits, model.bins), 1e-4, 1e-4)
        sample, info = model.pi(z, None, g["fwd/eps"])
        near("pi_action", sample, 0, 1e-4)
        near("pi_mean", info["mean"], 0, 1e-4)
        near("pi_log_std", info["log_std"], 0, 1e-4)
        near("pi_entropy", info["entropy"], 1e-3, 1e-2)
        near("pi_scaled_entropy", info["scaled_entropy"], 1e-3, 1e-2)
        if "fwd/termination" in g:
            near("termination_logit", model.termination(z), 0, 5e-5)
            near("termination", model.termination(z).sigmoid(), 0, 1e-5)


def test_plans_of_single_task_model_match_recorded(case: Case) -> None:
    """The first call of a sequence starts an episode, and later ones continue the previous plan."""
    check_plans(case, {})


@needs_library
def test_plans_with_the_kernels_match_recorded(case: Case) -> None:
    """The kernels do not return predicted terminations, but values and elites depend on them."""
    check_plans(case, dict(PackedNetworks(case.agent.model).functions()))


def check_plans(case: Case, functions: dict[str, Any]) -> None:
    g, model = case.g, case.agent.model
    sequences, calls, iterations, horizon = g["plan/sample_eps"].shape[:4]
    assert (iterations, horizon) == (model.cfg.plan_iterations, model.cfg.horizon)
    iteration = functions.get("iteration_fn", planner.iteration)
    found: list[planner.Iteration] = []
    ended: list[Tensor] = []

    def recorded(*args: Any) -> planner.Iteration:
        found.append(iteration(*args))
        return found[-1]

    def logit(z: Tensor, task: Any = None) -> Tensor:
        ended.append(type(model).termination(model, z, task))
        return ended[-1]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(model, "termination", logit, raising=False)
        for n in range(sequences):
            mean = torch.zeros(1, horizon, model.cfg.action_dim)
            for m in range(calls):
                noise = planner.PlanNoise(
                    policy=g["plan/policy_eps"][n, m][:, None],
                    samples=g["plan/sample_eps"][n, m][:, None],
                    value=g["plan/value_eps"][n, m][:, None],
                    heads=g["plan/heads"][n, m],
                    elite=g["plan/gumbel"][n, m][None],
                    action=g["plan/action_eps"][n, m][None],
                )
                found.clear(), ended.clear()
                shift = g["plan/shift"][n, m][None] if "plan/shift" in g else None
                z = model.encode(g["plan/obs"][n, m][None], None, shift)
                result = planner.plan(
                    model, z, model.context(None), mean, noise, eval_mode=False,
                    **{**functions, "iteration_fn": recorded},
                )  # fmt: skip
                mean = result.mean
                value, expected = torch.stack([step.value[0] for step in found]), g["plan/value"][n, m]
                assert bool(((value - expected).abs() <= 1e-3 * (1 + expected.abs().max() / 30)).all())
                for it, step in enumerate(found):
                    elites = step.value[0].topk(model.cfg.num_elites).indices.sort().values
                    assert torch.equal(elites, g["plan/elites"][n, m, it])
                assert_close(mean[0], g["plan/mean"][n, m], rtol=0, atol=1e-3)
                assert_close(result.action[0], g["plan/action"][n, m], rtol=0, atol=1e-3)
                if "plan/termination" in g and not functions:
                    probability = torch.stack(ended).sigmoid().view(iterations, horizon, -1)
                    assert_close(probability, g["plan/termination"][n, m], rtol=0, atol=1e-4)


class Replay(NamedTuple):
    stats: list[dict[str, Tensor]]
    targets: list[Tensor]
    gradients: Recorded  # of the first update, before clipping
    after: list[Recorded]  # weights after each update


@pytest.fixture(scope="module")
def replay(case: Case) -> Replay:
    g, agent = case.g, TDMPC2(case.agent.cfg)
    agent.load(case.weights)
    result = Replay([], [], {}, [])
    original, clip = losses.td_target, optimisers.clip_gradients

    def recorded(*args: Any) -> Tensor:
        result.targets.append(original(*args))
        return result.targets[-1]

    def clipped(parameters: list[Tensor], limit: float) -> Tensor:
        own = {id(parameter) for parameter in parameters}
        for name, parameter in agent.model.named_parameters():
            if id(parameter) in own and parameter.grad is not None:
                result.gradients.setdefault(name, parameter.grad.clone())
        return clip(parameters, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "td_target", recorded)
        patch.setattr("tdmpc2.agent.clip_gradients", clipped)
        for k in range(len(g["upd/obs"])):
            task = torch.zeros(g["upd/obs"].shape[2], dtype=torch.int64)
            batch = Batch(*(g[f"upd/{name}"][k] for name in ("obs", "action", "reward")), task)
            noise = UpdateNoise(
                g["upd/target_eps"][k], g["upd/target_heads"][k], g["upd/policy_eps"][k], g["upd/policy_heads"][k],
                None, None, g["upd/shift"][k] if "upd/shift" in g else None,
            )  # fmt: skip
            result.stats.append(agent.update(batch._replace(terminated=g["upd/terminated"][k]), noise))
            result.after.append({name: tensor.clone() for name, tensor in agent.model.state_dict().items()})
    return result


def test_update_of_single_task_agent_matches_recorded_losses(case: Case, replay: Replay) -> None:
    g = case.g
    for k, stats in enumerate(replay.stats):
        for name, value in stats.items():
            rtol = 1e-3 if name.startswith("pi_") and name != "pi_scale" else 1e-4
            expected = float(g[f"upd/stat/{name}"][k])
            assert float(value) == pytest.approx(expected, rel=rtol, abs=1e-6), (k, name)
        assert_close(replay.targets[k], g["upd/td_target"][k], rtol=1e-4, atol=1e-3)


def test_first_gradients_of_single_task_agent_match_recorded(case: Case, replay: Replay) -> None:
    g = case.g
    names = [key.removeprefix("upd/grad1_norm/") for key in g if key.startswith("upd/grad1_norm/")]
    assert set(names) <= set(replay.gradients)
    assert any(name.startswith("_termination") for name in names) == case.agent.cfg.episodic
    for name in names:
        expected, gradient = float(g[f"upd/grad1_norm/{name}"]), replay.gradients[name]
        rtol = 1e-3 if name.startswith("_pi") else 1e-4
        assert float(gradient.norm()) == pytest.approx(expected, rel=rtol, abs=1e-7), name
        if f"upd/grad1/{name}" in g:
            own = g[f"upd/grad1/{name}"]
            assert_close(gradient.flatten()[: own.numel()], own.flatten(), rtol=2e-3, atol=1e-5 + 1e-3 * expected)


def test_weights_of_single_task_agent_after_updates_match_recorded(case: Case, replay: Replay) -> None:
    g = case.g
    for count in (1, len(replay.after)):
        for name, tensor in replay.after[count - 1].items():
            if f"upd/after{count}_norm/{name}" not in g:
                continue
            delta = float((tensor - case.weights[name]).norm())
            assert delta == pytest.approx(float(g[f"upd/after{count}_delta_norm/{name}"]), rel=2e-3, abs=5e-5), name
            head = g[f"upd/after{count}_head/{name}"]
            begin = tensor.flatten()[: len(head)]
            assert_close(begin, head.float(), rtol=0, atol=5e-5, msg=lambda text, n=name: f"{n}: {text}")
