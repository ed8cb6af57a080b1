"""Learning online from episodes that are too short for a slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tdmpc2.training import learner
from tdmpc2.training.online import train_online
from tests.helpers.online import config
from tests.helpers.runs import rows
from tests.helpers.toy_envs import FALLS, ToyEnv


def test_online_short_episodes_are_stored_counted_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner, "_MOST_SHORT", 6)
    with pytest.raises(
        ValueError, match="None of the last 6 episodes has the 4 steps that a slice takes, nor any other in the buffer"
    ):
        train_online(config(tmp_path, FALLS, episodic=True, horizon=4), None)
    assert capsys.readouterr().out.count("had 3 steps, less than horizon=4: such episodes are stored and counted") == 1


def test_online_run_whose_first_episodes_are_too_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run used to end if its walker fell at once in the first episodes, though later ones were longer."""
    step = ToyEnv.step
    episodes = 0

    def falls_early_at_first(self: ToyEnv, action: Any) -> Any:
        nonlocal episodes
        episodes += self.t == 0
        self.falls_at = 3 if episodes <= 3 else 9
        return step(self, action)

    monkeypatch.setattr(ToyEnv, "step", falls_early_at_first)
    cfg = config(tmp_path, FALLS, episodic=True, horizon=4, eval_freq=0)
    train_online(cfg, None)
    assert rows(cfg.run_dir / "train.csv")[-1]["step"] == cfg.steps
