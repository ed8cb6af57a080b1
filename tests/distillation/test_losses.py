"""Every distillation loss is compared with a plain version."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tdmpc2.distillation import losses as distill_losses
from tdmpc2.distillation.projection import fit_pca, linear_projection
from tests.helpers.distillation import BINS, A, B, H, K, cross_entropy, decoded

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_reward_loss_matches_plain_version(generator: torch.Generator) -> None:
    logits, teacher = normal(generator, B, K), normal(generator, B, 1)
    slow = np.mean([(decoded(logits[b]) - float(teacher[b])) ** 2 for b in range(B)])
    assert float(distill_losses.reward_loss(logits, teacher, BINS)) == pytest.approx(slow, rel=1e-9)


def test_reward_horizon_loss_matches_plain_version(generator: torch.Generator) -> None:
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
def test_reward_logits_loss_matches_plain_version(generator: torch.Generator, temperature: float) -> None:
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
    assert same.grad.abs().max() < 1e-12  # the minimum is at the teacher's own logits


def test_reward_logits_loss_temperature_keeps_gradient_size(generator: torch.Generator) -> None:
    """For logits far below T, the gradient is that of half the squared difference of centred logits over K."""
    student, teacher = 1e-2 * normal(generator, B, K), 1e-2 * normal(generator, B, K)
    student.requires_grad_()
    (grad,) = torch.autograd.grad(distill_losses.reward_logits_loss(student, teacher, 100.0), student)
    difference = student - teacher
    assert_close(grad, (difference - difference.mean(1, keepdim=True)) / K / B, rtol=1e-2, atol=1e-9)


def test_next_state_linear_loss_matches_plain_version(generator: torch.Generator) -> None:
    z, teacher_z, projection = normal(generator, B, 16), normal(generator, B, 24), linear_projection(16, 24, 1).double()
    weight, bias = projection.weight.detach().numpy(), projection.bias.detach().numpy()
    assert (weight.std() - 0.02) < 0.005
    slow = np.mean([(weight @ z[b].numpy() + bias - teacher_z[b].numpy()) ** 2 for b in range(B)])
    loss = distill_losses.next_state_linear_loss(z, teacher_z, projection)
    assert loss.item() == pytest.approx(slow, rel=1e-9)
    assert torch.equal(linear_projection(16, 24, 1).weight, linear_projection(16, 24, 1).weight)


def test_next_state_pca_loss_matches_plain_version(generator: torch.Generator) -> None:
    """The principal components are compared with a singular value decomposition in numpy."""
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


def test_fit_pca_finds_the_directions_of_the_data(generator: torch.Generator) -> None:
    """Three directions of data in 24 dimensions are found, and they explain the whole variance."""
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


def test_value_loss_matches_plain_version(generator: torch.Generator) -> None:
    logits, teacher = normal(generator, 3, B, K), 5 * normal(generator, B, 1)
    slow = []
    for b in range(B):
        value = float(teacher[b])
        position = (math.copysign(math.log1p(abs(value)), value) + 10) / 0.2
        two_hot = [max(0.0, 1 - abs(k - position)) for k in range(K)]
        slow += [cross_entropy(two_hot, logits[q, b].tolist()) for q in range(3)]
    assert float(distill_losses.value_loss(logits, teacher, BINS)) == pytest.approx(np.mean(slow), rel=1e-6)


def test_value_horizon_loss_is_the_mean_of_the_value_losses_of_all_steps(generator: torch.Generator) -> None:
    logits, teacher = normal(generator, 3, H, B, K), 5 * normal(generator, H, B, 1)
    slow = [float(distill_losses.value_loss(logits[:, t], teacher[t], BINS)) for t in range(H)]
    assert np.std(slow) > 1e-3
    assert float(distill_losses.value_horizon_loss(logits, teacher, BINS)) == pytest.approx(np.mean(slow), rel=1e-9)
    mask = (torch.arange(B) % 2).double().unsqueeze(-1)
    some = [float(distill_losses.value_loss(logits[:, t], teacher[t], BINS, mask)) for t in range(H)]
    assert float(distill_losses.value_horizon_loss(logits, teacher, BINS, mask)) == pytest.approx(
        np.mean(some), rel=1e-9
    )
    with pytest.raises(ValueError, match="needs the teacher's value of 3 steps, but teacher_value has 1"):
        distill_losses.value_horizon_loss(logits, teacher[:1], BINS)


def test_policy_loss_matches_plain_version(generator: torch.Generator) -> None:
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
    assert float(sampled) == pytest.approx(float(slow), rel=0.05)  # tanh does not change the divergence
