"""Fixtures: recorded numbers and published weights, from the tests' own folder or from ``../shared``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2.config import Config

REPO = Path(__file__).resolve().parent.parent
TASKS = ("pendulum-spin", "cartpole-balance")
TINY: dict[str, Any] = {
    "model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "task_dim": 8, "num_samples": 16,
    "num_elites": 4, "num_pi_trajs": 4, "iterations": 1, "device": "cpu", "num_threads": 1, "tasks": TASKS,
    "batch_size": 16, "steps": 20, "log_freq": 5, "eval_freq": 0,
}  # fmt: skip
SHARED = Path(os.environ.get("TDMPC2_SHARED", REPO.parent / "shared"))


def shared_file(relative: str) -> Path:
    """A file of ``../shared``; where it is absent the test is skipped, or fails if TDMPC2_REQUIRE_SHARED=1 (CI)."""
    path = SHARED / relative
    if not path.exists():
        absent = pytest.fail if os.environ.get("TDMPC2_REQUIRE_SHARED") == "1" else pytest.skip
        absent(f"needs {relative} of the shared reference data (set TDMPC2_SHARED to its folder)")
    return path


def load_golden(name: str) -> dict[str, torch.Tensor]:
    """Recorded arrays as tensors; small files live in tests/golden, larger ones in ``../shared/golden``."""
    own = Path(__file__).parent / "golden" / name
    with np.load(own if own.exists() else shared_file(f"golden/{name}")) as arrays:
        return {
            key: torch.from_numpy(arrays[key]) if arrays[key].dtype.kind in "fiub" else arrays[key] for key in arrays
        }


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that refuses to let a file grow beyond ``size`` bytes."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich's shared console remembers whether the first test that used it ran on a terminal."""
    monkeypatch.setattr("rich._console", None)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, torch.Tensor]]:
    return load_golden


@pytest.fixture(scope="session")
def published() -> dict[str, torch.Tensor]:
    """The published student's weights in float32, layout (a)."""
    return {name: tensor.float() for name, tensor in load_golden("weights.npz").items()}


@pytest.fixture
def tiny_cfg() -> Config:
    """A model that trains and plans in milliseconds, MT30 padding and ids."""
    return Config(
        task="mt30", model_size=None, enc_dim=16, mlp_dim=16, latent_dim=16, task_dim=8, num_q=3, num_samples=16,
        num_elites=4, num_pi_trajs=4, iterations=2, batch_size=8, device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three random episodes of each task."""
    from tdmpc2.play.collector import collect

    path = tmp_path_factory.mktemp("data")
    collect(Config(tasks=TASKS, episodes_per_task=3), None, path)
    return path


@pytest.fixture
def cfg(data_dir: Path, tmp_path: Path) -> Config:
    """A run of 20 steps on them."""
    return Config(data_dir=str(data_dir), work_dir=str(tmp_path / "run"), **TINY)
