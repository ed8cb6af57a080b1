"""The leaderboard: public results of every form, own evaluations, missing files, and the written page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tdmpc2.commands import leaderboard as command
from tdmpc2.studies import sources
from tdmpc2.studies.leaderboard import TABLES, gather, last_of_each, own_entry, summaries
from tdmpc2.studies.leaderboard_page import page
from tdmpc2.studies.sources import SHORT, SOURCES, find
from tdmpc2.tasks import MT30

PWM = SOURCES[0].readings[0].file
CONFIG = {"eval_noise": False, "num_samples": 512, "iterations": 6, "horizon": 3}
BMPC = next(source for source in SOURCES if source.method == "BMPC")


def evaluation(folder: Path, action: str = "planner", tasks: tuple[str, ...] = MT30, **facts: object) -> Path:
    """Write a directory as `tdmpc2 evaluate` leaves it: two episodes a task, of 400 and 600."""
    folder.mkdir(parents=True)
    rows = [f"{task},{seed},{value}," for task in tasks for seed, value in ((1, 400.0), (2, 600.0))]
    (folder / "results.csv").write_text("\r\n".join(["task,seed,return,success", *rows, ""]))
    protocol = {"action": action, "checkpoint": "models/mine.pt", "precision": "fp32", "config": CONFIG}
    (folder / "results.json").write_text(json.dumps({"protocol": protocol, **facts}))
    return folder


def test_evaluations_of_one_file_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    """Two planning budgets, one of them evaluated twice, and the policy get four different names."""
    folders = [evaluation(tmp_path / str(number), action) for number, action in enumerate(["planner"] * 3 + ["policy"])]
    for folder, samples in zip(folders, (512, 128, 128, 512), strict=True):
        about = json.loads((folder / "results.json").read_text())
        about["protocol"]["config"]["num_samples"] = samples
        (folder / "results.json").write_text(json.dumps(about))
    names = [entry.name for entry in gather(folders).entries if entry.own]
    assert names == ["mine, num_samples=512", "mine, num_samples=128 (1)", "mine, num_samples=128 (2)", "mine"]


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(path: Path, text: str, source: sources.Source = SOURCES[0]) -> str:
    put(path, source.readings[0].file, text)
    with pytest.raises(ValueError, match=r"\A.+\Z") as error:
        find(source, [path])
    return str(error.value)


def test_tables_have_thirty_and_nineteen_tasks() -> None:
    assert [len(tasks) for tasks in TABLES.values()] == [30, 19]
    assert "cup-spin" not in TABLES["The 19 tasks of DMControl itself"]


@pytest.mark.parametrize(
    ("method", "protocol", "mean"),
    [("TD-MPC2 48M", "offline", 59.8), ("PWM", "policy a task", 76.8), ("TD-MPC2 5M", "100,000", 59.5),
     ("TD-MPC2 5M", "1,000,000", 85.3), ("SAC", "100,000", 37.2), ("DreamerV3", "500,000", 67.1)],
)  # fmt: skip
def test_short_files_give_the_published_means(method: str, protocol: str, mean: float) -> None:
    """Others computed these means over 30 tasks from the whole files."""
    found = summaries(gather([]).entries, MT30)
    row = next(row for row in found if row.entry.name == method and protocol in row.entry.protocol)
    assert row.mean == pytest.approx(mean, abs=0.06)


def test_single_task_rows_have_an_interval_over_seeds_and_means_alone_have_none() -> None:
    rows = {row.entry.name: row for row in summaries(gather([]).entries, MT30)}
    assert rows["TD-MPC2 5M"].entry.values == "seeds"
    low, high = rows["TD-MPC2 5M"].interval or (1.0, 0.0)
    assert low < rows["TD-MPC2 5M"].mean < high
    assert rows["PWM"].interval is None


def test_downloaded_file_with_episodes_comes_before_the_short_one(tmp_path: Path) -> None:
    rows = "".join(f"{task},{seed},{100 * seed},0.0\n" for task in MT30 for seed in range(3))
    put(tmp_path, PWM, "task,seed,episode_reward,episode_success\n" + rows)
    found = find(SOURCES[0], [tmp_path, SHORT])
    assert found is not None
    assert (found.values, found.returns["walker-run"]) == ("episodes", [0.0, 100.0, 200.0])


def test_file_for_each_task_is_read_only_when_all_are_there(tmp_path: Path) -> None:
    """A download that broke off half-way must not pass for a result on fewer tasks."""
    source = next(source for source in SOURCES if source.method == "SAC")
    names = list(source.readings[0].files())
    for name in names[:-1]:
        put(tmp_path, name, "step,reward,seed\n0,1.0,1\n100000,500.0,1\n100000,700,2\n")
    assert find(source, [tmp_path]) is None
    put(tmp_path, names[-1], "step,reward,seed\n100000,500.0,1")
    found = find(source, [tmp_path])
    assert found is not None
    assert (found.returns["acrobot-swingup"], len(found.returns)) == ([500.0, 700.0], 30)


def test_means_by_step_are_of_the_tasks_that_the_file_has(tmp_path: Path) -> None:
    tasks = {task: {"steps": [0, 100_000], "values": [3.0, 250.0]} for task in ("walker-run", "dog-run")}
    put(tmp_path, BMPC.readings[0].file, json.dumps({"BMPC": tasks}))
    found = find(BMPC, [tmp_path])
    assert found is not None
    assert found.returns == {"walker-run": [250.0]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "has no column 'task'"),
        ("task,episode_reward\nwalker-run,1715928089.0\n", "a return of 1.71593e+09 for 'walker-run'"),
        ("task,episode_reward\nwalker-run,nan\n", "'nan' is no number"),
        ("task,seed,episode_reward\nwalker-run,1\n", "line 2: fewer cells than columns"),
        ("task,episode_reward\n", "has no returns of a task of MT30"),
    ],
)
def test_damaged_table_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    message = refused(tmp_path, text)
    assert said in message
    assert "tdmpc2_mt30_scores.csv" in message


@pytest.mark.parametrize(
    "text", ["[1]", '{"BMPC": {"walker-run": 3}}', '{"BMPC": {"walker-run": {"steps": [100000], "values": []}}}']
)
def test_damaged_json_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    assert "data_dmc_all_1M.json" in refused(tmp_path, text, BMPC)


def test_own_evaluation_is_a_row_with_every_episode(tmp_path: Path) -> None:
    entry = own_entry(evaluation(tmp_path / "eval", "policy", parameters=1_500_000, seconds_per_action=0.0006))
    assert (entry.name, entry.planned, entry.parameters, entry.seconds) == ("mine", False, 1.5e6, 0.0006)
    assert entry.protocol == "here, 2 episodes a task, fp32"
    np.testing.assert_allclose(entry.scores["walker-run"], [40.0, 60.0])


@pytest.mark.parametrize("facts", [{"parameters": -1}, {"seconds_per_action": "fast"}, {"parameters": True}])
def test_own_evaluation_with_impossible_facts_is_refused(tmp_path: Path, facts: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be a number above 0"):
        own_entry(evaluation(tmp_path / "eval", **facts))  # type: ignore[arg-type]


def test_task_by_task_has_the_longest_training_of_each_method() -> None:
    found = [(entry.name, entry.protocol) for entry in last_of_each(gather([]).entries)]
    assert ("SAC", "a model a task, 1,000,000 control steps") in found
    assert len(found) == len({name for name, _ in found})


def test_command_writes_the_page_with_own_rows_and_says_what_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluation(tmp_path / "whole")
    evaluation(tmp_path / "part", "policy", MT30[:20])
    command.main(["whole", "part", "figure=figures/board.png"])
    text = (tmp_path / "leaderboard.md").read_text()
    assert "| **mine** | plan | here, 6 x 512 samples, 2 episodes a task, fp32 | 50.0 | [" in text
    assert "Not in this table: mine, policy, which has 20 of them." in text
    assert "Not here: BMPC (wertyuilife2/bmpc)" in text
    assert "![Means and their intervals](figures/board.png)" in text
    assert (tmp_path / "figures" / "board.png").read_bytes().startswith(b"\x89PNG")
    command.main(["whole", "part", "figure=figures/the board.png", "force=true"])
    assert "](figures/the%20board.png)" in (tmp_path / "leaderboard.md").read_text()
    assert "Not here: BMPC" in capsys.readouterr().out
    for word, said in (("figure=board.pdf", "must end in .png"), ("site=https://mirror.example", "add --download")):
        with pytest.raises(SystemExit):
            command.main(["whole", "part", "force=true", word])
        assert said in capsys.readouterr().err


def test_page_in_docs_is_what_the_command_writes() -> None:
    """If this fails, write the page and its figure again with the line in docs/results.md."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "results.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if "out=docs/leaderboard.md" in line)
    own = [root / word for word in line.split() if word.startswith("benchmarks/evaluations/")]
    assert [folder.name for folder in own] == ["student-alone", "student-planned"]
    made = page(gather(own), None, "../assets/leaderboard.png")
    assert made == (root / "docs" / "leaderboard.md").read_text(encoding="utf-8")


def test_command_replaces_a_page_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (there := tmp_path / "leaderboard.md").write_text("mine")
    with pytest.raises(SystemExit):
        command.main([])
    assert there.read_text() == "mine"
    assert "leaderboard.md exists" in capsys.readouterr().err
    command.main(["--force"])
    assert there.read_text().startswith("# Leaderboard")


def test_evaluations_of_different_length_are_told_apart_by_their_budgets_too(tmp_path: Path) -> None:
    """They used to have one name, since only rows with equal numbers of episodes were told apart."""
    folders = [evaluation(tmp_path / name) for name in ("full", "few")]
    for folder, (samples, episodes) in zip(folders, ((512, 2), (128, 1)), strict=True):
        about = json.loads((folder / "results.json").read_text())
        about["protocol"]["config"] |= {"num_samples": samples, "eval_episodes": episodes}
        (folder / "results.json").write_text(json.dumps(about))
    table = (folders[1] / "results.csv").read_text().splitlines()
    (folders[1] / "results.csv").write_text("\n".join(line for line in table if ",2," not in line) + "\n")
    full, few = (entry for entry in gather(folders).entries if entry.own)
    assert full.name == "mine, num_samples=512, eval_episodes=2"
    assert (few.name, few.protocol) == (
        "mine, num_samples=128, eval_episodes=1",
        "here, 6 x 128 samples, 1 episode a task, fp32",
    )


@pytest.mark.parametrize("config", [None, {"num_samples": "many"}])
def test_own_evaluation_with_a_damaged_protocol_is_refused_in_one_line(tmp_path: Path, config: object) -> None:
    folder = evaluation(tmp_path / "mine")
    about = json.loads((folder / "results.json").read_text())
    about["protocol"]["config"] = config
    (folder / "results.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"results\.json: protocol.*config"):
        gather([folder])
