"""Fixtures: the runs of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.studies import write_run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Write the runs of a sweep: three weights and no teacher, two seeds each."""
    root = tmp_path / "runs"
    for weight, scores in {None: (10, 14), 0.0: (11, 13), 0.4: (20, 22), 0.9: (9, 12)}.items():
        for seed, score in enumerate(scores, 1):
            write_run(root, seed, score, weight=weight)
    return root
