"""Every benchmark starts without arguments, fits into 80 columns and ends with its line of JSON."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from benchmarks import __main__ as runner
from benchmarks import _harness, _inputs
from tests.helpers.reference import REPO

KEYS = ["benchmark", "machine", "versions", "date", "commit", "options", "results"]
NAMES = sorted(path.stem for path in (REPO / "benchmarks").glob("[a-z]*.py") if path.stem != "benchmarks")
COMPILING = ("kernels", "plan", "update")  # these measure torch.compile
STARTING = ("export", "stepping", "train")  # these start processes, which takes seconds
WITH_A_COMPILER = ("kernels", "native", "returns", "update")  # skipped without one; tests/native runs two of them


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """Undo what a benchmark sets for its own process, so that later tests are not affected."""
    threads, environment = torch.get_num_threads(), dict(os.environ)
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that there is no C++ compiler, so that nothing waits for one."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("cp", "git"):
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.delenv("CXX", raising=False)


def quick_run(name: str, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Run a benchmark in this process with one thread, and return what it printed."""
    importlib.import_module(f"benchmarks.{name}").main([*options, "--quick", "--threads", "1"])
    return capsys.readouterr().out


def check_output(name: str, output: str) -> None:
    *lines, last = output.strip().splitlines()
    result = json.loads(last)
    assert list(result) == KEYS
    assert result["benchmark"] == name
    assert result["options"]["quick"] is True
    assert result["results"]
    assert all("name" in entry for entry in result["results"])
    rules = [index for index, line in enumerate(lines) if line and set(line) == {"-"}]
    assert rules, "no table"
    assert max(len(line) for index in rules for line in lines[index - 1 :][:4]) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_help_of_every_benchmark_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert end.value.code == 0
    assert "--quick" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*WITH_A_COMPILER, *STARTING)])
@pytest.mark.usefixtures("no_compiler")
def test_benchmark_without_arguments_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bare `make bench` used to end at the first benchmark that demanded a checkpoint."""
    monkeypatch.chdir(tmp_path)
    check_output(name, quick_run(name, capsys))
    assert {path.name for path in tmp_path.iterdir()} == {"bin"}, "files are left behind"


def test_train_benchmark_of_one_process_runs(capsys: pytest.CaptureFixture[str]) -> None:
    check_output("train", quick_run("train", capsys, "--processes", "1"))


@pytest.mark.usefixtures("no_compiler")
def test_plan_benchmark_beside_a_busy_process_tells_the_slowdown(capsys: pytest.CaptureFixture[str]) -> None:
    before = psutil.Process().children()
    output = quick_run("plan", capsys, "--busy", "1")
    check_output("plan", output)
    for entry in json.loads(output.splitlines()[-1])["results"]:
        assert entry["slowdown"] == pytest.approx(entry["busy_ms"] / entry["fast_ms"])
    assert set(psutil.Process().children()) <= set(before)


@pytest.mark.usefixtures("no_compiler")
def test_train_benchmark_of_learning_online_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    output = quick_run("train", capsys, "--online")
    check_output("train", output)
    step, shared, save = json.loads(output.splitlines()[-1])["results"]
    parts = sum(step[f"{part}_ms"] for part in ("acting", "environment", "updating"))
    assert 0 < step["fast_ms"] < 100 * parts
    assert step["overhead"] == pytest.approx(step["fast_ms"] / parts - 1)
    assert shared["name"] == "3 tasks share a body"
    assert save["name"] == "a save, 3,000 rows"
    assert {path.name for path in tmp_path.iterdir()} == {"bin"}, "files are left behind"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMPILING, *STARTING])
def test_benchmark_that_compiles_or_starts_processes_runs(name: str) -> None:
    command = [sys.executable, str(REPO / "benchmarks" / f"{name}.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if not done.stdout.startswith("skipped: "):
        check_output(name, done.stdout)


def test_stepping_benchmark_names_a_family_that_is_not_installed_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tdmpc2.envs.registry.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        quick_run("stepping", capsys, "Meta-World", "MyoSuite")
    assert end.value.code == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "Meta-World: left out: Task 'mw-reach' needs Meta-World, which is not installed: run `make setup"
    )
    assert second.startswith("MyoSuite: left out: ")
    assert last == "skipped: none of these families can be played here"


def test_stepping_benchmark_refuses_a_family_that_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        quick_run("stepping", capsys, "Metaworld")
    assert end.value.code == 2
    assert "no family is called Metaworld; there are DMControl, " in capsys.readouterr().err


def test_stepping_benchmark_counts_steps_of_all_environments() -> None:
    times = _harness.Timings({"alone": np.array([2.0, 2.0]), "workers": np.array([1.0, 0.5])})
    assert importlib.import_module("benchmarks.stepping").rates(times, 300) == {
        "alone": 150.0, "workers": 400.0, "speedup": 3.0
    }  # fmt: skip


@pytest.mark.usefixtures("no_compiler")
def test_benchmark_that_lacks_something_is_skipped_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.update.can_fuse", lambda cfg, device: False)
    with pytest.raises(SystemExit) as end:
        quick_run("update", capsys)
    assert end.value.code == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("skipped: there is neither a compiler")
    assert "g++" in line


def test_checkpoint_that_does_not_exist_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"There is no .*absent\.pt"):
        quick_run("latency", capsys, str(tmp_path / "absent.pt"))


@pytest.mark.parametrize("command", [["benchmarks/kernels.py"], ["-m", "benchmarks.kernels"]], ids=["file", "module"])
def test_benchmark_starts_as_file_and_as_module(command: list[str]) -> None:
    """Started as a file or as a module, a benchmark finds its package without PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=REPO, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--rows" in done.stdout


def test_every_benchmark_declares_what_it_costs() -> None:
    assert list(runner.costs()) == NAMES
    costs = runner.costs().values()
    assert all(0 < cost.minutes <= cost.full_minutes and 0 <= cost.disk_gb <= 2 for cost in costs)
    assert sum(cost.minutes for cost in costs if not cost.by_name) <= 16


@pytest.mark.parametrize(("options", "declared"), [([], "minutes"), (["--full"], "full_minutes")])
def test_plan_says_minutes_and_disk_before_anything_runs(
    capsys: pytest.CaptureFixture[str], options: list[str], declared: str
) -> None:
    assert runner.main(["--plan", "data", "update", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    minutes = {name: getattr(runner.costs()[name], declared) for name in ("data", "update")}
    disk = {name: runner.costs()[name].disk_gb for name in minutes}
    assert [line.split() for line in lines[1:3]] == [
        [name, f"{minutes[name]:g}", f"{disk[name]:g}"] for name in minutes
    ]
    assert f"About {round(sum(minutes.values()), 1):g} minutes" in lines[3]


@pytest.mark.parametrize(
    ("passed", "done", "ahead", "said"),
    [(0.0, [], [2.0, 1.0], ""), (6.0, [2.0], [1.0, 1.0], "(about 6 minutes left)"), (0.1, [0.0], [0.0], "")],
)
def test_what_is_left_is_said_at_the_pace_of_this_machine(
    passed: float, done: list[float], ahead: list[float], said: str
) -> None:
    """Two cores without AVX-512 took twice as long as was said beforehand."""
    assert runner.left(passed, done, ahead) == said


def test_runner_goes_on_after_a_failure_and_returns_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = {
        "broken": "raise SystemExit(3)",
        "absent": "print('skipped: no file x.pt')",
        "silent": "print('no JSON')",
        "late": """print('{"results": []}')\nraise SystemExit(1)""",
        "works": """print('{"results": []}')""",
    }
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name, body in bodies.items():
        (folder / f"{name}.py").write_text(f"MINUTES = 1\nFULL_MINUTES = 2\nDISK_GB = 0\n{body}\n")
    monkeypatch.setattr(runner, "_FOLDER", folder)
    monkeypatch.setattr(runner, "_ROOT", tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it may name the real benchmarks
    monkeypatch.chdir(tmp_path)
    assert runner.main(list(bodies)) == 1
    endings = [line.split(", ")[0].split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[-5:]]
    assert endings == [
        ["broken", "failed (exit code 3)"],
        ["absent", "skipped: no file x.pt"],
        ["silent", "failed (exit code 0)"],
        ["late", "failed (exit code 1)"],
        ["works", "done"],
    ]
    assert runner.main(["works", "absent"]) == 0


def test_unknown_benchmark_is_refused_with_the_names_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        runner.main(["plans"])
    assert end.value.code == 2
    assert "no benchmark is called plans; there are collect, " in capsys.readouterr().err


def test_turns_begin_with_another_variant_each() -> None:
    order = []
    variants = {name: lambda name=name: order.append(name) for name in "abc"}
    _harness.take_turns(variants, 2, warm_up=1, prepare={"a": lambda: order.append("-")})
    assert "".join(order) == "-abc" + "bc-a" + "c-ab"


def test_timings_are_per_call_without_warm_up_and_preparation() -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    slow_first = iter([100.0] * 3 + [2.0] * 9)
    times = _harness.take_turns(
        {"plain": lambda: spend(4.0), "fast": lambda: spend(next(slow_first))},
        3,
        warm_up=1,
        calls=3,
        prepare={"fast": lambda: spend(1000.0)},
        clock=lambda: now,
    )
    assert times.seconds["fast"].tolist() == [2.0, 2.0, 2.0]
    assert times.ms("plain") == 4000.0
    assert times.ms("fast") == 2000.0
    assert times.speedup("fast") == 2.0
    assert times.ratio("fast", "plain") == 0.5


def turns_made(
    slow: Iterator[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[int, str]:
    """Let two variants take turns by a simulated clock; return the number of turns and what was printed."""
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(_harness.time, "monotonic", lambda: now)
    variants = {"plain": lambda: spend(1.0), "fast": lambda: spend(next(slow))}
    times = _harness.take_turns(variants, 20, warm_up=1, clock=lambda: now, **options)
    return len(times.seconds["fast"]), capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "options", "turns", "reason"),
    [
        ([2.0], {"limit": 1000}, 5, "every ratio is known to 2%"),
        ([2.0], {"limit": 1000, "least": 8}, 8, "every ratio is known to 2%"),
        ([2.0], {"limit": None}, 20, ""),
        ([1.0, 3.0], {"limit": 1000}, 20, ""),
        ([1.0, 3.0], {"limit": 20}, 7, "they took 22 s"),
        ([1.0, 9.0], {"limit": 5}, 3, "they took 22 s"),
    ],
)
def test_turns_end_once_ratios_are_known_or_time_is_over(
    seconds: list[float], options: dict[str, Any], turns: int, reason: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """All benchmarks together used to take 49 minutes, mostly for turns that changed no digit."""
    made, said = turns_made(itertools.cycle(seconds), capsys, monkeypatch, **options)
    assert made == turns
    assert said == (f"{turns} of 20 turns: {reason}; --full makes all\n" if reason else "")


@pytest.mark.parametrize(
    ("argv", "repeats", "limit"),
    [([], 20, _harness.SECONDS), (["--full"], 50, None), (["--repeats", "20"], 20, None), (["--quick"], 1, None)],
)
def test_turns_may_end_early_only_by_default(argv: list[str], repeats: int, limit: float | None) -> None:
    parser = _harness.make_parser("", repeats=20)
    args = _harness.parse(parser, [*argv, "--threads", "1"], {"repeats": 50})
    assert (args.repeats, args.limit) == (repeats, limit)


def test_ratio_is_the_median_of_the_turns_ratios() -> None:
    times = _harness.Timings({"plain": np.array([1.0, 10.0, 3.0]), "fast": np.array([1.0, 2.0, 1.0])})
    assert times.speedup("fast") == 3.0  # of the medians it would be 3 as well, of the means 3.5
    assert times.ratio("plain", "fast") == 3.0
    assert times.ratio("fast", "plain") == pytest.approx(1 / 3)


def test_wide_table_breaks_names_of_columns_and_never_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """At 80 columns, budgets such as num_samples=256 used to be cut to the same few letters."""
    columns = [(f"a long name of a column {key}", key, "") for key in "abcde"]
    cells = ["num_samples=256", "num_samples=128"]
    _harness.print_table([{"a": cell, "b": 1, "c": 2.5, "e": "x"} for cell in cells], columns)
    output = capsys.readouterr().out
    lines = output.strip().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert [line.split() for line in lines[-2:]] == [[cell, "1", "2.5", "x"] for cell in cells]


def test_student_is_a_trained_one_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "published.pt", tmp_path / "demo.pt"
    monkeypatch.setattr(_inputs, "STUDENTS", (first, second))
    second.touch()
    with _inputs.student(SimpleNamespace(checkpoint=None, quick=False)) as path:
        assert path == second
    first.touch()
    with _inputs.student(SimpleNamespace(checkpoint=None, quick=False)) as path:
        assert path == first
