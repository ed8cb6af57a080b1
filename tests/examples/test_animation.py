"""The example that plays tasks side by side: one column for each, one picture for every second step."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from tdmpc2 import TDMPC2
from tests.helpers.playing import toy
from tests.helpers.toy_envs import STANDS_FOR

FILE = Path(__file__).resolve().parents[2] / "examples" / "animation.py"
image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example, for episodes of a few steps."""
    example = runpy.run_path(str(FILE))
    example["frames"].__globals__.update(FIRST=1, LAST=100, EVERY=2)
    return example["main"]


def test_animation_shows_every_second_step_of_all_tasks(main: Any, tmp_path: Path) -> None:
    TDMPC2(toy()).save(tmp_path / "toy.pt")
    main(str(tmp_path / "toy.pt"), tmp_path / "toy.gif", {"device": "cpu"})
    with image.open(tmp_path / "toy.gif") as picture:
        assert (picture.size, picture.n_frames) == ((160, 160), STANDS_FOR // 2)
        assert (picture.info["duration"], picture.info["loop"]) == (50, 0)


def test_animation_of_a_file_that_is_missing_says_so(main: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"toy\.pt does not exist"):
        main(str(tmp_path / "toy.pt"), tmp_path / "toy.gif", {})
