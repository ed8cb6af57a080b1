"""Held-out errors where the model and the data have different tasks."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.commands import heldout
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tdmpc2.play.collector import collect
from tdmpc2.studies.heldout import measure, scored_tasks, shared_tasks
from tests.helpers.reference import REPO
from tests.helpers.runs import TINY

DEMO = ("cartpole-balance", "cartpole-swingup", "cheetah-run-backwards", "pendulum-spin")  # those of make demo


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collect an episode of each of the two tasks that the documentation collects for this."""
    path = tmp_path_factory.mktemp("heldout")
    collect(Config(tasks=("cartpole-balance", "pendulum-spin"), episodes_per_task=1, seed=2), None, path)
    return path


def documented_command() -> list[str]:
    """Return the words of the held-out command of docs/training.md, without the interpreter."""
    text = (REPO / "docs" / "training.md").read_text()
    (line,) = re.findall(r"^(?:python -m tdmpc2\.heldout|tdmpc2 heldout) (.+)$", text, re.MULTILINE)
    return shlex.split(line)


def test_documented_command_measures_the_tasks_that_demo_and_data_share(
    two_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The documented command used to be refused, since its data have two of the demo's four tasks."""
    monkeypatch.chdir(tmp_path)
    for name in ("student", "teacher"):
        TDMPC2(Config(**{**TINY, "tasks": DEMO})).save(Path("demo", name, "model.pt"))
    Path("data").mkdir()
    Path("data/heldout").symlink_to(two_tasks)
    heldout.main(documented_command())
    assert "Measured on 2 of 4 tasks of the model: cartpole-balance, pendulum-spin" in capsys.readouterr().out
    found = json.loads(Path("demo/student/heldout.json").read_text())
    assert found["protocol"]["tasks"] == ["cartpole-balance", "pendulum-spin"]
    assert found["errors"]["value_rmse"] == 0  # the same untrained weights


def test_tasks_option_restricts_what_is_measured(
    two_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TDMPC2(Config(**{**TINY, "tasks": DEMO})).save(tmp_path / "model.pt")
    options = ["--data", str(two_tasks), "--batches", "1", "--batch-size", "4", "--device", "cpu"]
    heldout.main([str(tmp_path / "model.pt"), *options, "--tasks", "pendulum-spin"])
    assert "Measured on 1 of 4 tasks of the model: pendulum-spin" in capsys.readouterr().out


def test_pattern_matches_tasks_that_model_and_data_have(two_tasks: Path, tmp_path: Path) -> None:
    """No episodes of cartpole-swingup are there, nor does anybody name it."""
    cfg = Config(**{**TINY, "tasks": DEMO})
    assert shared_tasks(cfg, str(two_tasks), ("cartpole-*",)) == ("cartpole-balance",)
    TDMPC2(cfg).save(tmp_path / "model.pt")
    assert load_agent(tmp_path / "model.pt", tasks=["pendulum-*", "cart*"]).cfg.tasks == (
        "pendulum-swingup", "cartpole-balance", "cartpole-balance-sparse", "cartpole-swingup",
        "cartpole-swingup-sparse", "pendulum-spin",
    )  # fmt: skip


def test_tasks_option_is_compared_with_the_task_of_a_single_task_checkpoint(two_tasks: Path, tmp_path: Path) -> None:
    """A single-task checkpoint used to be measured on its own task, whatever tasks were asked for."""
    TDMPC2(Config(**{**TINY, "tasks": None, "task": "pendulum-spin"})).save(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="the model has no task 'cartpole-balance'"):
        measure([tmp_path / "model.pt"], str(two_tasks), tasks=("cartpole-balance",), device="cpu")


@pytest.mark.parametrize(
    ("tasks", "wanted", "message"),
    [
        (DEMO, ("pendulum-spinn",), "the model has no task 'pendulum-spinn'. Did you mean 'pendulum-spin'?"),
        (DEMO, ("cartpole-swingup",), "no episodes of cartpole-swingup, only of cartpole-balance, pendulum-spin"),
        (DEMO, ("cheetah-*",), "the pattern 'cheetah-*' matches none of the tasks of model and data"),
        (("walker-run", "cup-spin"), (), "the model knows cup-spin, walker-run: collect episodes of one of its tasks"),
    ],
)
def test_shared_tasks_says_what_is_missing(
    two_tasks: Path, tasks: tuple[str, ...], wanted: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        shared_tasks(Config(**{**TINY, "tasks": tasks}), str(two_tasks), wanted)


def test_scored_tasks_names_the_files_where_their_tasks_differ() -> None:
    results = {
        Path(name): {"protocol": {"tasks": tasks}, "tasks_trained": 2}
        for name, tasks in {"a.pt": ["cup-spin"], "b.pt": ["cup-spin"], "c.pt": ["cup-spin", "walker-run"]}.items()
    }
    assert scored_tasks(results) == [
        "Measured on 1 of 2 tasks of the model (a.pt, b.pt): cup-spin",
        "Measured on 2 tasks of the model (c.pt): cup-spin, walker-run",
    ]
