"""Online runs from a checkpoint that an older version began are found, and go on as they began."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.config import Config
from tdmpc2.play.explorer import Explorer
from tdmpc2.training.online import train_online
from tests.helpers.online import assert_same, interrupt
from tests.helpers.toy_envs import STANDS
from tests.helpers.tuning import file_of_many, tuned


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return file_of_many(tmp_path_factory.mktemp("many"))


def make_older(run_dir: Path) -> None:
    """Remove from a run's record what versions before fine-tuning did not know."""
    path = run_dir / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in record.items() if key not in ("freeze", "bc_coef")}))


def act_as_older(patch: pytest.MonkeyPatch) -> None:
    """Make random actions uniform, whatever the run starts from, as older versions did."""
    act = Explorer.act
    patch.setattr(Explorer, "act", lambda self, step, random, prior: act(self, step, random=random))


def stop(cfg: Config, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, step, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit):
            train_online(cfg, None)


def test_older_run_stopped_in_its_seed_steps_goes_on_with_random_actions(tmp_path: Path, many: Path) -> None:
    """Such a run used to go on with the policy of its checkpoint, as neither an older nor a new run does.

    It is stopped twice: the first start of this version completes its record, which must not make a new run of it.
    """
    with pytest.MonkeyPatch.context() as patch:
        act_as_older(patch)
        straight = train_online(tuned(tmp_path / "straight", many, steps=30), None).parent
        cfg = tuned(tmp_path, many, steps=30)
        stop(cfg, 8)
    make_older(cfg.run_dir)
    stop(cfg, 14)
    train_online(cfg, None)
    assert_same(straight, cfg.run_dir)
    assert json.loads((cfg.run_dir / "run.json").read_text())["random_seed_steps"] is True


def test_run_of_this_version_says_nothing_of_random_seed_steps(tmp_path: Path, many: Path) -> None:
    cfg = tuned(tmp_path, many, steps=6)
    train_online(cfg, None)
    train_online(cfg.replace(steps=8), None)
    assert "random_seed_steps" not in json.loads((cfg.run_dir / "run.json").read_text())


@pytest.mark.parametrize(("changes", "found"), [
    ({}, True), ({"tasks": None}, False), ({"checkpoint": "other.pt"}, False), ({"mode": "offline"}, False),
])  # fmt: skip
def test_run_of_one_task_that_lies_under_the_sets_name_is_found(
    tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], found: bool
) -> None:
    """Directories used to be named after the task set, but such a directory may also hold another run."""
    monkeypatch.chdir(tmp_path)
    cfg = tuned(tmp_path, many).replace(work_dir=None, exp_name="e")
    own, older = cfg.run_dir, Path("logs/mt30/1/e")
    assert own.parts[1].startswith(STANDS.partition(":")[0])
    older.mkdir(parents=True)
    (older / "run.json").write_text(json.dumps({**cfg.to_dict(), **changes}))
    assert cfg.run_dir == (older if found else own)
    own.mkdir(parents=True)
    (own / "run.json").write_text("{}")
    assert cfg.run_dir == own, "the run goes on where it was last"
