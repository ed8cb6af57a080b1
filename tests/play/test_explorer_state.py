"""The saved state of the environments of a run that learns online."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.play.explorer import Explorer
from tests.helpers.online import config
from tests.helpers.toy_envs import STANDS_FOR


def test_ended_episode_of_another_task_is_refused(tmp_path: Path) -> None:
    """The state of another run used to fill the buffer with task ids that mean something else here, or nothing."""
    cfg = config(tmp_path)
    with Explorer(cfg, TDMPC2(cfg)) as explorer:
        explorer.begin()
        for step in range(1, STANDS_FOR + 1):
            explorer.step(explorer.act(step, random=True))
        state = dict(explorer.state())
        explorer.load_state(state)
        (episode,) = state["ended"]
        with pytest.raises(ValueError, match=r"state\.pt: explorer: an episode is of task id 3, none of this run's"):
            explorer.load_state({**state, "ended": [{**episode, "task_id": 3}]})
