"""The figures of the results are drawn only from the tables in benchmarks/RESULTS.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.result_figures import BODY, FILES, RECIPES, RESULTS, SCORES, STUDENT, main, numbers, read_table
from tdmpc2.config import Config
from tdmpc2.tasks import MT30, body_of
from tests.helpers.studies import PNG


def test_table_of_the_published_student_has_every_task_and_its_score() -> None:
    """The mean of the table that is drawn is the score that is stated above it."""
    table = read_table(RESULTS.read_text(), STUDENT, "task")
    assert [row["task"] for row in table] == list(Config().task_names)
    for precision, score in (("bf16", 29.23), ("int8", 27.41)):
        assert sum(numbers(row[precision])[0] for row in table) / len(table) / 10 == pytest.approx(score, abs=0.005)


def test_tables_of_the_recipes_are_of_the_same_files() -> None:
    text = RESULTS.read_text()
    sizes = {row["file"] for row in read_table(text, RECIPES, "file") if row["of fp32"]}
    scores = {row["file"].partition(" (")[0] for row in read_table(text, SCORES, "file")}
    assert sizes <= scores


def test_tables_of_the_body_are_of_the_same_tasks() -> None:
    text = RESULTS.read_text()
    tasks = [row["task"] for row in read_table(text, BODY, "task")]
    assert tasks == [name for name in read_table(text, BODY, "agent steps")[0] if name.startswith("walker")]
    assert set(tasks) == set(body_of("walker-walk")) & set(MT30)


def test_figures_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    main([str(tmp_path)])
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in files] == list(FILES)
    assert all(file.read_bytes().startswith(PNG) for file in files)


def test_section_without_a_table_is_named() -> None:
    with pytest.raises(ValueError, match="no table with the column 'file' under 'Nothing'"):
        read_table("# Results\n\n## Nothing\n\n| task |\n|---|\n", "Nothing", "file")
