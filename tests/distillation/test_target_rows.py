"""A new distillation target takes one row of the table."""

from __future__ import annotations

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.data.store.teacher_columns import COLUMNS
from tdmpc2.distillation.targets import TARGETS, Target, TeacherOutputs


def test_target_added_as_one_row_is_configured_computed_and_logged(
    tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more row in the table of targets is configured, computed and logged without any other change."""
    row = Target(
        "mean absolute error of decoded values",
        needs="value",
        loss=lambda student, teacher, constants: (student.q_logits[:, 0].mean() - teacher.value[0]).abs().mean(),
        cached_as="value",
    )
    monkeypatch.setitem(TARGETS, "value_gap", row)
    cfg = tiny_cfg.replace(distillation_targets=("value_gap 0.5",), distillation_cache="full")
    agent = TDMPC2(cfg, TDMPC2(cfg.replace(seed=2)))
    generator = torch.Generator().manual_seed(0)
    batch = {
        "obs": torch.randn(4, 8, 24, generator=generator),
        "action": torch.rand(3, 8, 6, generator=generator) * 2 - 1,
        "reward": torch.rand(3, 8, 1, generator=generator),
        "task": torch.arange(8),
    }
    stats = agent.update(batch)
    expected = stats["consistency_loss"] * 20 + 0.1 * (stats["reward_loss"] + stats["value_loss"])
    expected = expected + 0.5 * stats["distillation_value_gap_loss"]
    torch.testing.assert_close(stats["total_loss"], expected)
    assert stats["distillation_value_gap_loss"] > 0


@pytest.mark.parametrize("name", TARGETS)
def test_row_names_an_output_of_the_teacher(name: str) -> None:
    row = TARGETS[name]
    assert row.needs in TeacherOutputs._fields
    assert row.trains in ("model", "policy")
    assert row.cached_as is None or (row.cached_as in COLUMNS and f"teacher_{row.cached_as}" in Batch._fields)
    assert row.summary
