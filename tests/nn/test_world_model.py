"""World model: recorded forward passes, parameter counts, initialisation, task embedding, masks."""

from __future__ import annotations

import re

import pytest
import torch
from torch.testing import assert_close

from tdmpc2.acceleration.low_precision import set_precision
from tdmpc2.config import MODEL_SIZES, Config
from tdmpc2.nn.layers import num_parameters
from tdmpc2.nn.math import decode
from tdmpc2.nn.world_model import WorldModel, draw_heads
from tests.helpers.reference import load_golden

LATENT = {"rtol": 0, "atol": 1e-5}
HEAD = {"rtol": 1e-4, "atol": 5e-4}
VALUE = {"rtol": 1e-4, "atol": 1e-4}
LOG_PROB = {"rtol": 3e-2, "atol": 1e-2}


@pytest.fixture(scope="module")
def model(published: dict[str, torch.Tensor]) -> WorldModel:
    model = WorldModel(Config())
    model.load_state_dict(published)
    return model.requires_grad_(False)


def test_world_model_forward_matches_recorded(model: WorldModel) -> None:
    g = load_golden("model_forward.npz")
    task, action = g["task"], g["action"]
    z = model.encode(g["obs"], task)
    assert_close(z, g["z"], **LATENT)
    assert_close(model.next(z, action, task), g["next_z"], **LATENT)
    logits = model.reward(z, action, task)
    assert_close(logits, g["reward_logits"], **HEAD)
    assert_close(decode(logits, model.bins), g["reward"], **HEAD)
    for target, prefix in ((False, "q"), (True, "target_q")):
        q_logits = model.Q(z, action, task, "all", target=target)
        assert_close(q_logits, g[f"{prefix}_logits"], **HEAD)
        assert_close(decode(q_logits, model.bins), g[prefix], **VALUE)
        assert_close(model.Q(z, action, task, "min", target=target), g[f"{prefix}_min"], **VALUE)
        assert_close(model.Q(z, action, task, "avg", target=target), g[f"{prefix}_avg"], **VALUE)


@pytest.mark.parametrize("eps_key", [None, "pi_eps"])
def test_world_model_policy_matches_recorded(model: WorldModel, eps_key: str | None) -> None:
    g = load_golden("model_forward.npz")
    suffix = "" if eps_key else "_eps0"
    eps = g[eps_key] if eps_key else torch.zeros(64, 6)
    action, info = model.pi(g["z"], g["task"], eps)
    assert_close(info["mean"], g["pi_mean"], **HEAD)
    assert_close(info["log_std"], g["pi_log_std"], **HEAD)
    assert_close(info["log_prob"], g[f"seed_log_pi{suffix}"], **LOG_PROB)
    assert_close(info["entropy"], g[f"upstream_entropy{suffix}"], **LOG_PROB)
    assert_close(info["scaled_entropy"], g[f"upstream_scaled_entropy{suffix}"], **LOG_PROB)
    if eps_key:
        assert_close(action, g["pi_action"], **HEAD)


def test_world_model_open_loop_rollout_matches_recorded(model: WorldModel) -> None:
    g = load_golden("model_forward.npz")
    task, actions = g["task"], g["rollout_action"]
    zs = [g["z"]]
    for action in actions:
        zs.append(model.next(zs[-1], action, task))
    z = torch.stack(zs)  # [4, 64, D]
    assert_close(z, g["rollout_z"], **LATENT)
    assert_close(decode(model.reward(z[:-1], actions, task), model.bins), g["rollout_reward"], **HEAD)
    assert_close(decode(model.Q(z[:-1], actions, task, "all"), model.bins), g["rollout_q"], **VALUE)
    _, info = model.pi(z, task, torch.zeros(4, 64, 6))
    assert_close(info["mean"], g["rollout_pi_mean"], **HEAD)
    assert_close(info["log_std"], g["rollout_pi_log_std"], **HEAD)
    assert_close(info["log_prob"], g["rollout_seed_log_pi_eps0"], **LOG_PROB)


def test_context_of_every_task_has_own_embedding_and_mask(model: WorldModel) -> None:
    g = load_golden("model_forward.npz")
    obs, task = g["maskcheck_obs"], g["maskcheck_task"]
    z = model.encode(obs, task)
    assert_close(z, g["maskcheck_z"], **LATENT)
    _, info = model.pi(z, task, torch.zeros(30, 6))
    assert_close(info["mean"], g["maskcheck_pi_mean"], **HEAD)
    assert_close(info["log_std"], g["maskcheck_pi_log_std"], **HEAD)
    assert_close(model.action_masks, g["action_masks"].float())
    assert_close(model.discounts.double(), g["discount"].double())


def test_embedding_renormalises_the_looked_up_rows_only(published: dict[str, torch.Tensor]) -> None:
    g = load_golden("model_forward.npz")
    model = WorldModel(Config())
    model.load_state_dict(published)
    assert_close(model._task_emb.weight.data, g["task_emb_raw"].float())
    model.context(torch.arange(30), train=True)
    assert_close(model._task_emb.weight.data, g["task_emb_renormed"], rtol=1e-6, atol=1e-7)


def test_embedding_gradient_ignores_the_rescaling() -> None:
    g = load_golden("math.npz")
    rows, width = g["emb_weight"].shape
    cfg = Config(model_size=None, task_dim=width, latent_dim=8, mlp_dim=8, enc_dim=8)
    model = WorldModel(cfg)
    model._task_emb = torch.nn.Embedding.from_pretrained(g["emb_weight"].clone(), freeze=False)
    out = model.context(g["emb_idx"], train=True).embedding
    assert out is not None
    assert_close(out.data, g["emb_out"])
    assert_close(model._task_emb.weight.data, g["emb_weight_after"])
    (torch.arange(1, len(out) + 1).unsqueeze(-1) * out).sum().backward()
    assert model._task_emb.weight.grad is not None
    assert_close(model._task_emb.weight.grad, g["emb_grad"])
    assert rows == 10


COUNTS = {1: (1_426_427, 1_980_357), 5: (5_241_066, 8_316_131), 19: (16_031_210, 24_802_275)}
COUNTS |= {48: (48_242_410, 72_766_435), 317: (317_316_889, 503_472_705)}


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_world_model_parameter_counts_match_published(size: int) -> None:
    with torch.device("meta"):
        model = WorldModel(Config(model_size=size))
    assert (num_parameters(model), sum(p.numel() for p in model.parameters())) == COUNTS[size]


def test_world_model_of_mt80_has_its_widths() -> None:
    with torch.device("meta"):
        model = WorldModel(Config(task="mt80", model_size=5))
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    assert shapes["_task_emb.weight"] == (80, 96)
    assert shapes["_encoder.state.0.weight"] == (256, 135)
    assert shapes["_dynamics.0.weight"] == (512, 614)
    assert shapes["_pi.0.weight"] == (512, 608)


def test_world_model_of_single_task_has_no_embedding() -> None:
    model = WorldModel(Config(task="walker-walk"))
    assert not any(name.startswith("_task_emb") for name in model.state_dict())
    assert model.encode(torch.randn(2, 24)).shape == (2, 128)
    context = model.context(None)
    assert context.embedding is None
    assert context.action_mask is None


def test_world_model_initialisation_follows_the_method() -> None:
    model = WorldModel(Config(), torch.Generator().manual_seed(0))
    for name, p in model.state_dict().items():
        if name in ("_reward.2.weight", "_Qs.params.8"):
            assert not p.any(), name
        elif name.endswith(".ln.weight") or name in ("_Qs.params.2", "_Qs.params.6"):
            assert (p == 1).all(), name
        elif name.endswith("bias") or name in {f"_Qs.params.{i}" for i in (1, 3, 5, 7, 9)}:
            assert not p.any(), name
        elif name == "_task_emb.weight":
            assert 0.019 < p.abs().max() <= 0.02
            assert_close(p.std(), torch.tensor(0.04 / 12**0.5), rtol=0.05, atol=0)
        elif name.startswith("_target"):
            assert_close(p, model.state_dict()[name.replace("_target_Qs", "_Qs")], rtol=0, atol=0)
        else:
            assert_close(p.std(), torch.tensor(0.02), rtol=0.05, atol=0, msg=name)
            assert abs(float(p.mean())) < 2e-3, name
    heads = model._Qs.params[4]
    assert not torch.equal(heads[0], heads[1])
    z, a, task = torch.randn(5, 128), torch.randn(5, 6), torch.arange(5)
    assert_close(decode(model.reward(z, a, task), model.bins), torch.zeros(5, 1), rtol=0, atol=1e-5)
    assert_close(model.Q(z, a, task), torch.zeros(5, 1), rtol=0, atol=1e-5)


def test_world_model_of_same_seed_has_equal_weights() -> None:
    cfg = Config(model_size=None, mlp_dim=8, enc_dim=8, latent_dim=8)
    first, second, other = (WorldModel(cfg, torch.Generator().manual_seed(seed)).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["_pi.0.weight"], other["_pi.0.weight"])


def test_q_of_chosen_heads_equals_all_heads_indexed(tiny_cfg: Config) -> None:
    model = WorldModel(tiny_cfg, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model._Qs.params[8])
    z, a, task = torch.randn(4, 7, 16), torch.randn(4, 7, 6), torch.randint(30, (7,))
    every = decode(model.Q(z, a, task, "all"), model.bins)
    for heads in ([0, 1], [2, 0], [1, 2]):
        got = model.Q(z, a, task, "min", heads=torch.tensor(heads))
        assert_close(got, every[heads].amin(0))
    with pytest.raises(ValueError, match="return_type='max'"):
        model.Q(z, a, task, "max")


def test_draw_heads_gives_all_distinct_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = {tuple(sorted(draw_heads(4, torch.device("cpu"), generator).tolist())) for _ in range(200)}
    assert pairs == {(i, j) for i in range(4) for j in range(i + 1, 4)}


def test_context_without_task_is_refused() -> None:
    model = WorldModel(Config(model_size=None, mlp_dim=8, enc_dim=8, latent_dim=8))
    with pytest.raises(ValueError, match="30 tasks"):
        model.encode(torch.zeros(1, 24))


#: What planning multiplies for every sample; everything else of a model stays float32.
LOWERED = re.compile(r"(_dynamics|_reward|_pi)\.\d\.(weight|bias)|_(target_)?Qs\.params\.[014589]")


def relative_error(x: torch.Tensor, reference: torch.Tensor) -> float:
    assert x.dtype == torch.float32
    return float((x - reference).norm() / reference.norm())


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_world_model_in_low_precision_stays_close(
    published: dict[str, torch.Tensor], precision: str, dtype: torch.dtype
) -> None:
    g = load_golden("model_forward.npz")
    plain, model = WorldModel(Config()), WorldModel(Config())
    for each in (plain, model):
        each.load_state_dict(published)
        each.requires_grad_(False)
    set_precision(model, precision)
    lowered = {name for name, p in model.state_dict().items() if p.dtype != torch.float32}
    assert lowered == {name for name in published if LOWERED.fullmatch(name)}
    assert all(model.state_dict()[name].dtype == dtype for name in lowered)

    rows, task = slice(0, 16), g["task"][:16]
    z, action, eps = g["z"][rows], g["action"][rows], torch.zeros(16, 6)
    assert torch.equal(model.encode(g["obs"][rows], task), plain.encode(g["obs"][rows], task))
    outputs = [
        {
            "next": each.next(z, action, task),
            "reward": each.reward(z, action, task),
            "mean": each.pi(z, task, eps)[1]["mean"],
            "Q": each.Q(z, action, task, "avg"),
            "target Q": each.Q(z, action, task, "avg", target=True),
        }
        for each in (plain, model)
    ]
    for name, reference in outputs[0].items():
        assert 0 < relative_error(outputs[1][name], reference) < 0.05, name
