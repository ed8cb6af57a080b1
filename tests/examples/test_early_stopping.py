"""The example that ends a run early: its rule, and a run that it ends."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / "examples" / "early_stopping.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(FILE))


def test_early_stopping_waits_for_so_many_evaluations_without_a_better_one(example: dict[str, Any]) -> None:
    """Two lower scores before a new best do not end the run; three evaluations without a better score do."""
    rule = example["EarlyStopping"](patience=3)
    answers = [
        rule.on_evaluation(step, SimpleNamespace(mean_score=score))
        for step, score in enumerate([1.0, 5.0, 4.0, 3.0, 6.0, 6.0, 2.0, 5.9])
    ]
    assert answers == [False] * 7 + [True]


@pytest.mark.slow
def test_early_stopping_example_ends_before_its_last_step(
    example: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(example["EarlyStopping"], "on_evaluation", lambda rule, step, result: True)
    assert example["main"](tmp_path / "run").parent == tmp_path / "run"
    assert "Stopped by EarlyStopping at step 0" in capsys.readouterr().out
