"""Fixtures: a small model of three tasks, exported once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tdmpc2.export.onnx_file import ENDING, export
from tdmpc2.export.request import Request
from tdmpc2.export.step_files import target_files
from tests.helpers.agents import make_teacher, small_config

TASKS = ("pendulum-spin", "walker-walk", "cup-catch")


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an MT30 model whose rewards, values and policy depend on all their inputs."""
    agent = make_teacher(small_config(iterations=1, horizon=1))
    with torch.no_grad():
        for parameter in agent.model._Qs.params[8:]:
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    path = tmp_path_factory.mktemp("export") / "model.pt"
    agent.save(path, step=7)
    return path


@pytest.fixture(scope="session")
def request_of(model_file: Path) -> Request:
    """Describe the export that most tests use."""
    return Request(model_file, tasks=TASKS)


@pytest.fixture(scope="session")
def files(request_of: Request) -> dict[str, Path]:
    """Export the model and return the files by step."""
    assert export(request_of)
    return target_files(request_of, ENDING)
