"""Models of tasks that may terminate, in the CPU kernels: nothing counts after a predicted termination."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tdmpc2 import planner
from tdmpc2.acceleration.cpu.networks import PackedNetworks, planned
from tdmpc2.acceleration.fast_planner import FastPlanner
from tdmpc2.acceleration.low_precision import planning_format, set_precision
from tdmpc2.nn.math import decode
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.quantization.recipes import relative_db
from tests.acceleration.test_cpu_planner import inputs_of, random_model, small
from tests.helpers.cpu_kernels import emulate, needs_library
from tests.helpers.termination import balance, logits_of

pytestmark = [needs_library, pytest.mark.usefixtures("no_grad")]


def episodic(task: str = "mt30", seed: int = 0, **changes: Any) -> WorldModel:
    """Make a random model whose head predicts the end for some steps and not for others."""
    model = random_model(small(task, episodic=True, **changes), seed)
    return balance(model, **sequences_of(inputs_of(model, 3, 200)))


def sequences_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """Pick the arguments of ``estimate_value`` that ``logits_of`` takes, too."""
    return {name: inputs[name] for name in ("z", "task", "actions")}


def with_bias(model: WorldModel, bias: float) -> WorldModel:
    """Copy a model with another bias of its termination head: -1e4 never ends an episode, 1e4 always does."""
    changed = copy.deepcopy(model)
    changed._termination[-1].bias.fill_(bias)
    return changed


def clear(logits: Tensor, margin: float) -> Tensor:
    """Mark samples whose logits are too far from 0 for rounding to decide about a termination, [E, S]."""
    rows = (logits.abs() > margin).all(0)
    assert float(rows.float().mean()) > 0.6
    return rows


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("task", "num_envs", "changes"),
    [
        ("mt30", 3, {}),
        ("mt30", 3, {"horizon": 1}),
        ("mt80", 2, {"num_q": 5, "horizon": 6}),
        ("dog-run", 1, {"num_q": 8, "num_bins": 200, "simnorm_dim": 4}),
        ("pendulum-spin", 2, {"latent_dim": 40, "mlp_dim": 70, "num_bins": 2}),
    ],
    ids=["many tasks", "one step", "six steps", "38 actions", "one action"],
)
def test_values_of_an_episodic_model_equal_plain(task: str, num_envs: int, changes: dict[str, int], seed: int) -> None:
    """Values differ from those of a model that never predicts termination only where one is predicted."""
    model = episodic(task, seed, **changes)
    inputs = inputs_of(model, num_envs, 61, seed)
    logits = logits_of(model, **sequences_of(inputs))
    rows = clear(logits, 1e-3)
    want, got = planner.estimate_value(model, **inputs), PackedNetworks(model).estimate_value(**inputs)
    assert_close(got[rows], want[rows], rtol=1e-3, atol=1e-3 * float(want.abs().max()))
    open_ended = PackedNetworks(with_bias(model, -1e4)).estimate_value(**inputs)
    ends = (logits > 0).any(0)
    assert ends.any()
    assert torch.equal(open_ended == got, ~ends)


@pytest.mark.parametrize("horizon", [1, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_plan_of_an_episodic_model_is_plain_and_avoids_the_end(
    monkeypatch: pytest.MonkeyPatch, seed: int, horizon: int
) -> None:
    """The plan is the same to the last bit with any number of threads, and another one if no end is predicted.

    The tasks have several actions: with one, sequences that end at once and begin with the action 1 are worth the same.
    """
    budget = {"num_samples": 64, "num_elites": 8, "num_pi_trajs": 8, "iterations": 3}
    model = episodic(seed=seed, horizon=horizon, num_q=3, **budget)
    cfg, context = model.cfg, model.context(torch.tensor([0, 22]))
    noise = planner.draw_noise(cfg, 2, torch.device("cpu"), torch.Generator().manual_seed(seed))
    z = inputs_of(model, 2, 1, seed)["z"]
    rest = z, context, torch.zeros(2, horizon, cfg.action_dim), noise
    want = planner.plan(model, *rest, eval_mode=False)

    def with_kernels(model: WorldModel, threads: int) -> planner.Plan:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        return planner.plan(model, *rest, eval_mode=False, **PackedNetworks(model).functions())

    got = with_kernels(model, 1)
    assert_close(got.mean, want.mean, rtol=0, atol=1e-3)
    assert_close(got.action, want.action, rtol=0, atol=1e-3)
    for threads in (2, 5):
        assert torch.equal(with_kernels(model, threads).mean, got.mean)
    open_ended = with_kernels(with_bias(model, -1e4), 1)
    assert float((open_ended.action - got.action).abs().max()) > 0.03


def test_first_reward_counts_where_every_step_ends_the_episode() -> None:
    """A step that ends the episode still gives its own reward, and a logit that is no number ends it as well."""
    model = episodic()
    inputs = inputs_of(model, 2, 20)
    reward = decode(model.reward(inputs["z"].unsqueeze(1), inputs["actions"][:, 0], inputs["task"]), model.bins)
    for bias in (1e4, torch.nan):
        got = PackedNetworks(with_bias(model, bias)).estimate_value(**inputs)
        assert_close(got, reward.squeeze(-1), rtol=1e-4, atol=1e-4)
        assert_close(got, planner.estimate_value(with_bias(model, bias), **inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8"])
def test_head_that_predicts_no_end_changes_no_bit(name: str) -> None:
    model = with_bias(episodic(), -1e4)
    without = WorldModel(small()).requires_grad_(False)
    without.load_state_dict({key: x for key, x in model.state_dict().items() if "_termination" not in key})
    inputs = inputs_of(model, 2, 50)
    values = [PackedNetworks(set_precision(one, name)).estimate_value(**inputs) for one in (model, without)]
    assert torch.equal(*values)


@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_value_that_overflows_behind_an_end_counts_as_in_the_plain_plan(bias: float) -> None:
    model = with_bias(episodic(vmax=200.0), bias)
    model._Qs.params[9].fill_(-200)[:, -1] = 200  # all weight is on the last bin, whose value overflows
    inputs = inputs_of(model, 2, 20)
    assert torch.equal(PackedNetworks(model).estimate_value(**inputs), planner.estimate_value(model, **inputs))


@pytest.mark.parametrize("name", ["bf16", "int8", "int8-weight-only", "mixed"])
def test_quantised_head_matches_emulated_arithmetic(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The kernels predict the same terminations as the emulated arithmetic, whatever format the head has.

    Values are compared where quantising changes no predicted termination.
    """
    plain = episodic(num_q=5)
    inputs = inputs_of(plain, 2, 200)
    mixed = {"_termination.0": "int8", "_termination.1": "bf16", "_dynamics.0": "int8"}

    def formats(matrix: str) -> str:
        return mixed.get(matrix.removesuffix(".weight"), "fp32") if name == "mixed" else planning_format(name, matrix)

    model = set_precision(copy.deepcopy(plain), formats, torch.bfloat16)
    networks, exact = PackedNetworks(model), planner.estimate_value(plain, **inputs)
    unquantised = logits_of(plain, **sequences_of(inputs))
    emulate(monkeypatch, plain.cfg, among_int8=name in ("int8", "mixed"))
    logits = logits_of(model, **sequences_of(inputs))
    rows = clear(logits, 0.03) & ((logits > 0) == (unquantised > 0)).all(0)
    assert (logits[:, rows] > 0).any()
    assert float(rows.float().mean()) > 0.5
    want, got = planner.estimate_value(model, **inputs)[rows], networks.estimate_value(**inputs)[rows]
    # Sums in another order move a few inputs to the next code, which is far less than the error of quantising.
    assert relative_db(got, want) < relative_db(want, exact[rows]) - 10


def test_head_in_fp16_is_the_same_numbers_in_float32() -> None:
    model = set_precision(episodic(), "fp16")
    wide = WorldModel(model.cfg).requires_grad_(False)
    wide.load_state_dict({name: x.float() for name, x in model.state_dict().items()})
    inputs = inputs_of(model, 2, 50)
    values = [PackedNetworks(one).estimate_value(**inputs) for one in (model, wide)]
    assert torch.equal(*values)


def test_environment_of_an_episodic_model_is_valued_the_same_whatever_the_others() -> None:
    """The terminations of other environments in the batch do not change an environment's values."""
    networks, inputs = PackedNetworks(model := episodic()), inputs_of(model, 3, 100)
    together = networks.estimate_value(**inputs)
    for env in range(3):
        row = slice(env, env + 1)
        alone = {name: x[row] for name, x in inputs.items() if name not in ("task", "heads")}
        own = {**alone, "task": inputs["task"].for_rows(row), "heads": inputs["heads"]}
        assert torch.equal(networks.estimate_value(**own), together[row])


def test_planner_with_kernels_follows_a_head_that_has_changed() -> None:
    """The planner packs the weights again after the termination head has changed."""
    model = episodic(num_samples=32, num_elites=4, num_pi_trajs=4, iterations=2)
    fast, context = FastPlanner(model), model.context(torch.tensor([3]))
    fast.speed_up("true", 0)
    assert fast.kind == "kernels"
    noise = planner.draw_noise(model.cfg, 1, torch.device("cpu"), torch.Generator().manual_seed(0))
    rest = inputs_of(model, 1, 1)["z"], context, torch.zeros(1, model.cfg.horizon, model.cfg.action_dim), noise
    before = fast(*rest, eval_mode=True).last.value
    model._termination[-1].bias.fill_(1e4)
    assert_close(fast(*rest, eval_mode=True).last.value, planner.plan(model, *rest, eval_mode=True).last.value,
                 rtol=1e-3, atol=1e-3)  # fmt: skip
    assert not torch.equal(fast(*rest, eval_mode=True).last.value, before)


def test_model_whose_head_is_missing_is_refused() -> None:
    """Without its termination head, an episodic model would be planned with as if its episodes never ended."""
    model = episodic()
    held, found = model.networks(), planned(model)
    assert [network.name for network in found] == ["_dynamics", "_reward", "_pi", "_Qs", "_termination"]
    model.networks = lambda: held[:-1]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"have the networks .*_Qs, _termination, the model has .*_Qs$"):
        PackedNetworks(model)
