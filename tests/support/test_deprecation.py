"""Deprecated names: a line on the command line and a warning in programs announce them once."""

from __future__ import annotations

import warnings

import pytest

from tdmpc2.support.deprecation import deprecated


@pytest.fixture(autouse=True)
def _new_process() -> None:
    deprecated.cache_clear()


def old_function() -> None:
    deprecated("old_function", "new_function")


def test_deprecated_name_warns_its_user_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            old_function()
    (warning,) = caught
    assert warning.category is DeprecationWarning
    assert "old_function is deprecated" in str(warning.message)
    assert "use new_function" in str(warning.message)
    assert warning.filename == __file__  # where it is used, and not where it is defined


def test_deprecated_command_says_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        deprecated("python -m tdmpc2.old", "tdmpc2 new", command=True)
    assert capsys.readouterr().err.count("warning: python -m tdmpc2.old is deprecated") == 1
