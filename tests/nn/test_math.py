"""The maths is compared with recorded numbers and checked for its properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tdmpc2.config import Config
from tdmpc2.nn import math as tdmath
from tdmpc2.nn.layers import NormedLinear, QEnsemble, simnorm
from tdmpc2.tasks import TaskSpec
from tests.helpers.reference import load_golden

BINS = tdmath.bin_centres(101, -10, 10)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def test_symlog_and_symexp_match_recorded() -> None:
    g = load_golden("math.npz")
    assert_close(tdmath.symlog(g["symlog_in"]), g["symlog_out"], rtol=1e-5, atol=1e-6)
    assert_close(tdmath.symexp(g["symexp_in"]), g["symexp_out"], **CLOSE)


def test_discrete_regression_matches_recorded() -> None:
    g = load_golden("math.npz")
    assert_close(BINS, g["dreg_bins"])
    assert abs(Config().bin_size - float(g["bin_size"])) < 1e-6
    assert_close(tdmath.two_hot(g["two_hot_in"], BINS), g["two_hot_out"], rtol=1e-4, atol=2e-5)
    assert_close(tdmath.decode(g["two_hot_inv_in"], BINS), g["two_hot_inv_out"], **CLOSE)
    assert_close(tdmath.soft_cross_entropy(g["soft_ce_pred"], g["soft_ce_target"], BINS), g["soft_ce_out"], **CLOSE)


@given(st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=16))
def test_two_hot_is_a_distribution_that_decodes_to_its_value(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64).unsqueeze(-1)
    target = tdmath.two_hot(x, BINS.double())
    assert_close(target.sum(-1), torch.ones(len(values), dtype=torch.float64))
    assert int((target > 0).sum(-1).max()) <= 2
    clipped = tdmath.symexp(tdmath.symlog(x).clamp(-10, 10))
    assert_close(tdmath.symexp((target * BINS.double()).sum(-1, keepdim=True)), clipped, rtol=1e-6, atol=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 4))
def test_soft_cross_entropy_equals_the_plain_two_hot_sum(seed: int, heads: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(heads, 3, 5, 101, generator=generator, dtype=torch.float64)
    x = 1e3 * torch.randn(3, 5, 1, generator=generator, dtype=torch.float64).pow(3)
    bins = BINS.double()
    plain = -(tdmath.two_hot(x, bins) * torch.log_softmax(logits, -1)).sum(-1, keepdim=True)
    assert_close(tdmath.soft_cross_entropy(logits, x, bins), plain)


def test_layers_match_recorded() -> None:
    g = load_golden("math.npz")
    assert_close(simnorm(g["simnorm_in"]), g["simnorm_out"], **CLOSE)
    assert_close(simnorm(g["simnorm3d_in"]), g["simnorm3d_out"], **CLOSE)
    for act, name in ((torch.nn.functional.mish, "mish"), (simnorm, "simnorm")):
        layer = NormedLinear(40, 64, act)
        layer.load_state_dict(
            {
                "weight": g["normed_linear_weight"],
                "bias": g["normed_linear_bias"],
                "ln.weight": g["normed_linear_ln_weight"],
                "ln.bias": g["normed_linear_ln_bias"],
            }
        )
        assert_close(layer(g["normed_linear_x"]), g[f"normed_linear_out_{name}"], **CLOSE)


def test_dropout_mask_sits_between_affine_map_and_layer_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    g = load_golden("math.npz")
    heads = QEnsemble(2, 40, 64, 64)
    state = [
        g["normed_linear_weight"],
        g["normed_linear_bias"],
        g["normed_linear_ln_weight"],
        g["normed_linear_ln_bias"],
    ]
    identity = {"params.4": torch.zeros(2, 64, 64), "params.5": torch.zeros(2, 64), "params.6": torch.ones(2, 64)}
    rest = {name: torch.zeros_like(p) for name, p in heads.state_dict().items()}
    heads.load_state_dict(rest | identity | {f"params.{i}": t.expand(2, *t.shape) for i, t in enumerate(state)})
    seen: list[torch.Tensor] = []
    # The first layer's output is only visible in the second layer's product.
    original = torch.baddbmm

    def spy(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return original(bias, x, weight)

    monkeypatch.setattr(torch, "baddbmm", spy)
    heads(g["normed_linear_x"], dropout_mask=g["dropout_mask_p25"].expand(2, 16, 64))
    assert_close(seen[0][0], g["normed_linear_out_mish_dropout"], **CLOSE)
    assert_close(seen[0][1], g["normed_linear_out_mish_dropout"], **CLOSE)


def test_policy_statistics_match_recorded() -> None:
    g = load_golden("math.npz")
    assert_close(tdmath.bounded_log_std(g["log_std_in"], -10, 2), g["log_std_out"], **CLOSE)
    eps, mean, log_std = g["pi_eps"], g["pi_mu"], g["pi_log_std"]
    presquash = mean + eps * log_std.exp()
    assert_close(presquash, g["pi_presquash_action"], **CLOSE)
    assert_close(torch.tanh(presquash), g["squash_action"], **CLOSE)
    stats = tdmath.squashed_gaussian_stats(eps, log_std, g["squash_action"], g["pi_size"])
    loose = {"rtol": 1e-2, "atol": 1e-3}
    assert_close(stats.log_prob, g["seed_squash_logprob"], **loose)
    assert_close(stats.entropy, g["upstream_entropy"], **loose)
    assert_close(-stats.entropy, g["upstream_squash_logprob"], **loose)
    assert_close(stats.scaled_entropy, g["upstream_scaled_entropy"], **loose)


def test_squashed_entropy_is_that_of_a_tanh_normal() -> None:
    generator = torch.Generator().manual_seed(3)
    mean, log_std, eps = (torch.randn(5, 3, dtype=torch.float64, generator=generator) for _ in range(3))
    plain = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(plain, [torch.distributions.TanhTransform(cache_size=1)])
    expected = -squashed.log_prob(torch.tanh(mean + eps * log_std.exp()))
    assert_close(tdmath.squashed_entropy(mean, log_std, eps), expected.sum(-1, keepdim=True))
    mask = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    found = tdmath.squashed_entropy(mean * mask, log_std * mask, eps, mask)
    assert_close(found, (expected * mask).sum(-1, keepdim=True))


def test_squashed_entropy_leads_back_from_where_tanh_saturates() -> None:
    mean = torch.tensor([[-40.0, 40.0]], requires_grad=True)
    log_std = torch.tensor([[2.0, 2.0]], requires_grad=True)
    tdmath.squashed_entropy(mean, log_std, torch.zeros(1, 2)).sum().backward()
    assert mean.grad is not None
    assert mean.grad.tolist() == [[2.0, -2.0]]
    drawn = torch.randn(1000, 2, generator=torch.Generator().manual_seed(1))
    log_std.grad = None
    tdmath.squashed_entropy(torch.zeros(1000, 2), log_std.expand(1000, 2), drawn).mean().backward()
    assert log_std.grad is not None
    assert (log_std.grad < 0).all(), "a spread of 7.4 leaves actions at -1 and 1 alone"


def test_running_scale_matches_recorded() -> None:
    g = load_golden("math.npz")
    for prefix in ("scale_x", "scale_x_small"):
        scale = torch.ones(())
        for x, percentiles, value in zip(g[prefix], g[f"{prefix}_percentiles"], g[f"{prefix}_value"], strict=True):
            low, high = tdmath.percentile_range(x)
            assert_close(torch.cat([low, high]), percentiles, **CLOSE)
            scale = tdmath.updated_scale(scale, x, 0.01)
            assert_close(scale, value, **CLOSE)
        if prefix == "scale_x":
            assert_close(g["scale_q"] / scale, g["scale_q_scaled"], **CLOSE)


def test_scales_of_tasks_are_those_of_their_own_rows() -> None:
    """A task with one row or none keeps its scale; values below the least range of 1 are among the cases."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.tensor([0] * 9 + [1] * 2 + [2] + [4] * 20)[torch.randperm(32, generator=generator)]
    x = torch.randn(32, 1, generator=generator) * torch.tensor([5.0, 100.0, 7.0, 1.0, 0.1])[ids].unsqueeze(1)
    before = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    after = tdmath.updated_task_scales(before, x, ids, 0.1)
    expected = [tdmath.updated_scale(before[task], x[ids == task], 0.1) for task in (0, 1, 4)]
    assert_close(after[[0, 1, 4]], torch.stack(expected), rtol=1e-6, atol=0.0)
    assert after[[2, 3]].tolist() == [3.0, 4.0]
    assert_close(tdmath.updated_task_scales(before.double(), x.double(), ids, 0.1).float(), after, rtol=1e-6, atol=0.0)


def test_two_head_reductions_match_recorded() -> None:
    g = load_golden("math.npz")
    values = tdmath.decode(g["qpair_logits"][g["qpair_idx"]], BINS)
    assert_close(values.amin(0), g["qpair_min"], **CLOSE)
    assert_close(values.mean(0), g["qpair_avg"], **CLOSE)


def test_discounts_match_recorded() -> None:
    g = load_golden("math.npz")
    lengths = [int(n) for n in g["discount_ep_len"]]
    specs = tuple(TaskSpec(f"own-{n}-{i}", 4, 2, episode_length=n) for i, n in enumerate(lengths))
    recorded = g["discount_out"].double()
    assert_close(
        torch.tensor(Config(task="own", task_specs=specs, model_size=None).discounts).double(), recorded, **CLOSE
    )
