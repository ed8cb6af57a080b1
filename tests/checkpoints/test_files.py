"""Checkpoint files: round trips, atomic writing, precision."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tdmpc2.checkpoints import layouts
from tdmpc2.checkpoints.files import FORMAT, load_file, precision_of, read_file, save_file
from tdmpc2.config import Config
from tests.helpers.checkpoints import assert_same
from tests.helpers.reference import REPO

# -- writing and reading ----------------------------------------------------------------------------------------------


def test_save_file_round_trip_keeps_everything(tmp_path: Path, config: Config, state: dict[str, Tensor]) -> None:
    path = tmp_path / "new directory" / "x.pt"
    payload = {"model": state, "config": config.to_dict(), "step": 7, "score": [1.5, None], "parent": {"sha256": "ab"}}
    before = dict(payload)
    save_file(path, payload, overwrite=False)
    assert payload.keys() == before.keys()
    read = load_file(path)
    assert_same(read.model, state)
    assert Config(**read.config) == config
    assert (read.step, read.format, read.path) == (7, FORMAT, str(path))
    assert read.extra == {"score": [1.5, None], "parent": {"sha256": "ab"}}
    assert read.task_specs == config.task_specs
    assert torch.load(path, weights_only=True)["format"] == FORMAT
    assert [entry.name for entry in path.parent.iterdir()] == ["x.pt"]


def test_save_file_of_generic_state_round_trip_is_equal(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    adam = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    adam.step()
    numbers = np.random.default_rng(0).bit_generator.state  # holds 128-bit integers
    training = {"adam": adam.state_dict(), "numpy": numbers, "torch": torch.get_rng_state(), "where": (1, "a", True)}
    save_file(tmp_path / "state.pt", training, overwrite=False)
    read = read_file(tmp_path / "state.pt")
    assert read["numpy"] == numbers
    assert read["where"] == (1, "a", True)
    assert torch.equal(read["torch"], training["torch"])
    assert torch.equal(read["adam"]["state"][0]["exp_avg"], adam.state_dict()["state"][0]["exp_avg"])
    assert read["adam"]["param_groups"] == adam.state_dict()["param_groups"]


def test_load_file_of_dict_in_memory_reads_it(state: dict[str, Tensor]) -> None:
    bare = load_file(OrderedDict(state))
    wrapped = load_file({"model": state, "step": 3, "note": "n"})
    assert_same(bare.model, state)
    assert (bare.config, bare.step, bare.format, bare.extra, bare.path) == (None, None, None, {}, None)
    assert (wrapped.step, wrapped.extra) == (3, {"note": "n"})


def test_load_file_of_layout_b_keeps_its_layout(tmp_path: Path, state: dict[str, Tensor]) -> None:
    b = layouts.to_layout_b(state, torch.ones(30, 6), -10, 12)
    torch.save({"model": b}, tmp_path / "b.pt")
    read = load_file(tmp_path / "b.pt").model
    assert read.keys() == b.keys()
    assert read["_Qs.params.__batch_size"] == torch.Size([3])
    assert_same(layouts.to_layout_a(read), state)


def test_save_file_of_views_stores_only_their_values(tmp_path: Path) -> None:
    big = torch.zeros(1_000_000)
    save_file(tmp_path / "x.pt", {"model": {"a": big[:10], "b": nn.Parameter(torch.ones(2))}}, overwrite=False)
    assert (tmp_path / "x.pt").stat().st_size < 10_000
    read = read_file(tmp_path / "x.pt")["model"]
    assert read["a"].shape == (10,)
    assert not read["b"].requires_grad


def test_save_file_onto_existing_file_needs_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_file(path, {"step": 1}, overwrite=False)
    with pytest.raises(ValueError, match=r"x\.pt exists: choose another name"):
        save_file(path, {"step": 2}, overwrite=False)
    assert read_file(path)["step"] == 1
    save_file(path, {"step": 2}, overwrite=True)
    assert read_file(path)["step"] == 2


def test_save_file_mode_follows_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        save_file(tmp_path / "x.pt", {"step": 1}, overwrite=False)
    finally:
        os.umask(old)
    assert (tmp_path / "x.pt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"seed": np.float64(1)}, r"payload\['config'\]\['seed'\] is a float64"),
        ([1, Path("x")], r"payload\['config'\]\[1\] is a PosixPath"),
        ({1, 2}, r"payload\['config'\] is a set"),
    ],
)
def test_save_file_with_unreadable_entry_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_file(tmp_path / "x.pt", {"config": value}, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_save_file_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Could not write .*file/x\.pt"):
        save_file(tmp_path / "file" / "x.pt", {"step": 1}, overwrite=False)


# -- interruptions ----------------------------------------------------------------------------------------------------


# The process stops at a chosen point of its second save, prints that and waits to be killed.
KILLED = """
import os, sys, torch
from tdmpc2.checkpoints.files import save_file

path, point = sys.argv[1:]
save_file(path, {"model": {"a": torch.full((1000,), 1.0)}, "step": 1}, overwrite=False)

def stop(*args, **kwargs):
    if point == "torch.save":
        args[1].write(b"half a file")
        args[1].flush()
    print("stopped", flush=True)
    sys.stdin.read()

setattr(torch if point == "torch.save" else os, point.split(".")[1], stop)
save_file(path, {"model": {"a": torch.full((1000,), 2.0)}, "step": 2}, overwrite=True)
"""


@pytest.mark.parametrize("point", ["torch.save", "os.fsync", "os.replace"])
def test_save_file_killed_leaves_old_file(tmp_path: Path, point: str) -> None:
    path = tmp_path / "x.pt"
    command = [sys.executable, "-c", KILLED, str(path), point]
    with subprocess.Popen(command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "stopped\n"
        assert len(list(tmp_path.iterdir())) == 2  # the old file and the unfinished one
        child.kill()
    assert child.returncode == -9
    assert load_file(path).step == 1
    save_file(path, {"model": {"a": torch.zeros(1)}, "step": 3}, overwrite=True)
    assert load_file(path).step == 3


FULL_DISK = """
import resource, sys, torch
from tdmpc2.checkpoints.files import save_file

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save_file(sys.argv[1], {"model": {"a": torch.zeros(100_000)}, "step": 2}, overwrite=True)
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits file sizes with RLIMIT_FSIZE")
def test_save_file_on_full_disk_leaves_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_file(path, {"model": {"a": torch.zeros(1)}, "step": 1}, overwrite=False)
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    child = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    assert child.stdout.startswith(f"Could not write {path}: [Errno 27] File too large")
    assert load_file(path).step == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_save_file_failing_midway_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def fail(content: Any, file: Any) -> None:
        file.write(b"half a file")
        raise kind("stopped")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(ValueError if kind is RuntimeError else kind, match="stopped"):
        save_file(tmp_path / "x.pt", {"step": 1}, overwrite=False)
    assert list(tmp_path.iterdir()) == []


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (torch.float32, "fp32"),
        (torch.float64, "fp32"),
        (torch.float16, "fp16"),
        (torch.bfloat16, "bf16"),
        (torch.int8, "int8"),
    ],
)
def test_precision_of_state_is_that_of_its_matrices(
    state: dict[str, Tensor], dtype: torch.dtype, precision: str
) -> None:
    def is_matrix(name: str) -> bool:
        return name != "_task_emb.weight" and state[name].ndim == 2 + ("Qs" in name)

    stored = {name: tensor.to(dtype) if is_matrix(name) else tensor for name, tensor in state.items()}
    assert precision_of(stored) == precision
    assert precision_of({**stored, "_Qs.params.4": state["_Qs.params.4"].half()}) == (
        "fp16" if dtype == torch.float16 else "mixed"
    )
    if dtype.is_floating_point:
        assert precision_of(layouts.to_layout_b(stored, None, -10, 12)) == "fp32"


def test_precision_of_unsupported_dtype_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"torch\.int16 are not supported"):
        precision_of({name: tensor.to(torch.int16) for name, tensor in state.items()})
