"""Fixtures: a plain environment, and a clock that the test moves."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the time in seconds that the logger and the progress lines see."""
    now = [0.0]
    monkeypatch.setattr("tdmpc2.tracking.logger.monotonic", lambda: now[0])
    monkeypatch.setattr("tdmpc2.tracking.progress.monotonic", lambda: now[0])
    return now
