"""Schedules of the distillation weight, also when an agent continues."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import read_file, save_file
from tdmpc2.config import Config
from tdmpc2.distillation import distillation as distill
from tests.helpers.agents import random_batch
from tests.helpers.distillation import LIVE, make_expert, make_student, run_updates, same_weights

pytestmark = pytest.mark.usefixtures("own_folder")


# -- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("constant", [1, 1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25, 0]), ("cosine", [1, 0.8535534, 0.5, 0.1464466, 0])],
)
def test_schedule_factors_follow_their_formula(tiny_cfg: Config, schedule: str, factors: list[float]) -> None:
    cfg = tiny_cfg.replace(steps=4, distillation_schedule=schedule, distillation_targets=("reward 3", "value 5"))
    student = make_student(cfg, make_expert(cfg))
    for step, factor in enumerate([*factors, factors[-1]]):
        assert student.distillation.weight("reward") == pytest.approx(3 * factor)
        assert student.distillation.weight("value") == pytest.approx(5 * factor)
        (stats,) = run_updates(student, range(step, step + 1))
        rest = 20 * stats["consistency_loss"] + 0.1 * (stats["reward_loss"] + stats["value_loss"])
        distilled = 3 * stats["distillation_loss"] + 5 * stats["distillation_value_loss"]
        assert float(stats["total_loss"]) == pytest.approx(float(rest + factor * distilled), rel=1e-4)
        if schedule == "constant":
            assert "distillation_factor" not in stats
        else:
            assert float(stats["distillation_factor"]) == pytest.approx(factor, abs=1e-6)


def test_gap_schedule_matches_plain_version(tiny_cfg: Config) -> None:
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
    assert factors[100] == pytest.approx(1)  # still the average of the first hundred losses
    assert all(a >= b for a, b in zip(factors[101:600], factors[102:601], strict=True))  # the loss is below average
    assert 0.1 < factors[600] < 0.2
    assert factors[-1] > factors[601]
    for loss, factor in ((0.0, 0.0), (math.nan, math.nan)):
        gap = distill.Distillation(cfg, None, torch.device("cpu"))
        gap.advance({"distillation_value_loss": torch.tensor(loss)})
        assert float(gap.factor()) == pytest.approx(factor, nan_ok=True)


def test_gap_schedule_while_training_lowers_its_factor(tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "GAP_UPDATES", 5)
    cfg = tiny_cfg.replace(distillation_schedule="gap", distillation_targets=("policy 1", "reward"), lr=3e-3)
    stats = run_updates(make_student(cfg, make_expert(cfg)), range(60))
    factors = [float(step["distillation_factor"]) for step in stats]
    assert factors[:6] == pytest.approx([1] * 6)
    assert stats[-1]["distillation_policy_loss"] < 0.7 * stats[0]["distillation_policy_loss"]
    assert factors[-1] < 0.8
    assert np.mean(factors[40:]) < np.mean(factors[10:30])


# -- continuing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "gap"])
def test_schedule_of_continued_agent_goes_on(
    tiny_cfg: Config, schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent saved and loaded while the gap schedule still forms its first average goes on exactly."""
    monkeypatch.setattr(distill, "GAP_UPDATES", 5)
    keys = {"distillation_schedule": schedule, "distillation_targets": LIVE, "steps": 10}
    cfg = tiny_cfg.replace(**keys)
    straight = make_student(cfg, make_expert(cfg))
    run_updates(straight, range(3))
    state = {"weights": straight.model.state_dict(), "training": straight.training_state()}
    save_file(tmp_path / "state.pt", state, overwrite=False)
    expected = run_updates(straight, range(3, 9))
    resumed = TDMPC2(cfg, make_expert(cfg))
    assert resumed.distillation.needs_pca
    state = read_file(tmp_path / "state.pt")
    resumed.model.load_state_dict(state["weights"])
    resumed.load_training_state(state["training"])
    assert not resumed.distillation.needs_pca
    got = run_updates(resumed, range(3, 9))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(expected, got, strict=True) for name in a)
    assert same_weights(straight, resumed)
    assert torch.equal(straight.distillation.projection.weight, resumed.distillation.projection.weight)  # type: ignore[union-attr]


def test_agent_loads_state_from_before_targets(tiny_cfg: Config) -> None:
    first, second = (make_student(tiny_cfg, make_expert(tiny_cfg)) for _ in range(2))
    run_updates(first, range(2))
    state = copy.deepcopy(first.training_state())
    del state["distillation"]
    second.model.load_state_dict(first.model.state_dict())
    second.load_training_state(state)
    run_updates(first, range(2, 4))
    run_updates(second, range(2, 4))
    assert same_weights(first, second)


def test_projection_is_not_in_the_model_state(tiny_cfg: Config, tmp_path: Path) -> None:
    cfg = tiny_cfg.replace(distillation_targets=("next_state_linear 30",))
    student, plain = make_student(cfg, make_expert(cfg)), TDMPC2(tiny_cfg)
    run_updates(student, range(2))
    student.save(tmp_path / "x.pt")
    assert student.model.state_dict().keys() == plain.model.state_dict().keys()
    assert TDMPC2(cfg).load(tmp_path / "x.pt") is None
    assert [id(p) for p in student.distillation.parameters] == [id(p) for p in student.optim.param_groups[2]["params"]]
    assert student.optim.param_groups[2]["lr"] == cfg.lr
    stats = student.update(random_batch(cfg, 2, 16))  # its gradient is clipped with the model's, here not at all
    grads = [p.grad for group in student.optim.param_groups for p in group["params"] if p.grad is not None]
    assert student.distillation.parameters[0].grad.norm() > 0  # type: ignore[union-attr]
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    assert float(stats["grad_norm"]) == pytest.approx(float(norm), rel=1e-6)
    assert norm < cfg.grad_clip_norm
