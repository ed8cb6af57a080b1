"""The list of tasks: its page, and the command that prints it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdmpc2.envs.__main__ import main, markdown
from tdmpc2.tasks import TASKS
from tests.helpers.reference import REPO


def test_task_page_is_up_to_date_and_has_every_task() -> None:
    """Write the page again if this fails: python -m tdmpc2.envs --write docs/tasks.md."""
    page = (REPO / "docs" / "tasks.md").read_text()
    assert page == markdown()
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert sorted(set(rows) - {"task", "---"}) == sorted(TASKS)


def test_task_command_writes_the_page(tmp_path: Path) -> None:
    main(["--write", str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text() == markdown()


def test_task_command_prints_what_a_pattern_matches(capsys: pytest.CaptureFixture[str]) -> None:
    main(["reacher-three-*", "mw-reach"])
    printed = capsys.readouterr().out
    found = [name for name in TASKS if f" {name} " in printed]
    assert found == ["reacher-three-easy", "reacher-three-hard", "mw-reach"]
    assert "Meta-World" in printed
    assert "mt30, mt80" in printed


@pytest.mark.parametrize(("name", "words"), [("walkr-walk", "Did you mean 'walker-walk'"), ("mx-*", "matches none")])
def test_task_command_names_what_is_unknown(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([name])
    assert words in capsys.readouterr().err
