"""The command that teaches a specialist for each task, at tiny size."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.loading import load_agent
from tests.helpers.online import SMALL
from tests.helpers.scripts import load_script
from tests.helpers.toy_envs import POINT, STANDS

FILE = Path(__file__).resolve().parents[2] / "examples" / "specialists.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script(FILE)


def words(out: Path, *tasks: str, **keys: Any) -> list[str]:
    typed = {**SMALL, "steps": 22, "utd": 0.25, **keys}
    values = [f"{key}={'null' if value is None else value}" for key, value in typed.items()]
    return ["--out", str(out), "--tasks", *tasks, *values]


def test_specialists_leave_a_checkpoint_and_a_store_for_each_task(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second call finds nothing left to do, and one with more steps continues."""
    for steps, text in ((22, "22 steps of each"), (22, "already trained"), (29, "7 steps of each")):
        example.main(words(tmp_path / "out", STANDS, POINT, steps=steps))
        assert text in capsys.readouterr().out
    models = sorted((tmp_path / "out").glob("*/model.pt"))
    assert [load_agent(path, quiet=True).cfg.task for path in models] == sorted((STANDS, POINT))
    stores = sorted(path.name for path in (tmp_path / "out" / "data").iterdir() if not path.name.startswith("."))
    assert stores == sorted(f"{path.parent.name}-{steps}" for path in models for steps in (22, 29))
    assert {len(EpisodeStore.open(tmp_path / "out" / "data" / name).index) for name in stores} == {1, 3, 4}


def test_tasks_of_one_body_are_one_specialist_if_they_share_it(example: ModuleType, tmp_path: Path) -> None:
    names = ["walker-walk", "cheetah-run", "walker-run", "cheetah-jump"]
    cfgs = example.configure(names, tmp_path, {"share_body": True, "steps": 9})
    assert [cfg.tasks for cfg in cfgs] == [("walker-walk", "walker-run"), ("cheetah-run", "cheetah-jump")]
    assert len(example.configure(["mt30"], tmp_path, {"steps": 9})) == 30


@pytest.mark.parametrize("names", [["walker-walk", "cheetah-run"], ["walker-walk", "walker-run", "cup-catch"]])
def test_bodies_with_unequal_numbers_of_tasks_are_refused(
    example: ModuleType, tmp_path: Path, names: list[str]
) -> None:
    """They used to be refused for reasons that named neither bodies nor what to do."""
    with pytest.raises(ValueError, match=r"each body needs as many tasks, at least two; there are walker-walk: \d, "):
        example.configure(names, tmp_path, {"share_body": True, "steps": 9})


def test_specialists_that_ended_no_episode_are_named_with_the_reason(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(words(tmp_path / "out", STANDS, POINT, steps=3))
    said = capsys.readouterr().out.splitlines()[-2:]
    assert all("model.pt, " in line and "has saved no whole episode yet" in line for line in said)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--stepz", "--stepz is no key of train.py"),
        ("work_dir=mine", "work_dir=mine: each specialist has its own, from --tasks and --out: leave it out"),
        ("tasks=[cup-catch]", "tasks=['cup-catch']: each specialist has its own"),
    ],
)
def test_word_that_is_no_key_of_all_specialists_is_refused(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    """Keys that every specialist has a value of its own for are refused, since they would be ignored silently."""
    with pytest.raises(SystemExit) as end:
        example.main(["--out", str(tmp_path / "out"), "--tasks", STANDS, word])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
