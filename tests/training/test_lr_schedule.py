"""Learning rates that fall over a run: their formula, exact resumption, and nothing where they are constant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import read_file
from tdmpc2.config import Config
from tdmpc2.nn.optimisers import rate_factor
from tdmpc2.training.offline import train
from tests.helpers.agents import random_batch
from tests.helpers.runs import equal


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1, 1, 1]),
        ("linear", [1, 0.8, 0.6, 0.4, 0.2, 0.2]),
        ("cosine", [1, 0.2 + 0.8 * 0.8535534, 0.6, 0.2 + 0.8 * 0.1464466, 0.2, 0.2]),
    ],
)
def test_factor_follows_its_formula(schedule: str, factors: list[float]) -> None:
    assert [rate_factor(schedule, 0.2, done / 4) for done in range(6)] == pytest.approx(factors)


def test_all_rates_of_an_update_fall_together(tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved optimisers hold the rates of the configuration, by which a continued run is checked."""
    cfg = tiny_cfg.replace(steps=4, lr_schedule="linear", lr_end=0.0)
    agent = TDMPC2(cfg)
    first = [cfg.lr * cfg.enc_lr_scale, cfg.lr, cfg.lr]
    rates: list[float] = []
    for optimiser in (agent.optim, agent.pi_optim):
        step = optimiser.step

        def noted(own: torch.optim.Optimizer = optimiser, step: Callable[[], object] = step) -> None:
            rates.extend(group["lr"] for group in own.param_groups)
            step()

        monkeypatch.setattr(optimiser, "step", noted)
    for number in range(3):
        agent.update(random_batch(cfg, number))
        kept = [group["lr"] for group in (*agent.optim.param_groups, *agent.pi_optim.param_groups)]
        assert kept == first
    assert rates == pytest.approx([rate * left for left in (1, 0.75, 0.5) for rate in first])


def test_factor_of_a_constant_schedule_changes_no_bit(tiny_cfg: Config) -> None:
    assert tiny_cfg.lr_schedule == "constant"
    assert rate_factor("constant", 0.1, 0.7) == 1.0


def test_run_that_was_stopped_goes_on_bit_for_bit(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rates go on where they were, and the number of steps, at which they end, may not change."""
    falling = cfg.replace(lr_schedule="cosine", save_freq=5)
    whole = train(falling, None)
    stopped = falling.replace(work_dir=f"{cfg.work_dir}-stopped")
    update, done = TDMPC2.update, 0

    def ends(self: TDMPC2, *args: object) -> dict[str, torch.Tensor]:
        nonlocal done
        done += 1
        if done == 13:
            raise KeyboardInterrupt
        return update(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(TDMPC2, "update", ends)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, None)
    assert 0 < int(read_file(stopped.run_dir / "model.pt")["step"]) < cfg.steps
    monkeypatch.undo()
    assert equal(train(stopped, None), whole)
    assert not equal(train(cfg.replace(work_dir=f"{cfg.work_dir}-constant"), None), whole)
    with pytest.raises(ValueError, match="steps"):
        train(falling.replace(steps=cfg.steps + 5), None)
