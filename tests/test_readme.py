"""The README: its snippet runs, and what it names exists; its commands are tested in test_docs.py."""

from __future__ import annotations

import re

import pytest

from tdmpc2.config import key_names
from tests.helpers.reference import REPO

README = (REPO / "README.md").read_text()
GROUPS = ("student_config", "teacher_config")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def test_readme_snippet_plays_the_model_that_comes_with_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    found = re.fullmatch(r"return (\d+\.\d)\n", capsys.readouterr().out)
    assert found
    assert float(found[1]) > 500  # random actions return about 40


def test_readme_keys_exist() -> None:
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE))
    named = [match for span in spans for match in re.findall(r"(?:^|\s)(?:\w+_config\.)?([a-z_]+)=(?!=)", span)]
    assert len(named) > 5
    assert set(named) <= {*key_names(), *GROUPS, "mmap_mode", "key"}
    prefixed = [match for span in spans for match in re.findall(r"(?:student|teacher)_config\.(\w+)", span)]
    assert set(prefixed) <= set(key_names())


def test_readme_make_targets_exist() -> None:
    targets = re.findall(r"^make ([\w-]+)", "".join(blocks("")), re.MULTILINE)
    assert targets
    assert all(re.search(rf"^{target}:", (REPO / "Makefile").read_text(), re.MULTILINE) for target in targets)


def test_readme_fits_on_a_few_screens() -> None:
    assert len(README.splitlines()) <= 150


def test_parts_of_the_package_that_are_named_exist() -> None:
    paragraph = README[README.index("Where things are:") :].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", paragraph))
    assert len(named) > 10
    there = {path.stem for path in (REPO / "tdmpc2").iterdir()}
    assert named <= there
