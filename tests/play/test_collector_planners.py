"""How the agents of a mixture plan."""

from __future__ import annotations

import pytest
import torch

from tdmpc2.acceleration import fast_planner
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tdmpc2.play import collector
from tdmpc2.play.mixture import policy_from_agent


def test_more_planners_than_are_compiled_stay_plain(
    tiny_cfg: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a continued collection, a planner left to its use would be compiled at another step."""
    monkeypatch.setattr(fast_planner, "WORTH_COMPILING", 1)
    monkeypatch.setattr(torch, "compile", lambda function, **_: pytest.fail("compiled"))
    cfg = tiny_cfg.replace(task="cartpole-balance")
    source = {"model": TDMPC2(cfg).model.state_dict(), "config": cfg.to_dict()}
    agents = [load_agent(source, device="cpu") for _ in range(5)]
    collector._compile(cfg, [policy_from_agent(agent) for agent in agents], [])
    for agent in agents:
        for _ in range(3):
            agent.act(torch.zeros(cfg.obs_dim), t0=True)
    assert {agent.planner.kind for agent in agents} == {"plain"}
    assert "at most 4 checkpoints" in capsys.readouterr().out
