"""The list of the lowest allowed versions, which they are tested with."""

from __future__ import annotations

import pytest

from tests.helpers.reference import REPO
from tests.oldest import oldest

PROJECT = """
[project]
name = "us"
dependencies = ["b>=2,<3", "a==1.0.2"]
[project.optional-dependencies]
extra = ["c[d]>=0.5", "us[other]"]
"""


def test_oldest_are_the_lower_bounds_of_all_packages() -> None:
    assert oldest(PROJECT) == ["a==1.0.2", "b==2", "c==0.5"]


def test_package_without_lower_bound_is_refused() -> None:
    with pytest.raises(ValueError, match=r"e in pyproject\.toml has no lower bound"):
        oldest(PROJECT.replace("b>=2,<3", "e"))


def test_every_package_of_the_project_has_a_lower_bound() -> None:
    lines = oldest((REPO / "pyproject.toml").read_text())
    assert "dm_control==1.0.28" in lines
    assert len(lines) > 20
