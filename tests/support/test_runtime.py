"""The number of threads of this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tdmpc2.support.runtime import set_num_threads, usable_cores


@pytest.mark.parametrize(
    ("asked", "environment", "expected"),
    [(None, "3", 3), (2, "3", 2), (None, "5,2", 5), (None, None, "cores"), (None, "", "cores"), (None, "0", "cores")],
)
def test_set_num_threads_follows_argument_environment_and_cores(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, environment: str | None, expected: int | str
) -> None:
    """The argument comes first, then OMP_NUM_THREADS, then the number of cores."""
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    count = usable_cores() if expected == "cores" else expected
    assert set_num_threads(asked) == count
    assert used == [count]


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8)]
)
def test_usable_cores_are_cut_to_the_quota(monkeypatch: pytest.MonkeyPatch, quota: str, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setattr(Path, "read_text", lambda self: f"{quota}\n")
    assert usable_cores() == expected
