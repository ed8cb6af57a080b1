"""Files and tables of an evaluation's results."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tdmpc2.config import Config
from tdmpc2.play import results
from tests.helpers.playing import MIXED, fake


def test_result_files(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    results.write_results(directory, MIXED, {"action": "planner", "config": Config().to_dict()})
    summary = json.loads((directory / "results.json").read_text())
    assert summary["normalized_score"] == pytest.approx(55)
    assert summary["interval"] == list(MIXED.interval or ())
    assert summary["protocol"]["action"] == "planner"
    assert summary["protocol"]["config"]["task"] == "mt30"
    assert {"python", "torch", "mujoco", "dm_control", "gymnasium", "numpy"} <= summary["versions"].keys()
    assert [(row["task"], row["episodes"], row["return"], row["success"]) for row in summary["tasks"]] == [
        ("walker-walk", 2, 600.0, 0.0), ("mw-reach", 2, 625.5, 0.5),
    ]  # fmt: skip
    assert summary["tasks"][0]["return_interval"] == [500, 700]
    with (directory / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["task"], int(r["seed"]), float(r["return"]), float(r["success"])) for r in rows] == [
        ("walker-walk", 100, 500, 0), ("walker-walk", 101, 700, 0),
        ("mw-reach", 100, 1234, 1), ("mw-reach", 101, 17, 0),
    ]  # fmt: skip
    assert sorted(path.name for path in directory.iterdir()) == ["results.csv", "results.json"]


def test_returns_survive_the_csv_exactly(tmp_path: Path) -> None:
    value = 100 / 3
    results.write_results(tmp_path, fake(("cup-spin", [value], [0.0])), {})
    assert float((tmp_path / "results.csv").read_text().splitlines()[1].split(",")[2]) == value
    assert json.loads((tmp_path / "results.json").read_text())["tasks"][0]["return"] == value


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.write_results(tmp_path, MIXED, {"run": 1})
    before = (tmp_path / "results.json").read_bytes()

    def crash(source: Any, target: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        results.write_results(tmp_path, MIXED, {"run": 2})
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_fresh_directory_is_never_one_with_results(tmp_path: Path) -> None:
    base = tmp_path / "eval-x"
    seen = []
    for _ in range(3):
        with results.fresh_directory(base) as directory:
            results.write_results(directory, MIXED, {})
        seen.append(directory.name)
    with results.fresh_directory(base) as one, results.fresh_directory(base) as other:  # at the same time
        seen += [one.name, other.name]
    with results.fresh_directory(base) as directory:  # whose name is free again
        results.write_episodes(directory, MIXED)  # and no more, as where it is interrupted
    seen.append(directory.name)
    assert seen == ["eval-x", "eval-x-2", "eval-x-3", "eval-x-4", "eval-x-5", "eval-x-4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval-x", "eval-x-2", "eval-x-3", "eval-x-4"]
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "model.pt").touch()
    with results.fresh_directory(tmp_path / "training") as directory:
        assert directory == tmp_path / "training"  # a run's own directory
    assert [path.name for path in directory.iterdir()] == ["model.pt"]


def test_table_shows_every_task_and_the_score() -> None:
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(results.table(MIXED, "student"))
    text = console.export_text()
    walker = next(line for line in text.splitlines() if "walker-walk" in line).split()
    assert walker == ["walker-walk", "2", "600.0", "[500.0,", "700.0]", "0.00"]
    assert "55.00" in next(line for line in text.splitlines() if "normalized score" in line)
    assert results.format_interval(None) == "-"
