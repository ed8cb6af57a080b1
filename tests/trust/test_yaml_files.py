"""Configuration files that Hydra reads and that are too large, endless or no YAML."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tdmpc2.commands import evaluate

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
BAD = {
    "aliases": (BOMB, r"has 1[\d,]+ entries, more than the 100,000"),
    "an alias within itself": ("a: &a [*a]\n", "has entries without end"),
    "size": (f"a: {'x' * 2**20}\n", r"has 1,048,\d+ bytes, more than the 1,048,576"),
    "depth": (f"a: {'[' * 3000}{']' * 3000}\n", "is nested too deeply"),
    "no YAML": ("a: [1\nb: }\n", "A configuration file cannot be read: while parsing"),
}


@pytest.mark.parametrize("case", BAD)
def test_configuration_file_that_cannot_be_one_is_refused_in_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of ten lines used to fill the memory, and one that is no YAML was a traceback."""
    content, words = BAD[case]
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--config-dir", str(tmp_path), "--config-name", "own"])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    assert str(tmp_path / "own.yaml") in error
    assert re.search(words, error), error
