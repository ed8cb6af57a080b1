"""The example that plays tasks side by side, a column for each and a picture for every second step."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from tdmpc2 import TDMPC2
from tests.helpers.agents import small_config
from tests.helpers.playing import toy
from tests.helpers.toy_envs import STANDS_FOR

FILE = Path(__file__).resolve().parents[2] / "examples" / "animation.py"
image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load the example with settings for episodes of a few steps."""
    example = runpy.run_path(str(FILE))
    example["frames"].__globals__.update(FIRST=1, LAST=100, EVERY=2)
    return example["main"]


def test_animation_shows_every_second_step_of_all_tasks(main: Any, tmp_path: Path) -> None:
    TDMPC2(toy()).save(tmp_path / "toy.pt")
    main(str(tmp_path / "toy.pt"), tmp_path / "toy.gif", {"device": "cpu"})
    with image.open(tmp_path / "toy.gif") as picture:
        assert (picture.size, picture.n_frames) == ((160, 160), STANDS_FOR // 2)
        assert (picture.info["duration"], picture.info["loop"]) == (50, 0)


def test_animation_has_a_column_for_each_task_and_ends_with_the_shortest(main: Any, tmp_path: Path) -> None:
    colours, made = [(250, 0, 0), (0, 0, 250)], iter(range(2))

    def played(agent: TDMPC2, task_id: int) -> list[Any]:
        number = next(made)
        return [image.new("RGB", (160, 160), colours[number])] * (4 + number)

    main.__globals__["frames"] = played
    TDMPC2(small_config(tasks=["walker-walk", "cup-spin"])).save(tmp_path / "two.pt")
    main(str(tmp_path / "two.pt"), tmp_path / "two.gif", {"device": "cpu"})
    with image.open(tmp_path / "two.gif") as picture:
        assert picture.size == (320, 160)
        shown = picture.convert("RGB")
        assert [shown.getpixel((x, 80)) for x in (0, 159, 160, 319)] == [colours[0]] * 2 + [colours[1]] * 2


def test_animation_of_an_episode_that_is_too_short_says_so(main: Any, tmp_path: Path) -> None:
    main.__globals__["FIRST"] = STANDS_FOR
    TDMPC2(toy()).save(tmp_path / "toy.pt")
    with pytest.raises(ValueError, match=f"an episode ended before step {STANDS_FOR}"):
        main(str(tmp_path / "toy.pt"), tmp_path / "toy.gif", {"device": "cpu"})


def test_animation_of_a_file_that_is_missing_says_so(main: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"toy\.pt does not exist"):
        main(str(tmp_path / "toy.pt"), tmp_path / "toy.gif", {})
