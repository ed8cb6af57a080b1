"""Teachers and students that have learned something, and losses computed number by number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.distillation.targets import TARGETS
from tdmpc2.nn.math import bin_centres
from tests.helpers.agents import make_teacher, random_batch

B, H, K, A = 5, 3, 101, 4
BINS = bin_centres(K, -10.0, 10.0).double()
#: Targets that a teacher can be asked for in an update.
LIVE = tuple(name for name, row in TARGETS.items() if row.live)
every_target = pytest.mark.parametrize("target", LIVE)


def make_expert(cfg: Config, seed: int = 3) -> TDMPC2:
    """Make a teacher whose values and policy depend on their inputs, as after training."""
    expert = make_teacher(cfg)
    generator, model = torch.Generator().manual_seed(seed), expert.model
    policy: Any = model._pi[-1]
    with torch.no_grad():
        model._Qs.params[8].normal_(0, 0.5, generator=generator)
        model._Qs.params[9].copy_(-4 * (model.bins - 2).square())
        policy.weight.normal_(0, 0.2, generator=generator)
        policy.bias[cfg.action_dim :] = -0.2
    model.context(torch.arange(len(cfg.task_specs)), train=True)  # rescales the embedding where its norm is above 1
    return expert


def make_student(cfg: Config, expert: TDMPC2) -> TDMPC2:
    """Make a student whose rewards and values are not zero as in a new one, with a PCA if it needs one."""
    student = TDMPC2(cfg, expert)
    generator, model = torch.Generator().manual_seed(11), student.model
    with torch.no_grad():
        model._reward[-1].weight.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr,operator]
        model._Qs.params[8].normal_(0, 0.3, generator=generator)
    if student.distillation.needs_pca:
        batch = random_batch(cfg, 99, 200)
        student.distillation.fit_pca([(batch.obs[0], batch.task), (batch.obs[1], batch.task)])
    return student


def decoded(logits: Tensor) -> float:
    """Compute the value of one row of logits, number by number."""
    exps = [math.exp(x) for x in logits.tolist()]
    mean = sum(e * c for e, c in zip(exps, BINS.tolist(), strict=True)) / sum(exps)
    return math.copysign(math.expm1(abs(mean)), mean)


def cross_entropy(target: list[float], logits: list[float]) -> float:
    log_sum = math.log(sum(math.exp(x) for x in logits))
    return -sum(p * (x - log_sum) for p, x in zip(target, logits, strict=True))


def run_updates(student: TDMPC2, steps: range, size: int = 16) -> list[dict[str, Tensor]]:
    return [student.update(random_batch(student.cfg, step, size)) for step in steps]


def same_weights(first: TDMPC2, second: TDMPC2) -> bool:
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
