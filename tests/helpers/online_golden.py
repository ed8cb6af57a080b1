"""Recorded numbers of single-task agents: every file of the folder is read as it is, whatever its task and sizes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.reference import SHARED

#: Folder of the recorded numbers; another one of the same form can be named.
FOLDER = Path(os.environ.get("TDMPC2_GOLDEN", SHARED / "golden"))


def golden_files(kind: str) -> list[Any]:
    """Readers of all files of a kind (state, episodic, pixels) as test parameters; one that skips where none is."""
    paths = sorted((FOLDER / "online").glob(f"{kind}*.npz"))
    if not paths:
        return [pytest.param(partial(_absent, kind), id="absent")]
    return [pytest.param(partial(_read, path), id=path.stem) for path in paths]


def _absent(kind: str) -> dict[str, Tensor]:
    absent = pytest.fail if os.environ.get("TDMPC2_REQUIRE_SHARED") == "1" else pytest.skip
    absent(f"needs online/{kind}*.npz of the recorded numbers (set TDMPC2_GOLDEN to their folder)")
    raise AssertionError


def _read(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays if arrays[name].dtype.kind in "fiub"}


def initial_weights(recorded: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Make the weights that the file was recorded with, by the rule of the recording, and check their sums.

    Args:
        recorded: a golden file.
        shapes: of all parameters of the model, by their names in layout (a).
    """
    rng = np.random.default_rng(int(recorded["meta/weight_seed"]))
    weights = {}
    for name in sorted(shapes):
        value = _scaled(name, rng.standard_normal(tuple(shapes[name]))).astype(np.float32)
        sums = value.sum(dtype=np.float64), np.abs(value).sum(dtype=np.float64)
        np.testing.assert_allclose(sums, recorded[f"weight_sum/{name}"], rtol=1e-9, atol=1e-6, err_msg=name)
        weights[name] = torch.from_numpy(value)
    if "meta/termination_bias" in recorded:
        weights["_termination.2.bias"].fill_(float(recorded["meta/termination_bias"]))
    return weights


def _scaled(name: str, x: Any) -> Any:
    network, *_, last = name.split(".")
    head = int(last) if "_Qs" in network else None
    if head in (2, 6) or name.endswith("ln.weight"):
        return 1 + 0.1 * x
    if head in (1, 3, 5, 7, 9) or name.endswith("bias"):
        return 0.1 * x
    if x.ndim == 4:
        return 2 * x / math.sqrt(math.prod(x.shape[1:]))
    gain = 1.5 if head == 8 or name == "_reward.2.weight" else 6.0 if name == "_termination.2.weight" else 1.0
    return gain * x / math.sqrt(x.shape[-1])
