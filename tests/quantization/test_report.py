"""The report of a quantisation: its tables fit the terminal, and its rows are consistent."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from rich.console import Console

from tdmpc2.nn.world_model import WorldModel
from tdmpc2.quantization.calibration import Inputs, Sensitivity
from tdmpc2.quantization.measure import Settings
from tdmpc2.quantization.recipes import OUTPUTS, is_matrix
from tdmpc2.quantization.report import Report, equal_files, markdown, tables
from tdmpc2.support.tables import terminal_table


def row(name: str, *, error: float | None = -40.1, **changes: Any) -> dict[str, Any]:
    """Make a row as the measurement gives it."""
    return {
        "name": name, "computes_in": "int8", "file_bytes": 1_513_251, "size_ratio": 0.264, "weight_bytes": 2_513_251,
        "errors": dict.fromkeys(OUTPUTS, error), "regret": 0.053, "regret_error": 0.021, "iteration_ms": 5.25,
        "plan_ms": 31.2, **changes,
    }  # fmt: skip


@pytest.fixture
def report(tiny_cfg: Any) -> Report:
    """Make a report of a model with real names of matrices, in which mixed equals int8."""
    names = [name for name, tensor in WorldModel(tiny_cfg).state_dict().items() if is_matrix(name, tensor)]
    found = [Sensitivity(name, 1_048_576, dict.fromkeys(OUTPUTS, -99.9)) for name in names]
    inputs = Inputs(torch.zeros(3, 24), torch.zeros(3, 6), torch.zeros(3).long(), "played")
    scores = {"score": 72.93, "interval": (72.4, 83.2), "minus_fp32": -0.3, "minus_fp32_interval": (-12.2, 3.1)}
    errors: dict[str, float | None] = {"fp32": None, "int8-weight-only": -60.0, "int8": -40.1, "mixed": -40.1}
    rows = [row(name, error=error, **scores) for name, error in errors.items()]
    return Report("x.pt", inputs, Settings(), rows, found, frozenset(names), -40.0, {})


def test_tables_at_80_columns_keep_names_and_numbers_whole(report: Report) -> None:
    """Names of matrices used to be broken in the middle: ``_encoder.state.0.weigh``, and ``t`` a line below."""
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    for cells in tables(report):
        console.print(terminal_table(cells))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    words = {word for line in lines for word in line.split()}
    wanted = {word for cells in tables(report) for line in cells.rows for cell in line for word in cell.split()}
    assert wanted <= words


def test_recipes_that_came_to_the_same_file_are_named(report: Report) -> None:
    """Two files and two rows with the same numbers used to appear without an explanation."""
    (line,) = equal_files(report.rows)
    assert line.startswith("int8 and mixed are the same model")
    assert "every matrix is within the limit" in line


def test_recipes_with_other_errors_or_sizes_are_not_the_same() -> None:
    rows = [row("fp32", error=None), row("int8"), row("mixed", weight_bytes=3), row("int8-weight-only", error=-40.2)]
    assert equal_files(rows) == []


def test_markdown_names_equal_recipes(report: Report) -> None:
    text = markdown(report, None)
    assert "int8 and mixed are the same model" in text
    assert "| int8 | int8 | 1,513,251 |" in text
