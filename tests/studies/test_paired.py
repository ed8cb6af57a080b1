"""Finished evaluations compared in pairs of episodes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tdmpc2.commands.report import main
from tdmpc2.play.evaluation import Evaluation, TaskResult
from tdmpc2.play.results import write_results
from tdmpc2.studies.paired import compare_all, read_evaluation
from tdmpc2.support.intervals import interquartile_mean

WALK, RUN = [900.0, 100.0, 500.0], [300.0, 310.0, 290.0]


def write(path: Path, returns: dict[str, list[float]], seed: int = 1000, **protocol: object) -> Path:
    """Leave an evaluation's directory; episode k has seed ``seed`` + k."""
    tasks = [
        TaskResult(task, tuple(range(seed, seed + len(found))), tuple(found), (0.0,) * len(found), False)
        for task, found in returns.items()
    ]
    path.mkdir()
    write_results(path, Evaluation(tuple(tasks)), protocol)
    return path


def test_each_is_compared_with_the_first_by_task_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Episodes that differ by a constant differ for certain, in whichever order a file has its tasks."""
    first = write(tmp_path / "fp32", {"walker-walk": WALK, "walker-run": RUN}, precision="fp32")
    better = {"walker-run": [r + 10 for r in RUN], "walker-walk": [r + 50 for r in WALK]}
    second = write(tmp_path / "int8", better, precision="int8")
    main([str(first), str(second), str(second / "results.csv"), "paired=true", f"out={tmp_path / 'compared'}"])
    printed = capsys.readouterr().out
    assert "| walker-walk | 3 | 50.00 | 55.00 | +5.00 | [+5.00, +5.00] |" in printed
    assert "| walker-run | 3 | 30.00 | 31.00 | +1.00 | [+1.00, +1.00] |" in printed
    assert "| normalized score | 6 | 40.00 | 43.00 | +3.00 | [+3.00, +3.00] |" in printed
    assert "precision=fp32" in printed
    found = json.loads((tmp_path / "compared" / "report.json").read_text())["pairs"]
    assert [pair["score"]["value"] for pair in found] == pytest.approx([3, 3])
    assert (tmp_path / "compared" / "report.md").read_text() in printed
    with pytest.raises(SystemExit):
        main([str(first), str(second), "paired=true", f"out={tmp_path / 'compared'}"])
    assert "There is already" in capsys.readouterr().err


def test_interquartile_mean_is_resampled_in_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    returns = {task: rng.uniform(0, 900, 8).tolist() for task in ("walker-walk", "walker-run")}
    shifted = {task: [value + 20 for value in values] for task, values in returns.items()}
    (pair,) = compare_all([write(tmp_path / "a", returns), write(tmp_path / "b", shifted)])
    assert pair.interquartile_mean.value == pytest.approx(2)
    assert pair.interquartile_mean.interval == (pytest.approx(2), pytest.approx(2))
    noisy = {task: rng.uniform(0, 900, 8).tolist() for task in returns}
    (pair,) = compare_all([tmp_path / "a", write(tmp_path / "c", noisy)])
    expected = [interquartile_mean(np.concatenate([*found.values()]) / 10) for found in (noisy, returns)]
    assert pair.interquartile_mean.value == pytest.approx(float(expected[0] - expected[1]))
    low, high = pair.interquartile_mean.interval or (0, 0)
    assert low < pair.interquartile_mean.value < high


def test_tasks_on_different_scales_are_compared_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their mean was printed as nan, and an interquartile mean over both scales as a number."""
    paths = [write(tmp_path / name, {"walker-walk": WALK, "Pendulum-v1": [-150.0, -90.0, -200.0]}) for name in "ab"]
    main([*map(str, paths), "paired=true", f"out={tmp_path / 'compared'}"])
    printed = capsys.readouterr().out
    assert "| Pendulum-v1 | 3 | -146.67 | -146.67 |" in printed
    assert "There is no score of all tasks" in printed
    assert "nan" not in printed
    assert "interquartile" not in printed
    (pair,) = json.loads((tmp_path / "compared" / "report.json").read_text())["pairs"]
    assert (pair["score"], pair["interquartile_mean"]) == (None, None)


def test_protocol_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"walker-walk": WALK})
    (path / "results.json").write_text('{"protocol": {"config": 3}}')
    with pytest.raises(ValueError, match=r"the protocol in .*results\.json.*config"):
        read_evaluation(path)


def test_task_scored_by_success_is_told_by_its_protocol(tmp_path: Path) -> None:
    config = {"task_specs": [{"name": "own-task", "success_score": True}]}
    path = write(tmp_path / "own", {"own-task": [5.0]}, config=config)
    (path / "results.csv").write_text("task,seed,return,success\nown-task,7,5.0,1.0\n")
    assert read_evaluation(path).result.normalized_score == 100


@pytest.mark.parametrize(
    ("other", "seed", "message"),
    [
        ({"walker-run": RUN}, 1000, r"other has no episodes of walker-walk, which .*first has: evaluate both"),
        ({"walker-walk": WALK, "walker-run": RUN}, 1000, r"first has no episodes of walker-run, which .*other has"),
        ({"walker-walk": WALK}, 7, r"walker-walk was played with seeds 1000, 1001, 1002 in .*first, and with seeds 7"),
        ({"walker-walk": WALK[:2]}, 1000, "and with seeds 1000, 1001 in"),
    ],
)
def test_other_tasks_and_seeds_are_refused_by_name(
    tmp_path: Path, other: dict[str, list[float]], seed: int, message: str
) -> None:
    first = write(tmp_path / "first", {"walker-walk": WALK})
    with pytest.raises(ValueError, match=message):
        compare_all([first, write(tmp_path / "other", other, seed)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no episodes of an evaluation"),
        ("task,seed,return,success\nwalker-walk,1,x,\n", "line 2: .* has a cell that is no number"),
        ("task,seed,return,success\nwalker-walk,1,nan,\n", "line 2: .* a number that is not finite"),
        ("task,seed,return,success\nwalker-walk,1,1,\nwalker-walk,1,2,\n", "line 3: walker-walk has seed 1 twice"),
    ],
)
def test_file_that_is_damaged_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_evaluation(tmp_path)


def test_one_evaluation_and_a_web_page_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path / "a", {"walker-walk": WALK}))
    for words, message in (([path], "at least two evaluations"), ([path, path, "html=x.html"], "leave out one of")):
        with pytest.raises(SystemExit):
            main([*words, "paired=true"])
        assert message in capsys.readouterr().err
