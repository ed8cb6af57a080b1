"""Recorded numbers and published files: the tests' own ones, and optional ones beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

REPO = Path(__file__).resolve().parents[2]
GOLDEN = REPO / "tests" / "golden"
SHARED = Path(os.environ.get("TDMPC2_SHARED", REPO.parent / "shared"))


def shared_file(relative: str) -> Path:
    """Find a file of ``../shared``; without it the test is skipped, or fails if TDMPC2_REQUIRE_SHARED=1 (CI)."""
    path = SHARED / relative
    if not path.exists():
        absent = pytest.fail if os.environ.get("TDMPC2_REQUIRE_SHARED") == "1" else pytest.skip
        absent(f"needs {relative} of the shared reference data (set TDMPC2_SHARED to its folder)")
    return path


def load_golden(name: str) -> dict[str, torch.Tensor]:
    """Load recorded arrays as tensors; small files are in tests/golden, larger ones in ``../shared/golden``."""
    own = GOLDEN / name
    with np.load(own if own.exists() else shared_file(f"golden/{name}")) as arrays:
        return {
            key: torch.from_numpy(arrays[key]) if arrays[key].dtype.kind in "fiub" else arrays[key] for key in arrays
        }
