"""Offline training on episodes that differ in length and may terminate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.commands.data import main as data_command
from tdmpc2.config import Config, parse_cfg
from tdmpc2.data.batch import Batch
from tdmpc2.data.tools.convert import to_store
from tdmpc2.training.offline import train
from tests.helpers.playing import SMALL_AGENT
from tests.helpers.runs import equal, rows, weights
from tests.helpers.toy_envs import FALLS
from tests.helpers.unequal import ENDS, write_logs

pytestmark = pytest.mark.usefixtures("own_folder")
RUN: dict[str, Any] = {
    **SMALL_AGENT, "num_q": 2, "horizon": 2, "steps": 6, "log_freq": 2, "batch_size": 16, "eval_freq": 0,
    "num_threads": 1, "compile": "false",
}  # fmt: skip


def config(directory: Path, data_dir: Path, **keys: Any) -> Config:
    return parse_cfg(
        {**RUN, "task": FALLS, "episodic": True, "data_dir": str(data_dir), "work_dir": str(directory / "run"), **keys}
    )


@pytest.mark.parametrize("form", ["chunk files", "store", "store on disk"])
def test_train_learns_from_terminations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Chunk files, a store and a store on disk of the same episodes give the same slices and weights."""
    chunks = write_logs(tmp_path / "chunks")
    seen: list[Batch] = []
    update = TDMPC2.update
    monkeypatch.setattr(TDMPC2, "update", lambda self, batch: (seen.append(batch), update(self, batch))[1])
    train(config(tmp_path / "first", chunks), None)
    data_dir = chunks if form == "chunk files" else to_store([str(chunks)], tmp_path / "store").path
    cfg = config(tmp_path / "second", data_dir, data_device="disk" if form == "store on disk" else "cpu")
    train(cfg, None)
    assert equal(tmp_path / "first/run/model.pt", cfg.run_dir / "model.pt")
    ends = torch.cat([batch.terminated for batch in seen if batch.terminated is not None], 1)[..., 0]
    assert ends[-1].any()
    assert not ends[:-1].any()  # a slice goes no further than the step that terminated
    assert "_termination.2.weight" in weights(cfg.run_dir / "model.pt")
    assert "termination_loss" in rows(cfg.run_dir / "train.csv")[0]
    short = f"1 of {len(ENDS)} episodes have less than horizon=2 steps: none is drawn"
    assert short in (cfg.run_dir / "train.log").read_text()


REFUSED: dict[str, tuple[dict[str, Any], tuple[tuple[int, bool], ...], str]] = {
    "not episodic": ({"episodic": False}, ENDS, "3 episodes terminated, .*episodic=false.*: set episodic=true"),
    "none terminated": ({}, ((4, False), (9, False)), "none of the stored episodes terminated: set episodic=false"),
    "full length": ({}, ((9, False),), "none of the stored episodes terminated: set episodic=false"),
    "cache": ({"distillation_cache": "full"}, ENDS, "distillation_cache=full is for episodes of one length"),
    "all short": ({"horizon": 9}, ENDS[:1], r"None of the 1 episodes in .* has the 9 steps .*: set horizon lower"),
}


@pytest.mark.parametrize("form", ["chunk files", "store"])
@pytest.mark.parametrize("case", REFUSED)
def test_train_on_episodes_that_do_not_fit_is_refused(tmp_path: Path, case: str, form: str) -> None:
    keys, ends, message = REFUSED[case]
    data_dir = write_logs(tmp_path / "chunks", ends=ends)
    if form == "store":
        data_dir = to_store([str(data_dir)], tmp_path / "store").path
    cfg = config(tmp_path, data_dir, **keys)
    with pytest.raises(ValueError, match=message):
        train(cfg, None)
    assert not cfg.run_dir.exists() or not any(cfg.run_dir.glob("*.pt"))


def test_train_on_episodes_cut_short_needs_no_termination_head(tmp_path: Path) -> None:
    """Recordings may stop at any moment without a termination."""
    data_dir = write_logs(tmp_path / "chunks", ends=((4, False), (9, False), (3, False)))
    cfg = config(tmp_path, data_dir, episodic=False)
    train(cfg, None)
    assert "_termination.2.weight" not in weights(cfg.run_dir / "model.pt")


def test_teacher_that_is_asked_in_every_update_needs_no_equal_lengths(tmp_path: Path) -> None:
    data_dir = write_logs(tmp_path / "chunks")
    teacher = train(config(tmp_path / "teacher", data_dir), None)
    cfg = config(tmp_path / "student", data_dir, seed=2)
    train(cfg, Config(checkpoint=str(teacher), task=FALLS, task_specs=cfg.task_specs))
    assert rows(cfg.run_dir / "train.csv")[0]["distillation_loss"] > 0


def test_inspect_tells_lengths_and_terminations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_dir = write_logs(tmp_path / "chunks")
    data_command(["inspect", str(data_dir)])
    out = capsys.readouterr().out
    assert "1 to 9 steps, 4.5 on average; 3 episodes terminated" in out
    assert "reward" in out
    data_command(["convert", str(data_dir), str(tmp_path / "store")])
    data_command(["inspect", str(tmp_path / "store")])
    assert "1 to 9 steps, 4.5 on average; 3 episodes terminated" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        data_command(["verify", str(tmp_path / "store")])
    assert ended.value.code == 0
    assert "5 files, 6 episodes: good" in capsys.readouterr().out
