"""The example that draws evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.plot_results import episodes_text, main
from tdmpc2.config import Config
from tdmpc2.play.results import write_results
from tests.helpers.playing import fake
from tests.helpers.studies import PNG

PROTOCOL = {"checkpoint": "logs/student/model.pt", "config": Config().to_dict()}


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((1,), "one episode a task: no interval can be given"),
        ((3,), "means and 95 % intervals over 3 episodes a task"),
        ((1, 10), "means and 95 % intervals over 1 to 10 episodes a task"),
    ],
)
def test_figure_says_how_many_episodes_its_bars_stand_for(counts: tuple[int, ...], text: str) -> None:
    """Single episodes, which vary from 0 to 1000, used to be drawn as if they were certain."""
    assert episodes_text([{"tasks": [{"episodes": count} for count in counts]}]) == text


def test_figure_of_evaluations_of_one_file_names_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    titles: list[str] = []
    legend = figure_class.legend

    def recorded(self: object, *args: object, **kwargs: object) -> object:
        result = legend(self, *args, **kwargs)
        titles.extend(text.get_text() for text in result.get_texts())
        return result

    monkeypatch.setattr(figure_class, "legend", recorded)
    files = []
    for samples in (512, 64):
        directory = tmp_path / f"eval-{samples}"
        protocol = {**PROTOCOL, "config": Config(num_samples=samples).to_dict()}
        write_results(directory, fake(("walker-walk", [500.0, 700.0], [0.0, 0.0])), protocol)
        files.append(str(directory / "results.json"))
    main([str(tmp_path / "bars.png"), *files])
    assert titles == ["student, num_samples=512: 60.0", "student, num_samples=64: 60.0"]
    assert (tmp_path / "bars.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("content", [None, "{}", "x"])
def test_file_that_holds_no_results_is_named_in_one_line(tmp_path: Path, content: str | None) -> None:
    """A missing file used to end in a traceback."""
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "bars.png"), str(path)])
    assert str(stopped.value).startswith(f"error: {path} ")
    assert "\n" not in str(stopped.value)
