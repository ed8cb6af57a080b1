"""Times of an iteration and of a plan, measured by a simulated clock."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from tdmpc2.quantization import measure


def test_times_are_medians_in_ms_of_iteration_and_plan_of_each_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def takes(*seconds: float) -> Callable[[], None]:
        left = [seconds[0], *seconds]  # the first call warms up

        def run() -> None:
            nonlocal now
            now += left.pop(0)

        return run

    runs = {"a": (takes(0.001, 0.009, 0.002), takes(0.01, 0.02, 0.03)), "b": (takes(1, 1, 1), takes(2, 2, 2))}
    monkeypatch.setattr(measure, "_runs", lambda agent, one: runs[agent])
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now))
    inputs = measure.Inputs(torch.zeros(1, 3), torch.zeros(1, 1), None, "made here")
    assert measure._times(["a", "b"], inputs, 3) == [pytest.approx([2, 20]), pytest.approx([1000, 2000])]  # type: ignore[list-item]
