"""The example that compares learning curves of single tasks with public ones, at tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.online import SMALL
from tests.helpers.scripts import load_script
from tests.helpers.toy_envs import POINT, STANDS

FILE = Path(__file__).resolve().parents[2] / "examples" / "learning_curves.py"
KEYS = [f"{key}={'null' if value is None else value}" for key, value in SMALL.items() if key != "steps"]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script(FILE)


def test_curves_are_learned_compared_and_not_learned_again(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example writes a table, every return and a figure; run again, it plays nothing and prints the same."""
    words = [STANDS, POINT, "--steps", "40", "--episodes", "2", "--out", str(tmp_path), *KEYS, "eval_freq=20"]
    example.main(words)
    table = capsys.readouterr().out.strip().splitlines()[-4:]
    assert table == (tmp_path / "learning_curves.md").read_text().splitlines()
    runs = json.loads((tmp_path / "learning_curves.json").read_text())
    assert [(run["task"], run["steps"], len(run["returns"])) for run in runs] == [(STANDS, 40, 2), (POINT, 40, 2)]
    assert (tmp_path / "learning_curves.png").stat().st_size > 5000

    monkeypatch.setattr(example, "evaluate", None)
    example.main(words)
    again = capsys.readouterr().out
    assert again.count("is already trained for 40 steps") == 2
    assert again.strip().splitlines()[-4:] == table

    example.main(["--so-far", STANDS, POINT, "cup-catch", "--out", str(tmp_path)])  # one was not begun
    rows = [line.split(" | ") for line in capsys.readouterr().out.strip().splitlines()[-2:]]
    assert [(row[1], row[3]) for row in rows] == [("40", "2"), ("40", "2")], "the episodes of the finished agents"

    for wrong, message in (
        (["--steps", "20"], "was trained for 40 steps: --steps 40, or another --out"),
        (["steps=20"], "steps= is given by --steps here: leave it out"),
        (["work_dir=x"], "work_dir= is given by --out here"),
    ):
        with pytest.raises(SystemExit):
            example.main([*words, *wrong])
        assert message in capsys.readouterr().err
    with pytest.raises(TypeError, match="NoneType"):  # a planner of its own plays again
        example.main([*words, "num_samples=6"])


def test_return_is_compared_with_seeds_of_others(example: ModuleType) -> None:
    run = example.Learned("cup-catch", 50_000, 2.5, [800.0, 1000.0], [950.0, 850.0], 50_000, None)
    assert run.row()[4:] == ["900.0", "[-370.6, 2170.6]", "-", "900.0 (850 to 950)", "100 %"]
    assert run._replace(public=[], random=12.34).row()[6:] == ["12.3", "-", "-"]


@pytest.mark.parametrize(("obs", "seeds"), [("state", 3), ("rgb", 0)])
def test_run_is_compared_with_public_ones_of_states_alone(
    example: ModuleType, tmp_path: Path, obs: str, seeds: int
) -> None:
    """Learning from images was compared with learning from states, without a word."""
    (tmp_path / "run.json").write_text(json.dumps({"obs": obs, "seed_steps": 20, "steps": 50_000}))
    (tmp_path / "episodes.csv").write_text("step,task,return\n10,cup-catch,1\n20,cup-catch,2\n30,cup-catch,900\n")
    (tmp_path / "speed.csv").write_text("step,wall_seconds\n50000,3600\n")
    run = example._learned(tmp_path, "cup-catch", 50_000, [900.0])
    assert len(run.public) == seeds
    assert run.random == 1.5


def test_so_far_without_runs_says_so(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.main(["--so-far", "--out", str(tmp_path)])
    assert "holds no run of walker-walk, cartpole-swingup" in capsys.readouterr().err


def test_public_curves_are_those_of_the_seven_tasks(example: ModuleType) -> None:
    found = example.curves("tdmpc2", 2 * 50_000)({example.PUBLIC.name: example.PUBLIC})
    assert all(len(found[task]) == 3 for task in example.TASKS)
