"""What a student can learn from its teacher: every loss against a plain version, where its gradient goes, schedules."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import read_file, save_file
from tdmpc2.config import Config, parse_cfg
from tdmpc2.data.dataset import Batch
from tdmpc2.distillation import distillation as distill
from tdmpc2.distillation import losses as distill_losses
from tdmpc2.distillation import outputs
from tdmpc2.distillation.projection import fit_pca, linear_projection
from tdmpc2.distillation.targets import TARGETS, loss_name
from tdmpc2.nn.math import bin_centres
from tdmpc2.training.offline import train

from .test_targets import make_teacher
from .test_training import equal, rows
from .test_update import random_batch

B, H, K, A = 5, 3, 101, 4
BINS = bin_centres(K, -10.0, 10.0).double()
every_target = pytest.mark.parametrize("target", tuple(TARGETS))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def make_expert(cfg: Config, seed: int = 3) -> TDMPC2:
    """A teacher with values and a policy that depend on their inputs, as after training."""
    expert = make_teacher(cfg)
    generator, model = torch.Generator().manual_seed(seed), expert.model
    policy: Any = model._pi[-1]
    with torch.no_grad():
        model._Qs.params[8].normal_(0, 0.5, generator=generator)
        model._Qs.params[9].copy_(-4 * (model.bins - 2).square())
        policy.weight.normal_(0, 0.2, generator=generator)
        policy.bias[cfg.action_dim :] = -0.2
    model.context(torch.arange(len(cfg.task_specs)))  # rescales the embedding where its norm is above 1
    return expert


def make_student(cfg: Config, expert: TDMPC2) -> TDMPC2:
    """One that has learned something: a new one's rewards and values are zero. With a PCA if it needs one."""
    student = TDMPC2(cfg, expert)
    generator, model = torch.Generator().manual_seed(11), student.model
    with torch.no_grad():
        model._reward[-1].weight.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr,operator]
        model._Qs.params[8].normal_(0, 0.3, generator=generator)
    if student.distillation.needs_pca:
        batch = random_batch(cfg, 99, 200)
        student.distillation.fit_pca([(batch.obs[0], batch.task), (batch.obs[1], batch.task)])
    return student


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def decoded(logits: Tensor) -> float:
    """The value of one row of logits, number by number."""
    exps = [math.exp(x) for x in logits.tolist()]
    mean = sum(e * c for e, c in zip(exps, BINS.tolist(), strict=True)) / sum(exps)
    return math.copysign(math.expm1(abs(mean)), mean)


def cross_entropy(target: list[float], logits: list[float]) -> float:
    log_sum = math.log(sum(math.exp(x) for x in logits))
    return -sum(p * (x - log_sum) for p, x in zip(target, logits, strict=True))


# -- losses -----------------------------------------------------------------------------------------------------------


def test_reward_loss(generator: torch.Generator) -> None:
    logits, teacher = normal(generator, B, K), normal(generator, B, 1)
    slow = np.mean([(decoded(logits[b]) - float(teacher[b])) ** 2 for b in range(B)])
    assert float(distill_losses.reward_loss(logits, teacher, BINS)) == pytest.approx(slow, rel=1e-9)


def test_reward_horizon_loss(generator: torch.Generator) -> None:
    logits, teacher, rho = normal(generator, H, B, K), normal(generator, H, B, 1), 0.5 ** torch.arange(H)
    slow = 0.0
    for t in range(H):
        slow += 0.5**t * np.mean([(decoded(logits[t, b]) - float(teacher[t, b])) ** 2 for b in range(B)]) / H
    assert float(distill_losses.reward_horizon_loss(logits, teacher, BINS, rho)) == pytest.approx(slow, rel=1e-9)
    first = distill_losses.reward_horizon_loss(logits[:1], teacher, BINS, rho[:1])
    assert float(first) == pytest.approx(float(distill_losses.reward_loss(logits[0], teacher[0], BINS)), rel=1e-12)
    with pytest.raises(ValueError, match="needs the teacher's reward of 3 steps, but teacher_reward has 1"):
        distill_losses.reward_horizon_loss(logits, teacher[:1], BINS, rho)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_reward_logits_loss(generator: torch.Generator, temperature: float) -> None:
    student, teacher = normal(generator, B, K), normal(generator, B, K)
    slow = []
    for b in range(B):
        exps = [math.exp(x / temperature) for x in teacher[b].tolist()]
        softened = [e / sum(exps) for e in exps]
        slow.append(temperature**2 * cross_entropy(softened, (student[b] / temperature).tolist()))
    loss = distill_losses.reward_logits_loss
    assert float(loss(student, teacher, temperature)) == pytest.approx(np.mean(slow), rel=1e-9)
    same = teacher.clone().requires_grad_()
    loss(same, teacher, temperature).backward()  # type: ignore[no-untyped-call]
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-12  # the least it can be: the teacher's own logits


def test_the_temperature_keeps_the_size_of_the_gradient(generator: torch.Generator) -> None:
    """For logits that are small beside T it tends to that of half the squared difference of logits over K."""
    student, teacher = 1e-2 * normal(generator, B, K), 1e-2 * normal(generator, B, K)
    student.requires_grad_()
    (grad,) = torch.autograd.grad(distill_losses.reward_logits_loss(student, teacher, 100.0), student)
    difference = student - teacher
    assert_close(grad, (difference - difference.mean(1, keepdim=True)) / K / B, rtol=1e-2, atol=1e-9)


def test_next_state_linear_loss(generator: torch.Generator) -> None:
    z, teacher_z, projection = normal(generator, B, 16), normal(generator, B, 24), linear_projection(16, 24, 1).double()
    weight, bias = projection.weight.detach().numpy(), projection.bias.detach().numpy()
    assert (weight.std() - 0.02) < 0.005
    slow = np.mean([(weight @ z[b].numpy() + bias - teacher_z[b].numpy()) ** 2 for b in range(B)])
    loss = distill_losses.next_state_linear_loss(z, teacher_z, projection)
    assert loss.item() == pytest.approx(slow, rel=1e-9)
    assert torch.equal(linear_projection(16, 24, 1).weight, linear_projection(16, 24, 1).weight)


def test_next_state_pca_loss(generator: torch.Generator) -> None:
    """Against the singular value decomposition, in numpy."""
    data = normal(generator, 300, 24) @ normal(generator, 24, 24) + 3
    pca, share = fit_pca(data, 16)
    centred = data.numpy() - data.numpy().mean(0)
    _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
    vectors = vectors[:16] * np.sign(vectors[:16][range(16), np.abs(vectors[:16]).argmax(1)])[:, None]
    variance = singular**2 / 299
    assert share == pytest.approx(variance[:16].sum() / variance.sum(), rel=1e-9)
    scaled = vectors.T / math.sqrt(variance[:16].mean())
    assert_close(pca.components.numpy(), scaled.astype(np.float32), rtol=1e-4, atol=1e-6)
    assert_close(pca.mean.numpy(), data.numpy().mean(0).astype(np.float32), rtol=1e-6, atol=1e-6)
    z, teacher_z = torch.rand(B, 16, generator=generator, dtype=torch.float64), normal(generator, B, 24)
    slow = []
    for b in range(B):
        components = (teacher_z[b].numpy() - data.numpy().mean(0)) @ scaled
        for group in range(2):
            exps = np.exp(components[8 * group : 8 * group + 8])
            slow += list((z[b, 8 * group : 8 * group + 8].numpy() - exps / exps.sum()) ** 2)
    loss = distill_losses.next_state_pca_loss(z, teacher_z, type(pca)(*(part.double() for part in pca)), 8)
    assert float(loss) == pytest.approx(np.mean(slow), rel=1e-5)  # the components are stored in float32


def test_fitted_components(generator: torch.Generator) -> None:
    """Data of three directions, in 24 dimensions: they are found, and the rest is no part of the share."""
    directions = torch.linalg.qr(normal(generator, 24, 3)).Q
    data = normal(generator, 4000, 3) * torch.tensor([3.0, 2.0, 1.0]) @ directions.T
    pca, share = fit_pca(data, 3)
    assert share == pytest.approx(1)
    components = pca.components.double() / pca.components.double().norm(dim=0)
    assert_close(components.T @ components, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert ((components * directions).sum(0).abs() > 0.99).all()
    projected = (data - pca.mean) @ pca.components.double()
    assert float(projected.var(0).mean()) == pytest.approx(1, rel=1e-4)
    assert projected.var(0).tolist() == sorted(projected.var(0).tolist(), reverse=True)
    assert fit_pca(data, 2)[1] == pytest.approx(13 / 14, rel=0.02)
    for bad in (torch.ones(100, 24), torch.ones(1, 24), torch.full((9, 24), math.nan)):
        with pytest.raises(ValueError, match="no principal components"):
            fit_pca(bad, 3)


def test_value_loss(generator: torch.Generator) -> None:
    logits, teacher = normal(generator, 3, B, K), 5 * normal(generator, B, 1)
    slow = []
    for b in range(B):
        value = float(teacher[b])
        position = (math.copysign(math.log1p(abs(value)), value) + 10) / 0.2
        two_hot = [max(0.0, 1 - abs(k - position)) for k in range(K)]
        slow += [cross_entropy(two_hot, logits[q, b].tolist()) for q in range(3)]
    assert float(distill_losses.value_loss(logits, teacher, BINS)) == pytest.approx(np.mean(slow), rel=1e-6)


def test_policy_loss(generator: torch.Generator) -> None:
    mean, log_std, teacher_mean, teacher_log_std = (normal(generator, B, A) for _ in range(4))
    for x in (mean, log_std, teacher_mean, teacher_log_std):
        x[:, 2:] = 0  # dimensions that the task does not have
    student = torch.distributions.Normal(mean[:, :2], log_std[:, :2].exp())
    teacher = torch.distributions.Normal(teacher_mean[:, :2], teacher_log_std[:, :2].exp())
    slow = torch.distributions.kl_divergence(teacher, student).sum(-1).mean()
    loss = distill_losses.policy_loss
    assert float(loss(mean, log_std, teacher_mean, teacher_log_std)) == pytest.approx(float(slow), rel=1e-9)
    assert float(loss(mean, log_std, mean, log_std)) == 0
    tanh = torch.distributions.transforms.TanhTransform()
    u = teacher.sample((200_000,))
    squashed = [
        torch.distributions.TransformedDistribution(d, tanh).log_prob(torch.tanh(u)) for d in (teacher, student)
    ]
    finite = squashed[0].isfinite() & squashed[1].isfinite()
    sampled = (squashed[0] - squashed[1])[finite].mean() * 2
    assert float(sampled) == pytest.approx(float(slow), rel=0.05)  # of the actions, after tanh: the same


# -- what the teacher is asked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "steps"),
    [
        (("reward",), (0, 1)),
        (("reward_horizon",), (0, 3)),
        (("reward_logits", "policy", "value"), (0, 1)),
        (("next_state_linear",), (1, 2)),
        (("next_state_pca", "next_state_linear"), (1, 2)),
        (("value", "next_state_pca"), (0, 2)),
        (tuple(TARGETS), (0, 3)),
    ],
)
def test_the_teacher_is_asked_once_for_what_is_needed(
    tiny_cfg: Config, targets: tuple[str, ...], steps: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expert, batch = make_expert(tiny_cfg), random_batch(tiny_cfg, 0)
    model = expert.model
    encoded, original = [], model.encode
    monkeypatch.setattr(model, "encode", lambda obs, task: encoded.append(obs) or original(obs, task))
    got = outputs.teacher_outputs(expert.model, targets, batch.obs, batch.action, batch.task)
    assert len(encoded) == 1
    assert torch.equal(encoded[0], batch.obs[steps[0] : steps[1]])
    monkeypatch.undo()
    model.context(batch.task)  # so that the norms of the embedding are what they will be
    z = [model.encode(batch.obs[t], batch.task) for t in range(4)]
    if "reward" in targets or "reward_horizon" in targets:
        assert got.reward is not None
        assert len(got.reward) == (3 if "reward_horizon" in targets else 1)
        for t, reward in enumerate(got.reward):
            for b in range(8):
                logits = model.reward(z[t][b], batch.action[t, b], batch.task[b])
                assert float(reward[b]) == pytest.approx(decoded(logits.double()), abs=1e-5)
    if "reward_logits" in targets:
        assert_close(got.reward_logits, model.reward(z[0], batch.action[0], batch.task))
    if "value" in targets:
        assert got.value is not None
        heads = model.Q(z[0], batch.action[0], batch.task, "all").double()
        slow = [np.mean([decoded(head[b]) for head in heads]) for b in range(8)]
        assert_close(got.value[0, :, 0], torch.tensor(slow, dtype=torch.float32), rtol=1e-4, atol=1e-4)
        assert got.value.std() > 0.1
    if set(targets) & {"next_state_linear", "next_state_pca"}:
        assert_close(got.next_latent, z[1])
    if "policy" in targets:
        assert got.policy is not None
        assert_close(torch.tanh(got.policy[0]), model.pi(z[0], batch.task)[1]["mean"])
        assert_close(got.policy[1], model.pi(z[0], batch.task)[1]["log_std"])
    fields = {"reward": ("reward", "reward_horizon"), "next_latent": ("next_state_linear", "next_state_pca")}
    for name, output in got._asdict().items():
        assert (output is not None) == bool(set(targets) & set(fields.get(name, (name,)))), name
        for tensor in output if isinstance(output, tuple) else [output]:
            assert tensor is None or not tensor.requires_grad


def test_the_reward_is_bit_for_bit_that_of_its_first_step(tiny_cfg: Config) -> None:
    expert, batch = make_expert(tiny_cfg), random_batch(tiny_cfg, 0)
    expert.model.context(batch.task)
    got = outputs.teacher_outputs(expert.model, ("reward",), batch.obs, batch.action, batch.task).reward
    assert torch.equal(
        got, outputs.teacher_columns(expert.model, ("reward",), batch.obs[:1], batch.action[:1], batch.task)["reward"]
    )
    assert torch.equal(
        got[0], outputs.teacher_columns(expert.model, ("reward",), batch.obs[0], batch.action[0], batch.task)["reward"]
    )


# -- in an update -----------------------------------------------------------------------------------------------------


@every_target
def test_an_update_computes_and_weights_the_loss(tiny_cfg: Config, target: str) -> None:
    """The loss that is logged, from the networks as they were before the update; and its share in the total."""
    cfg = tiny_cfg.replace(
        dropout=0, distillation_targets=("reward 2", f"{target} 0.3") if target != "reward" else ("reward 2",)
    )
    expert = make_expert(cfg)
    student, batch = make_student(cfg, expert), random_batch(cfg, 0)
    model, task = student.model, batch.task
    with torch.no_grad():
        z = [model.encode(batch.obs[0], task)]
        for t in range(3):
            z.append(model.next(z[t], batch.action[t], task))
        teacher_z = [expert.model.encode(batch.obs[t], task) for t in range(4)]
        logits = [model.reward(z[t], batch.action[t], task).double() for t in range(3)]
        taught = [expert.model.reward(teacher_z[t], batch.action[t], task).double() for t in range(3)]
        pairs = zip(torch.softmax(taught[0] / 2, -1), logits[0] / 2, strict=True)
        softened = [cross_entropy(target.tolist(), row.tolist()) for target, row in pairs]
        rewards = [[decoded(row) for row in step] for step in logits]
        expected = [[decoded(row) for row in step] for step in taught]
        errors = [np.mean(np.square(np.subtract(r, e))) for r, e in zip(rewards, expected, strict=True)]
        info, expert_info = model.pi(z[0], task)[1], expert.model.pi(teacher_z[0], task)[1]
        distributions = [
            torch.distributions.Normal(i["presquash_mean"], i["log_std"].exp()) for i in (expert_info, info)
        ]
        pca, projection = student.distillation.pca, student.distillation.projection
        value = expert.model.Q(teacher_z[0], batch.action[0], task, "all").double()
        values = torch.tensor([[np.mean([decoded(head[b]) for head in value])] for b in range(8)])
        slow = {
            "reward": lambda: errors[0],
            "reward_horizon": lambda: sum(0.5**t * errors[t] for t in range(3)) / 3,
            "reward_logits": lambda: 4 * np.mean(softened),
            "next_state_linear": lambda: float((projection(z[1]) - teacher_z[1]).square().mean()),  # type: ignore[misc]
            "next_state_pca": lambda: float((z[1] - pca.project(teacher_z[1], 8)).square().mean()),  # type: ignore[union-attr]
            "value": lambda: float(
                distill_losses.value_loss(model.Q(z[0], batch.action[0], task, "all").double(), values.double(), BINS)
            ),
            "policy": lambda: float(torch.distributions.kl_divergence(*distributions).sum(-1).mean()),
        }[target]()  # fmt: skip
    stats = student.update(batch)
    name = "distillation_loss" if target == "reward" else f"distillation_{target}_loss"
    assert float(stats[name]) == pytest.approx(slow, rel=1e-3)
    assert slow > 1e-4
    assert {key for key in stats if key.startswith("distillation")} == {"distillation_loss", name}
    total = (
        20 * stats["consistency_loss"]
        + 0.1 * (stats["reward_loss"] + stats["value_loss"])
        + 2 * stats["distillation_loss"]
    )
    if target not in ("reward", "policy"):
        total = total + 0.3 * stats[name]
    assert float(stats["total_loss"]) == pytest.approx(float(total), rel=1e-5)


#: The networks that a target's gradient reaches.
REACHES = {
    "reward": {"_encoder", "_reward", "_task_emb"},
    "reward_horizon": {"_encoder", "_dynamics", "_reward", "_task_emb"},
    "reward_logits": {"_encoder", "_reward", "_task_emb"},
    "next_state_linear": {"_encoder", "_dynamics", "_task_emb", "projection"},
    "next_state_pca": {"_encoder", "_dynamics", "_task_emb"},
    "value": {"_encoder", "_Qs", "_task_emb"},
    "policy": {"_pi"},
}


@every_target
def test_where_the_gradient_goes(tiny_cfg: Config, target: str) -> None:
    """Gradients with the target and with its weight zero, of students that otherwise do the same."""
    grads: list[dict[str, Tensor]] = []
    for weight in (0.0, 1.0):
        cfg = tiny_cfg.replace(lr=0, grad_clip_norm=1e9, distillation_targets=(f"{target} {weight}",))
        expert = make_expert(cfg)
        student, frozen = make_student(cfg, expert), {n: p.clone() for n, p in expert.model.state_dict().items()}
        found: dict[str, Tensor] = {}
        named = list(student.model.named_parameters())
        if student.distillation.projection is not None:
            named += [(f"projection.{n}", p) for n, p in student.distillation.projection.named_parameters()]

        def record(*_: Any, found: dict[str, Tensor] = found, named: list[tuple[str, Any]] = named) -> None:
            found.update({name: p.grad.clone() for name, p in named if p.grad is not None})

        student.optim.register_step_pre_hook(record)
        student.pi_optim.register_step_pre_hook(record)
        student.update(random_batch(cfg, 0))
        grads.append(found)
        assert all(p.grad is None for p in expert.model.parameters())
        for name, p in expert.model.state_dict().items():
            assert_close(p, frozen[name], rtol=1e-6, atol=0)  # the embedding: a norm may be above 1 by rounding
    without, with_target = grads
    assert without.keys() == with_target.keys()
    changed = {name.split(".")[0] for name in without if not torch.equal(without[name], with_target[name])}
    assert changed == REACHES[target]


def test_the_policys_weight_and_schedule(tiny_cfg: Config) -> None:
    """Its share of the gradient is proportional to the weight times the factor."""
    grads: list[tuple[float, int, Tensor]] = []
    for weight in (0, 2, 3):
        keys = {"distillation_targets": (f"policy {weight}",), "distillation_schedule": "linear", "steps": 4}
        cfg = tiny_cfg.replace(grad_clip_norm=1e9, lr=0, tau=0, **keys)
        student, found = make_student(cfg, make_expert(cfg)), []
        params = student._policy_params
        student.pi_optim.register_step_pre_hook(
            lambda *_, found=found, params=params: found.append(torch.cat([p.grad.flatten() for p in params]))
        )
        run(student, range(2))
        grads += [(weight * factor, step, found[step]) for step, factor in enumerate((1, 3 / 4))]
    without = [grad for coefficient, _, grad in grads if coefficient == 0]
    batch = random_batch(cfg, 1, 16)  # that of the second update
    info = student.model.pi(student.model.encode(batch.obs[0], batch.task).detach(), batch.task)[1]
    taught = outputs.teacher_outputs(make_expert(cfg).model, ("policy",), batch.obs, batch.action, batch.task).policy
    assert taught is not None
    loss = distill_losses.policy_loss(info["presquash_mean"], info["log_std"], *taught)
    share = torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, params)])
    for coefficient, step, grad in grads:
        if coefficient and step == 1:
            tolerance = 1e-4 * float(share.abs().max())
            assert_close((grad - without[step]) / coefficient, share, rtol=1e-3, atol=tolerance)


def run(student: TDMPC2, steps: range, size: int = 16) -> list[dict[str, Tensor]]:
    return [student.update(random_batch(student.cfg, step, size)) for step in steps]


def same_weights(first: TDMPC2, second: TDMPC2) -> bool:
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "reward"])
def test_a_target_of_weight_zero_changes_nothing(tiny_cfg: Config, target: str) -> None:
    """Neither the weights nor the random numbers: bit for bit the updates of the default."""
    default = make_student(tiny_cfg, make_expert(tiny_cfg))
    other_cfg = tiny_cfg.replace(distillation_targets=("reward", f"{target} 0"), distillation_schedule="constant")
    other = make_student(other_cfg, make_expert(other_cfg))
    before, after = run(default, range(5)), run(other, range(5))
    assert same_weights(default, other)
    assert torch.equal(default.generator.get_state(), other.generator.get_state())
    for first, second in zip(before, after, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first if name != "total_loss")
        assert_close(first["total_loss"], second["total_loss"])  # the order of the sum may be another


def test_the_default_is_the_reward_with_its_weight(tiny_cfg: Config) -> None:
    assert Config().distillation_terms == {"reward": 0.45}
    assert tiny_cfg.replace(distillation_weight=0.1).distillation_terms == {"reward": 0.1}
    default, spelled = (
        make_student(cfg, make_expert(cfg))
        for cfg in (tiny_cfg, tiny_cfg.replace(distillation_weight=7, distillation_targets="reward 0.45"))
    )
    first, second = run(default, range(5)), run(spelled, range(5))
    assert same_weights(default, spelled)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)
    assert [len(group["params"]) for group in default.optim.param_groups] == [
        len(list(default.model._encoder.parameters())),
        len([p for n, p in default.model.named_parameters() if not n.startswith(("_encoder", "_pi", "_target_Qs"))]),
    ]


def test_nothing_is_distilled_without_a_teacher(tiny_cfg: Config) -> None:
    plain, named = TDMPC2(tiny_cfg), TDMPC2(tiny_cfg.replace(distillation_targets=tuple(TARGETS)))
    assert not any(name.startswith("distillation") for stats in run(named, range(3)) for name in stats)
    run(plain, range(3))
    assert same_weights(plain, named)


def test_an_update_with_every_target_does_not_wait_for_the_device(tiny_cfg: Config) -> None:
    """Reading a tensor on the host fails on a fake tensor."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for schedule in ("linear", "gap"):
        cfg = tiny_cfg.replace(distillation_targets=tuple(TARGETS), distillation_schedule=schedule)
        with FakeTensorMode():
            agent = TDMPC2(cfg, TDMPC2(cfg.replace(latent_dim=24)))
            agent.distillation.pca = distill.PCA(torch.zeros(24), torch.zeros(24, 16))
            for step in range(2):
                stats = agent.update(random_batch(cfg, step))
        assert all(value.shape == () for value in stats.values())
        assert len([name for name in stats if name.startswith("distillation")]) == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_target_waits_for_a_gpu(tiny_cfg: Config) -> None:
    for schedule in ("constant", "linear", "cosine", "gap"):
        keys = {"distillation_targets": tuple(TARGETS), "distillation_schedule": schedule, "device": "cuda"}
        cfg = tiny_cfg.replace(**keys)
        agent = TDMPC2(cfg, TDMPC2(cfg.replace(latent_dim=24)))
        batch = Batch(*(tensor.cuda() for tensor in random_batch(cfg, 0) if tensor is not None))
        agent.distillation.fit_pca([(batch.obs.flatten(0, 1), batch.task.repeat(4))])
        agent.update(batch)
        torch.cuda.set_sync_debug_mode("error")
        try:
            agent.update(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


# -- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("constant", [1, 1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25, 0]), ("cosine", [1, 0.8535534, 0.5, 0.1464466, 0])],
)
def test_factors(tiny_cfg: Config, schedule: str, factors: list[float]) -> None:
    cfg = tiny_cfg.replace(steps=4, distillation_schedule=schedule, distillation_targets=("reward 3", "value 5"))
    student = make_student(cfg, make_expert(cfg))
    for step, factor in enumerate([*factors, factors[-1]]):
        assert student.distillation.weight("reward") == pytest.approx(3 * factor)
        assert student.distillation.weight("value") == pytest.approx(5 * factor)
        (stats,) = run(student, range(step, step + 1))
        rest = 20 * stats["consistency_loss"] + 0.1 * (stats["reward_loss"] + stats["value_loss"])
        distilled = 3 * stats["distillation_loss"] + 5 * stats["distillation_value_loss"]
        assert float(stats["total_loss"]) == pytest.approx(float(rest + factor * distilled), rel=1e-4)
        if schedule == "constant":
            assert "distillation_factor" not in stats
        else:
            assert float(stats["distillation_factor"]) == pytest.approx(factor, abs=1e-6)


def test_gap_against_a_plain_version(tiny_cfg: Config) -> None:
    losses = [2.0 + math.sin(n) for n in range(100)] + [1.5] * 200 + [0.2] * 300 + [9.0] * 50
    cfg = tiny_cfg.replace(distillation_schedule="gap", distillation_targets=("value", "reward"))
    gap = distill.Distillation(cfg, None, torch.device("cpu"))
    average, start, factors = 0.0, math.nan, []
    for number, loss in enumerate(losses, 1):
        expected = 1.0 if number <= 101 else min(max(average / start, 0), 1)
        stats = {"distillation_value_loss": torch.tensor(loss), "distillation_loss": torch.tensor(123.0)}
        factors.append(float(gap.advance(stats)["distillation_factor"]))
        assert factors[-1] == pytest.approx(expected, abs=1e-4)
        average = sum(losses[:number]) / number if number <= 100 else average + (loss - average) / 100
        start = average if number <= 100 else start
    assert factors[100] == pytest.approx(1)  # a running mean of what the first hundred were
    assert all(a >= b for a, b in zip(factors[101:600], factors[102:601], strict=True))  # while the loss is below it
    assert 0.1 < factors[600] < 0.2
    assert factors[-1] > factors[601]
    for loss, factor in ((0.0, 0.0), (math.nan, math.nan)):
        gap = distill.Distillation(cfg, None, torch.device("cpu"))
        gap.advance({"distillation_value_loss": torch.tensor(loss)})
        assert float(gap.factor()) == pytest.approx(factor, nan_ok=True)


def test_gap_while_training(tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "GAP_UPDATES", 5)
    cfg = tiny_cfg.replace(distillation_schedule="gap", distillation_targets=("policy 1", "reward"), lr=3e-3)
    stats = run(make_student(cfg, make_expert(cfg)), range(60))
    factors = [float(step["distillation_factor"]) for step in stats]
    assert factors[:6] == pytest.approx([1] * 6)
    assert stats[-1]["distillation_policy_loss"] < 0.7 * stats[0]["distillation_policy_loss"]
    assert factors[-1] < 0.8
    assert np.mean(factors[40:]) < np.mean(factors[10:30])


# -- continuing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "gap"])
def test_continuing_an_agent(tiny_cfg: Config, schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a file, with every target, in the middle of the gap's first average."""
    monkeypatch.setattr(distill, "GAP_UPDATES", 5)
    keys = {"distillation_schedule": schedule, "distillation_targets": tuple(TARGETS), "steps": 10}
    cfg = tiny_cfg.replace(**keys)
    straight = make_student(cfg, make_expert(cfg))
    run(straight, range(3))
    state = {"weights": straight.model.state_dict(), "training": straight.training_state()}
    save_file(tmp_path / "state.pt", state, overwrite=False)
    expected = run(straight, range(3, 9))
    resumed = TDMPC2(cfg, make_expert(cfg))
    assert resumed.distillation.needs_pca
    state = read_file(tmp_path / "state.pt")
    resumed.model.load_state_dict(state["weights"])
    resumed.load_training_state(state["training"])
    assert not resumed.distillation.needs_pca
    got = run(resumed, range(3, 9))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(expected, got, strict=True) for name in a)
    assert same_weights(straight, resumed)
    assert torch.equal(straight.distillation.projection.weight, resumed.distillation.projection.weight)  # type: ignore[union-attr]


def test_a_state_from_before_there_were_targets(tiny_cfg: Config) -> None:
    first, second = (make_student(tiny_cfg, make_expert(tiny_cfg)) for _ in range(2))
    run(first, range(2))
    state = copy.deepcopy(first.training_state())
    del state["distillation"]
    second.model.load_state_dict(first.model.state_dict())
    second.load_training_state(state)
    run(first, range(2, 4))
    run(second, range(2, 4))
    assert same_weights(first, second)


def test_the_projection_is_no_part_of_the_model(tiny_cfg: Config, tmp_path: Path) -> None:
    cfg = tiny_cfg.replace(distillation_targets=("next_state_linear 30",))
    student, plain = make_student(cfg, make_expert(cfg)), TDMPC2(tiny_cfg)
    run(student, range(2))
    student.save(tmp_path / "x.pt")
    assert student.model.state_dict().keys() == plain.model.state_dict().keys()
    assert TDMPC2(cfg).load(tmp_path / "x.pt") is None
    assert [id(p) for p in student.distillation.parameters] == [id(p) for p in student.optim.param_groups[2]["params"]]
    assert student.optim.param_groups[2]["lr"] == cfg.lr
    stats = student.update(random_batch(cfg, 2, 16))  # clipped together with the model's, here not at all
    grads = [p.grad for group in student.optim.param_groups for p in group["params"] if p.grad is not None]
    assert student.distillation.parameters[0].grad.norm() > 0  # type: ignore[union-attr]
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    assert float(stats["grad_norm"]) == pytest.approx(float(norm), rel=1e-6)
    assert norm < cfg.grad_clip_norm


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def expert(cfg: Config, tmp_path: Path) -> Config:
    """A teacher in a file."""
    make_expert(cfg).save(tmp_path / "expert.pt")
    return Config(checkpoint=str(tmp_path / "expert.pt"))


@every_target
def test_every_target_is_learned(cfg: Config, expert: Config, target: str, tmp_path: Path) -> None:
    """The loss falls, and further than in a student that is not taught but is measured alike."""
    weight = 5.0 if target not in ("value", "policy", "reward_logits") else 1.0
    keys = {"steps": 120, "log_freq": 1, "lr": 2e-3, "batch_size": 32, "distillation_targets": (f"{target} {weight}",)}
    cfg = cfg.replace(**keys)
    train(cfg, expert)
    untaught = cfg.replace(distillation_targets=(f"{target} 0",), work_dir=str(tmp_path / "untaught"))
    train(untaught, expert)
    curves = []
    for run_cfg in (cfg, untaught):
        log = rows(run_cfg.run_dir / "train.csv")
        curves.append([row[f"{loss_name(target)}_loss"] for row in log])
    first, last, last_untaught = np.mean(curves[0][:5]), np.mean(curves[0][-20:]), np.mean(curves[1][-20:])
    assert last < 0.95 * first
    assert last < 0.95 * last_untaught


def test_a_killed_run_continues_exactly(cfg: Config, expert: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = cfg.replace(
        distillation_targets=("next_state_linear", "next_state_pca 2", "policy 0.1"), distillation_schedule="cosine"
    )
    straight = train(cfg.replace(work_dir=str(cfg.run_dir) + "-straight"), expert)
    cfg = cfg.replace(save_freq=6, log_freq=1)
    updates: list[int] = []
    update, fit = TDMPC2.update, distill.fit_pca

    def killed(self: TDMPC2, *args: Any) -> Any:
        if len(updates) == 9:
            raise KeyboardInterrupt
        updates.append(1)
        return update(self, *args)

    monkeypatch.setattr(TDMPC2, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, expert)
    monkeypatch.undo()
    fitted: list[int] = []
    monkeypatch.setattr(distill, "fit_pca", lambda *args: fitted.append(1) or fit(*args))
    assert equal(train(cfg, expert), straight)
    assert not fitted  # it is in the state
    log = rows(cfg.run_dir / "train.csv")
    assert [row["distillation_factor"] for row in log] == pytest.approx(
        [(1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)], abs=1e-6
    )


def test_steps_that_a_schedule_ends_at_do_not_change(cfg: Config, expert: Config, tmp_path: Path) -> None:
    for schedule, message in (("linear", r"another configuration \(steps: 3 there, 5 now\)"), ("gap", "")):
        own = cfg.replace(steps=3, distillation_schedule=schedule, work_dir=str(tmp_path / schedule))
        train(own, expert)
        if message:
            with pytest.raises(ValueError, match=message):
                train(own.replace(steps=5), expert)
        else:
            train(own.replace(steps=5), expert)
    alone = cfg.replace(steps=3, distillation_schedule="linear", work_dir=str(tmp_path / "alone"))
    train(alone, None)
    train(alone.replace(steps=5), None)  # nothing is distilled


def test_a_run_from_before_there_were_targets_goes_on(cfg: Config, expert: Config) -> None:
    path = train(cfg.replace(steps=3), expert)
    record = json.loads((path.parent / "run.json").read_text())
    for key in ("distillation_targets", "distillation_schedule"):
        del record[key]
    (path.parent / "run.json").write_text(json.dumps(record))
    train(cfg.replace(steps=5), expert)
    with pytest.raises(ValueError, match=r"distillation_targets: \['reward'\] there, \['value'\] now"):
        train(cfg.replace(steps=5, distillation_targets=("value",)), expert)


@pytest.mark.parametrize("cache", ["full", "lazy"])
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_runs_with_cached_rewards_and_values(
    cfg: Config, expert: Config, data_dir: Path, tmp_path: Path, cache: str, place: str
) -> None:
    shutil.copytree(data_dir, tmp_path / "data")
    targets = ("reward", "value 0.1", "reward_horizon 0.2")
    cfg = cfg.replace(data_dir=str(tmp_path / "data"), distillation_targets=targets, log_freq=1)
    train(cfg, expert)
    cached = cfg.replace(distillation_cache=cache, data_device=place, work_dir=str(tmp_path / "cached"))
    train(cached, expert)
    live, same = rows(cfg.run_dir / "train.csv"), rows(cached.run_dir / "train.csv")
    for name in ("distillation_loss", "distillation_value_loss", "distillation_reward_horizon_loss", "total_loss"):
        for row, other in zip(live, same, strict=True):
            assert other[name] == pytest.approx(row[name], rel=1e-5, abs=1e-6), name
    (folder,) = [path for path in (tmp_path / "data").rglob("targets/*/") if path.is_dir()]
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "reward.npy", "value.npy"]


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("rewards", r"'rewards' is not one of reward, .*policy\. Did you mean 'reward'\?"),
        (["reward", "reward 0.1"], "'reward 0.1': 'reward' is there twice"),
        (["value -1"], r"'value -1': the weight -1\.0 must be at least 0"),
        (["value nan"], r"the weight nan must be at least 0"),
        (["value much"], r"'value much' is not 'NAME' or 'NAME WEIGHT', for example"),
        (["value 1 2"], r"'value 1 2' is not 'NAME' or"),
        ([], "must name at least one target; teacher_config=null"),
        ([" "], "'' is not one of"),
        (3, "distillation_targets=3 must be"),
    ],
)
def test_targets_that_are_refused(targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_cfg({"distillation_targets": targets})


def test_keys() -> None:
    cfg = parse_cfg({"distillation_targets": "value 1e-1, reward", "distillation_weight": 2})
    assert list(cfg.distillation_terms.items()) == [("value", 0.1), ("reward", 2.0)]
    assert Config(**cfg.to_dict()) == cfg
    assert cfg.to_dict()["distillation_targets"] == ["value 1e-1", "reward"]
    with pytest.raises(ValueError, match=r"distillation_schedule=gaps is not one of constant, linear, cosine, gap"):
        Config(distillation_schedule="gaps")
    for target in TARGETS:
        keys = {"distillation_targets": ("value", target) if target != "value" else ("value",)}
        if TARGETS[target].cached_as:
            assert Config(distillation_cache="lazy", **keys).distillation_cache == "lazy"
        else:
            with pytest.raises(
                ValueError, match=rf"distillation_cache=full holds .*distillation_targets={target} needs"
            ):
                Config(distillation_cache="full", **keys)


def test_teachers_that_do_not_fit(tiny_cfg: Config) -> None:
    def refused(message: str, target: str, **changes: Any) -> None:
        teacher = TDMPC2(tiny_cfg.replace(**changes))
        TDMPC2(tiny_cfg, teacher)
        with pytest.raises(ValueError, match=message):
            TDMPC2(tiny_cfg.replace(distillation_targets=("reward", target)), teacher)

    refused(r"reward_logits needs .*\(101, -10\.0, 10\.0\) and the teacher's \(51,", "reward_logits", num_bins=51)
    refused(r"reward_logits needs .*the teacher's \(101, -10\.0, 8\.0\)", "reward_logits", vmax=8)
    refused(r"latent_dim of at least 16, the student's, but it is 8", "next_state_pca", latent_dim=8)


def test_outputs_that_are_not_there(tiny_cfg: Config) -> None:
    keys: Callable[..., Config] = lambda *targets: tiny_cfg.replace(distillation_targets=targets)  # noqa: E731
    batch = random_batch(tiny_cfg, 0)._replace(teacher_reward=torch.zeros(1, 8, 1))
    with pytest.raises(ValueError, match=r"=value, policy: there is no teacher, and the batch has only teacher_reward"):
        TDMPC2(keys("reward", "value", "policy")).update(batch)
    with pytest.raises(ValueError, match="needs the teacher's reward of 3 steps, but teacher_reward has 1"):
        TDMPC2(keys("reward_horizon")).update(batch)
    assert "distillation_loss" not in TDMPC2(keys("value")).update(batch)  # a reward that nothing asks for
    with pytest.raises(ValueError, match=r"next_state_pca: call agent\.distillation\.fit_pca first"):
        TDMPC2(keys("next_state_pca"), make_expert(tiny_cfg)).update(batch)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is written to where the tests were started."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    assert not list((tmp_path / "cwd").iterdir())
