"""The fast update: compiled losses, products in bf16, and LayerNorm with Mish as one operator."""

from __future__ import annotations

import math
import os
import pickle
import sys
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tdmpc2 import losses
from tdmpc2.acceleration import compiled_update
from tdmpc2.acceleration.cpu import library, norm_mish
from tdmpc2.acceleration.layers import fuse
from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.distributed import ProcessGroup
from tdmpc2.nn.layers import NormedLinear, QEnsemble
from tdmpc2.noise import dropout_factors
from tdmpc2.training.offline import train
from tests.helpers.agents import random_batch
from tests.helpers.distillation import LIVE

ALL_BUT_PCA = tuple(name for name in LIVE if name != "next_state_pca")
needs_library = pytest.mark.skipif(bool(library.reason()), reason=library.reason())


def compiled_by(agent: TDMPC2, backend: str) -> TDMPC2:
    """Compile the losses with a backend that needs no compiler."""
    torch.compiler.reset()
    agent._model_losses = torch.compile(losses.model_losses, fullgraph=True, dynamic=False, backend=backend)
    agent._policy_loss = torch.compile(losses.policy_loss, fullgraph=True, dynamic=False, backend=backend)
    return agent


def same_updates(one: TDMPC2, other: TDMPC2, updates: int, **close: float) -> None:
    for seed in range(updates):
        stats = [agent.update(random_batch(agent.cfg, seed)) for agent in (one, other)]
        assert_close(stats[1], stats[0], **close)
    for (name, p), q in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert_close(q, p, **close, msg=lambda text, name=name: f"{name}: {text}")


# -- compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("taught", [False, True])
def test_compiled_losses_of_several_updates_are_one_graph(tiny_cfg: Config, taught: bool, precision: str) -> None:
    cfg = tiny_cfg.replace(
        distillation_targets=ALL_BUT_PCA, distillation_schedule="linear", steps=10, update_precision=precision
    )
    teacher = TDMPC2(cfg.replace(seed=7, latent_dim=24)) if taught else None
    plain, compiled = TDMPC2(cfg, teacher), compiled_by(TDMPC2(cfg, teacher), "aot_eager")
    rounding = {"rtol": 1e-4, "atol": 1e-5} if precision == "fp32" else {"rtol": 1e-2, "atol": 1e-3}
    with torch._dynamo.config.patch(error_on_recompile=True):
        same_updates(plain, compiled, 3, **rounding)


@needs_library
@pytest.mark.parametrize("task", ["mt30", "cartpole-balance"])
def test_update_with_fused_operator_differs_by_rounding_only(tiny_cfg: Config, task: str) -> None:
    cfg = tiny_cfg.replace(task=task)
    plain, fused = TDMPC2(cfg), TDMPC2(cfg)
    heads: list[int] = []

    def counted(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        heads.append(len(x))
        return norm_mish.norm_mish(x, *weights)

    fuse(fused.model, counted)
    same_updates(plain, fused, 3, rtol=1e-4, atol=1e-5)
    update = [1, 1, 1, 2, 2, 1, *[1] * 6, 1, 1, 3, 3, 1, 1, 2, 2]  # targets, encoder, dynamics, reward, Q, policy, Q
    assert heads == update * 3


@pytest.mark.slow
def test_compiled_run_continued_is_bitwise_equal(cfg: Config, tmp_path: Any) -> None:
    """A compiled run in bf16 covers the fp32 case as well: bf16 only adds casts to the same compiled functions."""
    cfg = cfg.replace(compile="true", update_precision="bf16")
    straight = load_file(train(cfg.replace(steps=10, work_dir=str(tmp_path / "straight")), None)).model
    train(cfg.replace(steps=5), None)
    continued = load_file(train(cfg.replace(steps=10), None)).model
    for name, p in straight.items():
        assert torch.equal(p, continued[name]), name


# -- bf16 -------------------------------------------------------------------------------------------------------------


def test_update_in_bf16_lowers_losses_as_fp32(tiny_cfg: Config) -> None:
    cfg = tiny_cfg.replace(lr=3e-3, dropout=0.0)
    agents = [TDMPC2(cfg.replace(update_precision=precision)) for precision in ("fp32", "bf16")]
    initial = {name: p.clone() for name, p in agents[0].model.state_dict().items()}
    history = [[agent.update(random_batch(cfg, 0, 64)) for _ in range(40)] for agent in agents]
    for name in ("consistency_loss", "reward_loss", "value_loss"):
        fp32, bf16 = ([float(step[name]) for step in steps] for steps in history)
        assert fp32 != bf16
        assert bf16[-1] == pytest.approx(fp32[-1], rel=0.05)
    assert float(history[1][-1]["total_loss"]) < 0.7 * float(history[1][0]["total_loss"])
    moved = apart = 0.0
    for name, p in agents[0].model.state_dict().items():
        assert p.dtype == agents[1].model.state_dict()[name].dtype == torch.float32
        moved += float((p - initial[name]).square().sum())
        apart += float((p - agents[1].model.state_dict()[name]).square().sum())
    assert math.sqrt(apart / moved) < 0.2


def test_train_continued_with_other_update_precision_is_refused(cfg: Config) -> None:
    train(cfg.replace(steps=2), None)
    with pytest.raises(ValueError, match=r"another configuration \(update_precision: fp32 there, bf16 now\)"):
        train(cfg.replace(steps=4, update_precision="bf16"), None)


# -- when it is compiled ----------------------------------------------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the compiler by one that returns each function as it is."""
    monkeypatch.setattr("tdmpc2.acceleration.compiled_update.can_compile", lambda device: True)
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *args: function(*args))


@pytest.mark.usefixtures("compiler")
def test_update_compilation_of_long_run_is_kept_when_continued(tiny_cfg: Config) -> None:
    long, short = tiny_cfg.replace(steps=20_000, batch_size=256), tiny_cfg.replace(steps=20)
    first = TDMPC2(long)
    assert not first.update_compiled
    assert first.compile_update().startswith("Compiling the update")
    assert first.update_compiled
    other = TDMPC2(short)
    assert (other.compile_update(), other.update_compiled) == ("", False)
    for cfg, begun, compiled in ((short, first, True), (long, other, False)):
        agent = TDMPC2(cfg)
        agent.load_training_state(begun.training_state())
        assert bool(agent.compile_update()) == agent.update_compiled == compiled
    off = TDMPC2(long.replace(compile="false"))
    assert (off.compile_update(), off.update_compiled) == ("", False)
    assert TDMPC2(short.replace(compile="true")).compile_update()


def test_compiled_losses_with_other_batch_size_run_eagerly(tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fast(function: Any, **_: Any) -> Any:
        def compiled(*args: Any) -> Any:
            sizes.append((args[2].obs if isinstance(args[2], Batch) else args[2]).shape[1])
            return function(*args)

        return compiled

    sizes: list[int] = []
    monkeypatch.setattr(torch, "compile", fast)
    agent, plain = TDMPC2(tiny_cfg), TDMPC2(tiny_cfg)
    agent._model_losses, agent._policy_loss = compiled_update.compiled(agent.model, agent.device)
    for layer in agent.model.modules():  # the other agent has no such operator
        if vars(layer).pop("norm_mish", None):
            layer.__class__ = QEnsemble if isinstance(layer, QEnsemble) else NormedLinear
    for seed, size in enumerate((8, 5, 8, 3)):
        stats = [each.update(random_batch(tiny_cfg, seed, size)) for each in (agent, plain)]
        assert_close(stats[0], stats[1], rtol=0, atol=0)
    assert sizes == [8, 8] * 2


@pytest.mark.usefixtures("compiler")
def test_update_not_compiled_logs_one_line_with_the_reason(tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_cfg.replace(compile="true")
    assert "several processes" in TDMPC2(cfg, group=ProcessGroup(0, 2)).compile_update()
    monkeypatch.setattr("tdmpc2.acceleration.compiled_update.can_compile", lambda device: False)
    agent = TDMPC2(cfg)
    assert agent.compile_update() == "Training without compilation: no compiler for cpu found"
    assert not agent.update_compiled


# -- fused layers without the compiler --------------------------------------------------------------------------------


def path_of(agent: TDMPC2) -> str | None:
    """Decide how the agent's updates are computed, and say it as a run saves it."""
    agent.compile_update()
    assert is_fused(agent) == (agent.training_state()["update_path"] == "fused")
    return cast(str | None, agent.training_state()["update_path"])


def is_fused(agent: TDMPC2) -> bool:
    return any(hasattr(layer, "norm_mish") for layer in agent.model.modules())


@needs_library
def test_short_run_is_fused_and_goes_on_as_it_was_begun(tiny_cfg: Config) -> None:
    short, plain = tiny_cfg.replace(steps=20), tiny_cfg.replace(compile="false")
    assert TDMPC2(short).training_state()["update_path"] is None
    assert path_of(TDMPC2(short)) == "fused"
    assert path_of(TDMPC2(plain)) == "plain"
    assert path_of(TDMPC2(short.replace(mlp_dim=24))) == "plain"  # not a multiple of 16
    for state, path in (
        ({"update_path": "fused"}, "fused"),
        ({"update_path": "plain"}, "plain"),
        ({}, "plain"),  # of versions without compilation
        ({"compiled": False}, "plain"),  # of versions without fused layers
    ):
        agent = TDMPC2(short)
        saved = {name: value for name, value in agent.training_state().items() if name != "update_path"}
        agent.load_training_state(saved | state)
        assert path_of(agent) == path, state


@needs_library
def test_run_begun_fused_goes_on_plainly_without_kernels(tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, agent = TDMPC2(tiny_cfg), TDMPC2(tiny_cfg)
    assert path_of(begun) == "fused"
    monkeypatch.setattr(norm_mish, "fits", lambda width: False)
    agent.load_training_state(begun.training_state())
    assert "without the fused layers" in agent.compile_update()
    assert path_of(agent) == "plain"


@needs_library
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_agent_that_has_to_go_on_plainly_gets_its_layers_back(
    tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    cfg = tiny_cfg.replace(update_precision=precision)
    agent, plain = TDMPC2(cfg), TDMPC2(cfg.replace(compile="false"))
    classes = [type(layer) for layer in agent.model.modules()]
    assert (path_of(agent), path_of(plain)) == ("fused", "plain")
    sent = pickle.dumps(agent)
    agent.load_training_state(plain.training_state())
    assert path_of(agent) == "plain"
    monkeypatch.setattr(norm_mish, "fits", lambda width: False)
    received = pickle.loads(sent)
    for other in (agent, received):
        assert [type(layer) for layer in other.model.modules()] == classes
    batch = random_batch(cfg, 0, 8)
    assert_close(received.update(batch), plain.update(batch), rtol=0, atol=0)


@needs_library
@pytest.mark.usefixtures("compiler")
def test_update_that_cannot_be_compiled_is_fused(tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_cfg.replace(compile="true")
    assert path_of(TDMPC2(cfg, group=ProcessGroup(0, 2))) == "fused"
    monkeypatch.setattr("tdmpc2.acceleration.compiled_update.can_compile", lambda device: False)
    assert path_of(TDMPC2(cfg)) == "fused"


@needs_library
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_updates_stay_close_to_plain_ones(tiny_cfg: Config, precision: str) -> None:
    cfg = tiny_cfg.replace(update_precision=precision)
    fused, plain = TDMPC2(cfg), TDMPC2(cfg)
    assert path_of(fused) == "fused"
    for seed in range(4):
        stats = [agent.update(random_batch(cfg, seed, 8)) for agent in (fused, plain)]
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if precision == "fp32" else {"rtol": 0.05, "atol": 0.02}
        assert_close(*stats, **tolerance)


@needs_library
def test_fused_agent_is_copied_and_acts_as_its_plain_weights(tiny_cfg: Config) -> None:
    agent, plain = TDMPC2(tiny_cfg), TDMPC2(tiny_cfg)
    assert path_of(agent) == "fused"
    agent.update(random_batch(tiny_cfg, 0, 8))
    plain.model.load_state_dict(agent.model.state_dict())
    obs = torch.randn(tiny_cfg.obs_dim, generator=torch.Generator().manual_seed(0))
    copy_of = pickle.loads(pickle.dumps(agent))
    actions = [each.player().act(obs, t0=True, eval_mode=True, task=3) for each in (agent, copy_of, plain)]
    for other in actions[1:]:
        assert_close(other, actions[0])


# -- parts ------------------------------------------------------------------------------------------------------------


def operands(dtype: torch.dtype, strided: bool, dropout: bool) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x = (4 * normal(51, 2, 48)).transpose(0, 1) if strided else 4 * normal(2, 51, 48)
    weights = [normal(2, 48).requires_grad_() for _ in range(3)]
    factors = (torch.rand(2, 51, 48, generator=generator) > 0.2) / 0.8 if dropout else None
    return (x.to(dtype).requires_grad_(), *weights, factors)  # type: ignore[return-value]


@needs_library
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norm_mish_and_gradients_match_plain_pytorch(
    dtype: torch.dtype, strided: bool, dropout: bool, threads: int
) -> None:
    torch.set_num_threads(threads)
    x, bias, gain, shift, factors = operands(dtype, strided, dropout)
    exact = [t.detach().double().requires_grad_() for t in (x, bias, gain, shift)]
    wide = exact[0] + exact[1][:, None]
    wide = wide if factors is None else wide * factors.double()
    want = F.mish(F.layer_norm(wide, (48,)) * exact[2][:, None] + exact[3][:, None])
    got = norm_mish.norm_mish(x, bias, gain, shift, factors)
    assert got.dtype == dtype
    slope = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = torch.autograd.grad(got, (x, bias, gain, shift), slope)
    close = {"rtol": 8e-3, "atol": 1e-4} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    assert_close(got.double(), want, **close)
    for mine, reference in zip(gradients, torch.autograd.grad(want, exact, slope.double()), strict=True):
        assert_close(mine.double(), reference, rtol=close["rtol"], atol=1e-4)


@needs_library
def test_norm_mish_has_the_same_bits_on_torchs_threads_and_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "linux" and "OpenMP" in torch.__config__.parallel_info():
        assert norm_mish._openmp_parallel(), "torch's threads are not found"
    torch.set_num_threads(3)
    inputs = operands(torch.float32, strided=True, dropout=True)
    results = []
    for parallel in (norm_mish._openmp_parallel(), 0):
        monkeypatch.setattr(norm_mish, "_openmp_parallel", lambda parallel=parallel: parallel)
        out = norm_mish.norm_mish(*inputs)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs[:4])))
    assert all(map(torch.equal, *results))


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="lists threads as Linux does")
def test_norm_mish_neither_ends_nor_starts_threads_of_torch() -> None:
    """GNU's OpenMP ends those that one loop has no use for, and starts them again for torch's next operator."""
    torch.set_num_threads(19)  # more than there are pieces of work
    inputs = operands(torch.float32, strided=False, dropout=False)
    big = torch.ones(2**20)
    listed = []
    for _ in range(3):
        big + 1
        norm_mish.norm_mish(*inputs).sum().backward()
        listed.append(sorted(os.listdir("/proc/self/task")))
    assert listed[1] == listed[2]


@needs_library
def test_norm_mish_on_rows_with_gaps_matches_contiguous() -> None:
    weights = operands(torch.float32, False, True)[1:]
    wide = torch.randn(2, 51, 4096)
    for gaps in (wide[..., :48], wide[:, :1, :48].expand(2, 51, 48)):
        xs = [gaps.detach().requires_grad_(), gaps.detach().contiguous().requires_grad_()]
        outs = [norm_mish.norm_mish(x, *weights) for x in xs]
        assert torch.equal(*outs)
        slopes = [torch.autograd.grad(out.square().sum(), x)[0] for out, x in zip(outs, xs, strict=True)]
        assert torch.equal(*slopes)


@needs_library
def test_norm_mish_passes_opcheck() -> None:
    inputs = [None if x is None else x.detach() for x in operands(torch.float32, True, True)]
    stats = torch.ops.tdmpc2.norm_mish(*inputs)[1]
    torch.library.opcheck(torch.ops.tdmpc2.norm_mish.default, inputs)
    torch.library.opcheck(torch.ops.tdmpc2.norm_mish_backward.default, (torch.ones(2, 51, 48), *inputs, stats))


@needs_library
def test_norm_mish_far_from_zero_matches_float64() -> None:
    y = torch.tensor([-1e4, -90.0, -88.0, -20.0, 0.0, 20.0, 90.0, 1e4]).repeat(2)[None]
    zeros = torch.zeros_like(y).requires_grad_()
    x = torch.full((1, 1, 16), 3.0, requires_grad=True)
    got = norm_mish.norm_mish(x, zeros, zeros, y.requires_grad_())  # LayerNorm returns its bias, y
    assert_close(got[0], F.mish(y), rtol=1e-6, atol=1e-30)
    slope, want = (torch.autograd.grad(out.sum(), y)[0] for out in (got, F.mish(y)))
    assert_close(slope, want, rtol=1e-5, atol=1e-7)
    assert norm_mish.norm_mish(x * math.nan, zeros, zeros, y).isnan().all()


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.5])
def test_dropout_mask_elements_are_independent(rate: float) -> None:
    shape = (2, 3, 500, 100)
    factors = dropout_factors(shape, rate, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert factors.shape == shape
    dropped = factors.flatten() == 0
    assert_close(factors.flatten()[~dropped].unique(), torch.tensor([1 / (1 - rate)]))
    size = dropped.numel()

    def near(count: torch.Tensor, probability: float) -> bool:
        return abs(int(count) - size * probability) < 5 * math.sqrt(size * probability)

    assert near(dropped.sum(), rate)
    assert near((dropped[1:] & dropped[:-1]).sum(), rate**2)
    assert near(2 * dropped[size // 2 :].sum(), rate)  # also in the second half
