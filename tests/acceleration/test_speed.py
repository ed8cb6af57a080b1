"""The fastest number format, found by measurement."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.acceleration.cpu import library, speed
from tdmpc2.checkpoints.files import Checkpoint, load_file
from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.precision import execution
from tdmpc2.quantization.recipes import RECIPES, quantize_state

CPU = torch.device("cpu")
#: As measured once: with AMX the kernels were slower in bf16, and without it faster.
WITH_AMX = {"fp32": 90.0, "bf16": 118.0, "int8": 60.0}
WITHOUT_AMX = {"fp32": 72.0, "bf16": 41.0, "int8": 35.0}


@pytest.mark.parametrize(
    ("candidates", "seconds", "chosen"),
    [
        (("fp32", "bf16"), WITH_AMX, "fp32"),
        (("fp32", "bf16"), WITHOUT_AMX, "bf16"),
        (("fp32", "bf16"), {"bf16": 0.95, "fp32": 1.0}, "fp32"),  # equally fast up to noise
        (("bf16", "int8"), {"int8": 3.0, "bf16": 1.0}, "bf16"),
    ],
)
def test_fastest_is_the_first_unless_another_is_clearly_faster(
    candidates: tuple[str, ...], seconds: dict[str, float], chosen: str
) -> None:
    assert speed.fastest(candidates, seconds) == chosen


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Replace the kernels by ones that compute nothing and note the format they were packed in."""
    packed: list[str] = []

    class Networks:
        def __init__(self, model: WorldModel) -> None:
            packed.append(str(model._pi[1].weight.dtype))

        def estimate_value(self, z: Any, task: Any, actions: Any, eps: Any, heads: Any) -> None:
            assert z.shape == (1, 128)
            assert actions.shape == (1, 3, 512, 6)

    monkeypatch.setattr(speed, "PackedNetworks", Networks)
    monkeypatch.setattr(library, "reason", lambda: "")
    monkeypatch.setattr(library, "identity", lambda: "0-avx2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    speed.kernel_seconds.cache_clear()
    yield packed
    speed.kernel_seconds.cache_clear()


def times_file(home: Path) -> Path:
    """Return the file that keeps the times of this processor."""
    speed.kernel_seconds()
    speed.kernel_seconds.cache_clear()
    (path,) = (home / "tdmpc2").glob("kernel-times-0-avx2-*.json")
    return path


def test_kernel_seconds_are_measured_once_and_kept(kernels: list[str], tmp_path: Path) -> None:
    first = speed.kernel_seconds()
    assert kernels == ["torch.float32", "torch.bfloat16", "torch.int8"]
    assert json.loads(next((tmp_path / "tdmpc2").iterdir()).read_text()) == first
    speed.kernel_seconds.cache_clear()  # as in another process
    assert speed.kernel_seconds() == first
    assert len(kernels) == 3


def test_kernel_seconds_without_a_home_are_measured_and_not_kept(
    kernels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account without a home directory, as in some containers, used to end in a traceback."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert speed.kernel_seconds().keys() == WITH_AMX.keys()
    assert len(kernels) == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_kernel_seconds_in_a_named_pipe_are_measured_again(kernels: list[str], tmp_path: Path) -> None:
    path = times_file(tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert speed.kernel_seconds().keys() == WITH_AMX.keys()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"fp32": "fast", "bf16": 1, "int8": 1}'])
def test_kernel_seconds_are_measured_anew_where_the_file_is_damaged(
    kernels: list[str], tmp_path: Path, content: str
) -> None:
    times_file(tmp_path).write_text(content)
    assert speed.kernel_seconds().keys() == {"fp32", "bf16", "int8"}
    assert len(kernels) == 6


def test_kernel_seconds_without_kernels_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "reason", lambda: "no g++")
    speed.kernel_seconds.cache_clear()
    assert speed.kernel_seconds() == {}
    speed.kernel_seconds.cache_clear()


def test_time_that_others_took_does_not_count(kernels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is kept for good, and the machine may be busy when it is made."""

    class Networks:
        def __init__(self, model: WorldModel) -> None:
            self._int8 = model._pi[1].weight.dtype == torch.int8

        def estimate_value(self, *_: Any) -> None:
            if self._int8:
                time.sleep(0.005)  # waits for the processor, which another process has
            until = time.process_time() + (0.001 if self._int8 else 0.002)
            while time.process_time() < until:
                pass

    monkeypatch.setattr(speed, "PackedNetworks", Networks)
    seconds = speed.kernel_seconds()
    assert speed.fastest(("fp32", "int8"), seconds) == "int8"


# -- precision=auto ---------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tiny_cfg: Config) -> dict[str, Checkpoint]:
    state = WorldModel(tiny_cfg, torch.Generator().manual_seed(0)).state_dict()
    quantised = {
        name: {"model": quantize_state(state, recipe), "recipe": recipe.entry()} for name, recipe in RECIPES.items()
    }
    return {name: load_file(content) for name, content in ({"fp32": {"model": state}} | quantised).items()}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (WITH_AMX, {"fp32": "fp32", "fp16": "fp32", "bf16": "fp32", "int8": "int8", "int8-weight-only": None}),
        (WITHOUT_AMX, {"fp32": "fp32", "fp16": "bf16", "bf16": "bf16", "int8": "int8", "int8-weight-only": None}),
        ({"fp32": 1.0, "bf16": 2.0, "int8": 3.0}, {"fp16": "fp32", "int8": "fp32", "int8-weight-only": None}),
        ({}, {"fp32": "fp32", "fp16": "fp32", "bf16": "fp32", "int8": "fp32", "int8-weight-only": "fp32"}),
    ],
)
def test_auto_precision_is_the_fastest_that_is_correct_for_the_file(
    files: dict[str, Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[str, float],
    expected: dict[str, str | None],
) -> None:
    """Without kernels and int8 units, an int8 file used to plan ten times slower than a float32 one."""
    monkeypatch.setattr("tdmpc2.precision.kernel_seconds", lambda: seconds)
    chosen = {name: execution("auto", files[name], CPU).name for name in expected}
    assert chosen == {name: precision or name for name, precision in expected.items()}


def test_auto_precision_without_kernels_does_not_go_by_their_speed(
    files: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent with compile=False plans with torch's products, so the speed of the kernels must not count."""
    monkeypatch.setattr("tdmpc2.precision.kernel_seconds", lambda: WITHOUT_AMX)
    assert execution("auto", files["int8"], CPU, kernels=False).name == "fp32"
    assert execution("auto", files["int8"], CPU, kernels=True).name == "int8"


@pytest.mark.parametrize("name", ["fp16", "bf16", "int8", "int8-weight-only"])
def test_auto_precision_without_kernels_is_float32_whatever_the_flags_promise(
    files: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With bf16 instructions the policy of an fp16 file took 0.69 ms instead of the 0.57 of float32."""
    monkeypatch.setattr("tdmpc2.precision.has_fast_bf16", lambda device: True)
    assert execution("auto", files[name], CPU, kernels=False).name == "fp32"
