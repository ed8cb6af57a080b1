"""Distillation in an update: weights, which networks get gradients, targets without weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.dataset import Batch
from tdmpc2.distillation import distillation as distill
from tdmpc2.distillation import losses as distill_losses
from tdmpc2.distillation import outputs
from tdmpc2.nn.math import decode
from tdmpc2.noise import UpdateNoise
from tdmpc2.planner import predicted_return
from tests.helpers.agents import random_batch
from tests.helpers.distillation import (
    BINS,
    LIVE,
    cross_entropy,
    decoded,
    every_target,
    make_expert,
    make_student,
    run_updates,
    same_weights,
)
from tests.helpers.fake import updates_as_on_a_gpu

pytestmark = pytest.mark.usefixtures("own_folder")


@every_target
def test_update_with_target_weights_its_loss(tiny_cfg: Config, target: str) -> None:
    """The logged loss is that of the networks before the update, and the total contains it with its weight."""
    cfg = tiny_cfg.replace(
        dropout=0, distillation_targets=("reward 2", f"{target} 0.3") if target != "reward" else ("reward 2",)
    )
    expert = make_expert(cfg)
    student, batch = make_student(cfg, expert), random_batch(cfg, 0)
    model, task, noise = student.model, batch.task, student.draw_noise(8)
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
        heads = [expert.model.Q(teacher_z[t], batch.action[t], task, "all").double() for t in range(3)]
        values = torch.tensor([[[np.mean([decoded(head[b]) for head in step])] for b in range(8)] for step in heads])
        value_errors = [
            float(
                distill_losses.value_loss(
                    model.Q(z[t], batch.action[t], task, "all").double(), values[t].double(), BINS
                )
            )
            for t in range(3)
        ]
        slow = {
            "reward": lambda: errors[0],
            "reward_horizon": lambda: sum(0.5**t * errors[t] for t in range(3)) / 3,
            "reward_logits": lambda: 4 * np.mean(softened),
            "next_state_linear": lambda: float((projection(z[1]) - teacher_z[1]).square().mean()),  # type: ignore[misc]
            "next_state_pca": lambda: float((z[1] - pca.project(teacher_z[1], 8)).square().mean()),  # type: ignore[union-attr]
            "value": lambda: value_errors[0],
            "value_horizon": lambda: np.mean(value_errors),
            "policy": lambda: float(torch.distributions.kl_divergence(*distributions).sum(-1).mean()),
            "ranking": lambda: slow_ranking_loss(student, expert, batch, noise),
        }[target]()  # fmt: skip
    stats = student.update(batch, noise)
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


def slow_ranking_loss(student: TDMPC2, expert: TDMPC2, batch: Batch, noise: UpdateNoise) -> float:
    """Compute the loss of the target ``ranking`` of the first slice's state with the planner's own function."""
    assert noise.offsets is not None
    differences: list[Tensor] = []
    means: list[float] = []
    for model, heads in ((expert.model, torch.arange(3)), (student.model, noise.policy_heads)):
        task, z = model.context(batch.task[:1]), model.encode(batch.obs[0, :1], batch.task[:1])
        actions = (batch.action[:, :1, None] + noise.offsets[:, :1]).clamp(-1, 1) * model.context(task).action_mask
        first = decode(model.Q(z.expand(8, -1), actions[0, 0], batch.task[:1], "all")[heads], model.bins).mean(0)[:, 0]
        planned = predicted_return(
            model, z, task.unsqueeze(1), actions.transpose(0, 1), torch.zeros(1, 8, model.cfg.action_dim), heads
        )[0]
        differences += [values - values.mean() for values in (first, planned)]
        means += [float(values.mean().abs()) for values in (first, planned)]
    losses = []
    for theirs, own, mean in zip(differences[:2], differences[2:], means[:2], strict=True):
        spread = float(theirs.square().mean().sqrt() + own.square().mean().sqrt()) + 0.005 * (mean + 10)
        errors = [abs(float(a) - float(b)) / spread for a, b in zip(own, theirs, strict=True)]
        losses += [e**2 / 2 if e < 1 else e - 0.5 for e in errors]
    return float(np.mean(losses))


#: The networks that a target's gradient reaches.
REACHES = {
    "reward": {"_encoder", "_reward", "_task_emb"},
    "reward_horizon": {"_encoder", "_dynamics", "_reward", "_task_emb"},
    "reward_logits": {"_encoder", "_reward", "_task_emb"},
    "next_state_linear": {"_encoder", "_dynamics", "_task_emb", "projection"},
    "next_state_pca": {"_encoder", "_dynamics", "_task_emb"},
    "value": {"_encoder", "_Qs", "_task_emb"},
    "value_horizon": {"_encoder", "_dynamics", "_Qs", "_task_emb"},
    "policy": {"_pi"},
    "ranking": {"_encoder", "_dynamics", "_reward", "_Qs", "_task_emb"},
}


@every_target
def test_update_with_target_reaches_its_networks_only(tiny_cfg: Config, target: str) -> None:
    """Gradients with a target's weight at one and at zero differ in its own networks only."""
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


def test_update_policy_target_follows_weight_and_schedule(tiny_cfg: Config) -> None:
    """The target's part of the gradient is proportional to its weight times the schedule's factor."""
    grads: list[tuple[float, int, Tensor]] = []
    for weight in (0, 2, 3):
        keys = {"distillation_targets": (f"policy {weight}",), "distillation_schedule": "linear", "steps": 4}
        cfg = tiny_cfg.replace(grad_clip_norm=1e9, lr=0, tau=0, **keys)
        student, found = make_student(cfg, make_expert(cfg)), []
        params = student._policy_params
        student.pi_optim.register_step_pre_hook(
            lambda *_, found=found, params=params: found.append(torch.cat([p.grad.flatten() for p in params]))
        )
        run_updates(student, range(2))
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


@pytest.mark.parametrize("target", [name for name in LIVE if name not in ("reward", "ranking")])
def test_update_with_target_weight_zero_is_unchanged(tiny_cfg: Config, target: str) -> None:
    """A target of weight zero changes neither the weights nor the random numbers; ``ranking`` draws some of its own."""
    default = make_student(tiny_cfg, make_expert(tiny_cfg))
    other_cfg = tiny_cfg.replace(distillation_targets=("reward", f"{target} 0"), distillation_schedule="constant")
    other = make_student(other_cfg, make_expert(other_cfg))
    before, after = run_updates(default, range(5)), run_updates(other, range(5))
    assert same_weights(default, other)
    assert torch.equal(default.generator.get_state(), other.generator.get_state())
    for first, second in zip(before, after, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first if name != "total_loss")
        assert_close(first["total_loss"], second["total_loss"])  # summed in another order


def test_update_default_target_is_reward_with_its_weight(tiny_cfg: Config) -> None:
    assert Config().distillation_terms == {"reward": 0.45}
    assert tiny_cfg.replace(distillation_weight=0.1).distillation_terms == {"reward": 0.1}
    default, spelled = (
        make_student(cfg, make_expert(cfg))
        for cfg in (tiny_cfg, tiny_cfg.replace(distillation_weight=7, distillation_targets="reward 0.45"))
    )
    first, second = run_updates(default, range(5)), run_updates(spelled, range(5))
    assert same_weights(default, spelled)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)
    assert [len(group["params"]) for group in default.optim.param_groups] == [
        len(list(default.model._encoder.parameters())),
        len([p for n, p in default.model.named_parameters() if not n.startswith(("_encoder", "_pi", "_target_Qs"))]),
    ]


def test_update_without_teacher_distils_nothing(tiny_cfg: Config) -> None:
    plain, named = TDMPC2(tiny_cfg), TDMPC2(tiny_cfg.replace(distillation_targets=LIVE))
    assert not any(name.startswith("distillation") for stats in run_updates(named, range(3)) for name in stats)
    run_updates(plain, range(3))
    assert same_weights(plain, named)


def test_update_with_all_targets_needs_no_synchronisation(tiny_cfg: Config) -> None:
    """On fake tensors, an update that reads a tensor on the host would fail."""
    for schedule in ("linear", "gap"):
        cfg = tiny_cfg.replace(distillation_targets=LIVE, distillation_schedule=schedule)
        with updates_as_on_a_gpu():
            agent = TDMPC2(cfg, TDMPC2(cfg.replace(latent_dim=24)))
            agent.distillation.pca = distill.PCA(torch.zeros(24), torch.zeros(24, 16))
            for step in range(2):
                stats = agent.update(random_batch(cfg, step))
        assert all(value.shape == () for value in stats.values())
        assert len([name for name in stats if name.startswith("distillation")]) == len(LIVE) + 1  # and the factor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_update_with_all_targets_on_gpu_needs_no_synchronisation(tiny_cfg: Config) -> None:
    for schedule in ("constant", "linear", "cosine", "gap"):
        keys = {"distillation_targets": LIVE, "distillation_schedule": schedule, "device": "cuda"}
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
