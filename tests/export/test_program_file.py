"""Exported programs of torch.export act as the plain model, without this package."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tdmpc2.export.check import check, compare
from tdmpc2.export.graph import STEPS
from tdmpc2.export.program_file import ENDING, Program, export
from tdmpc2.export.request import Request, load
from tdmpc2.export.step_files import target_files
from tests.export.test_graph import given
from tests.helpers.reference import REPO

#: What a user types without this package: docs/deployment.md.
ALONE = """
import json, sys, torch
extra = {"tdmpc2.json": ""}
plan = torch.export.load(sys.argv[1], extra_files=extra).module()
card = json.loads(extra["tdmpc2.json"])
tensors = [torch.zeros(item["shape"], dtype=getattr(torch, item["dtype"])) for item in card["inputs"]]
action, mean = plan(*tensors)
assert "tdmpc2" not in sys.modules
print([task["name"] for task in card["tasks"]], list(action.shape))
"""


@pytest.fixture(scope="module")
def programs(request_of: Request, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    request = replace(request_of, out=tmp_path_factory.mktemp("programs"), precision="int8")
    assert export(request)
    return target_files(request, ENDING)


def test_programs_give_what_the_plain_steps_give(request_of: Request, programs: dict[str, Path]) -> None:
    source = load(replace(request_of, precision="int8"))
    for kind in STEPS:
        step, run = kind(source.model), Program(programs[kind.name])
        for seed in range(4):
            inputs = given(step, seed)
            for got, expected in zip(run(inputs), step(*inputs.values()), strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_programs_are_of_no_device(programs: dict[str, Path]) -> None:
    """Tracing asserts the device of what is converted; such a program would not run after ``.to("cuda")``."""
    for path in programs.values():
        targets = [str(node.target) for node in torch.export.load(path).graph.nodes]
        assert not [name for name in targets if "assert_tensor_metadata" in name]


def test_program_says_what_the_onnx_file_says_and_nothing_of_this_machine(programs: dict[str, Path]) -> None:
    card = Program(programs["plan"]).card
    assert (card["step"], card["precision"], card["envs"]) == ("plan", "int8", 1)
    assert [item["name"] for item in card["inputs"]][:3] == ["obs", "plan", "t0"]
    with zipfile.ZipFile(programs["plan"]) as archive:
        text = b"".join(archive.read(name) for name in archive.namelist() if name.endswith((".json", ".txt")))
    assert str(REPO).encode() not in text
    assert b"site-packages" not in text


def test_check_of_programs_finds_no_difference_and_one_that_is_there(
    request_of: Request, programs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(request_of, precision="int8", steps=1)
    source = load(request)
    steps, runtimes = [step(source.model) for step in STEPS], {name: Program(path) for name, path in programs.items()}
    assert check(compare(request, source, steps, runtimes))
    original = Program.__call__
    monkeypatch.setattr(Program, "__call__", lambda self, given: [x + 0.01 for x in original(self, given)])
    assert not check(compare(request, source, steps, runtimes))


@pytest.mark.slow
def test_program_runs_in_a_process_without_this_package(programs: dict[str, Path], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(programs["plan"])], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "['pendulum-spin', 'walker-walk', 'cup-catch'] [1, 6]", done.stderr[-500:]
