"""The target ``plan`` compares the policy's mean action with actions that were planned beforehand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.distillation.losses import plan_loss
from tdmpc2.training.offline import train
from tdmpc2.training.online import train_online
from tests.helpers.agents import random_batch
from tests.helpers.distillation import make_expert, make_student, same_weights
from tests.helpers.online import config

pytestmark = pytest.mark.usefixtures("own_folder")
ONLY_CACHED = (
    r"distillation_targets=plan is learned from a cache alone, .* `tdmpc2 targets DATA_DIR TEACHER columns=plan`"
)


def test_plan_loss_matches_plain_version() -> None:
    """The loss of two rows is computed by hand; the task of the second has one action of two."""
    mean = torch.tensor([[0.3, -1.2], [0.5, 0.0]])
    plan = torch.tensor([[0.1, -0.4], [-0.2, 0.9]])
    own = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    first = ((math.tanh(0.3) - 0.1) ** 2 + (math.tanh(-1.2) + 0.4) ** 2) / 2
    second = (math.tanh(0.5) + 0.2) ** 2
    assert float(plan_loss(mean, plan, own)) == pytest.approx((first + second) / 2, rel=1e-6)
    assert float(plan_loss(mean, plan, own, torch.tensor([[1.0], [0.0]]))) == pytest.approx(first / 2, rel=1e-6)
    everything = (first * 2 + second + (0.9**2)) / 4  # a single-task model has no mask
    assert float(plan_loss(mean, plan, None)) == pytest.approx(everything, rel=1e-6)


def test_update_with_plans_moves_the_policy_towards_them_and_nothing_else(tiny_cfg: Config) -> None:
    cfg = tiny_cfg.replace(distillation_targets=("plan 10",))
    agent, plain = TDMPC2(cfg), TDMPC2(cfg)
    batch = random_batch(cfg, 0)
    plans = torch.full((1, 8, 6), 0.5)
    before = float(agent.update(batch._replace(teacher_plan=plans))["distillation_plan_loss"])
    plain.update(batch)
    changed = {
        name.partition(".")[0]
        for (name, a), b in zip(agent.model.state_dict().items(), plain.model.state_dict().values(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {"_pi"}
    for _ in range(30):
        last = agent.update(batch._replace(teacher_plan=plans))
    assert float(last["distillation_plan_loss"]) < before / 2


def test_update_with_cached_policy_equals_live_teacher(tiny_cfg: Config) -> None:
    cfg = tiny_cfg.replace(distillation_targets=("policy", "value 0.2"))
    expert = make_expert(cfg)
    live, cached = make_student(cfg, expert), make_student(cfg, expert)
    batch = random_batch(cfg, 0)
    with torch.no_grad():
        _, info = expert.model.pi(expert.model.encode(batch.obs[0], batch.task), batch.task, torch.zeros(8, 6))
    column = torch.cat([info["presquash_mean"], info["log_std"]], -1)[None]
    first, second = live.update(batch), cached.update(batch._replace(teacher_policy=column))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert same_weights(live, cached)


def test_update_without_plans_says_where_they_come_from(tiny_cfg: Config) -> None:
    cfg = tiny_cfg.replace(distillation_targets=("reward", "plan"))
    with pytest.raises(ValueError, match=rf"'teacher_plan' is missing: {ONLY_CACHED}"):
        TDMPC2(cfg, make_expert(cfg)).update(random_batch(cfg, 0))
    given = random_batch(cfg, 0)._replace(teacher_reward=torch.zeros(1, 8, 1))
    with pytest.raises(ValueError, match=rf"'teacher_plan' is missing: {ONLY_CACHED}"):
        TDMPC2(cfg).update(given)
    assert "distillation_plan_loss" not in TDMPC2(cfg).update(random_batch(cfg, 0))  # nothing is distilled at all
    wrong = given._replace(teacher_plan=torch.zeros(1, 8, 1))
    with pytest.raises(ValueError, match=r"'teacher_plan' has shape \[1, 8, 1\], expected \[H, B, A\]"):
        TDMPC2(cfg).update(wrong)


def test_run_without_cache_of_plans_is_refused(cfg: Config, tmp_path: Path) -> None:
    """A run is refused offline without a cache or before one was made, and online, where there is none.

    It is refused before chunk files are imported.
    """
    make_expert(cfg).save(tmp_path / "teacher.pt")
    teacher = Config(checkpoint=str(tmp_path / "teacher.pt"))
    plans, there = cfg.replace(distillation_targets=("plan",)), set(Path(cfg.data_dir).rglob("*"))
    with pytest.raises(ValueError, match=ONLY_CACHED):
        train(plans, teacher)
    for dry in (True, False):
        with pytest.raises(ValueError, match=rf"has none of .*teacher.pt: {ONLY_CACHED}"):
            train(plans.replace(distillation_cache="full", dry_run=dry), teacher)
    assert set(Path(cfg.data_dir).rglob("*")) == there
    online = config(tmp_path / "online", distillation_targets=("plan",))
    with pytest.raises(ValueError, match=r"plan needs what is made beforehand .* learn the target with mode=offline"):
        train_online(online, teacher)
