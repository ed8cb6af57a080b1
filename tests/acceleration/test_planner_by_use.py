"""Ways of planning that a loaded agent chooses while it plans."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch

from tdmpc2.acceleration import fast_planner
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tests.helpers.cpu_kernels import needs_library

MISSING = "this processor is a toaster"


@pytest.fixture
def source(tiny_cfg: Config) -> dict[str, Any]:
    """Return the content of a file of an agent of one task."""
    cfg = tiny_cfg.replace(task="cartpole-balance")
    return {"model": TDMPC2(cfg).model.state_dict(), "config": cfg.to_dict()}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hide the kernels, note what is compiled instead of compiling, and let compiling pay after three plans."""
    names: list[str] = []

    def compile_quickly(function: Any, **_: Any) -> Any:
        names.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", compile_quickly)
    monkeypatch.setattr(fast_planner, "WORTH_COMPILING", 3)
    monkeypatch.setattr(fast_planner, "can_compile", lambda device: True)
    monkeypatch.setattr("tdmpc2.acceleration.cpu.library._load", lambda: (None, MISSING))
    return names


def plan(agent: TDMPC2, times: int, num_envs: int = 1) -> str:
    for _ in range(times):
        agent.act(torch.zeros(num_envs, agent.cfg.obs_dim), t0=True)
    return agent.planner.kind


def test_load_agent_compiles_after_enough_plans_and_says_so_once(
    source: dict[str, Any], compiled: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    agent = load_agent(source, device="cpu")
    assert plan(agent, 3) == "plain"
    (line,) = caplog.messages
    assert line.startswith(f"The CPU kernels are not available: {MISSING}. Planning plainly")
    assert "compiling the planner after 3 plans" in line
    assert plan(agent, 5) == "compiled"
    assert compiled == ["iteration", "policy_rollout"]
    assert len(caplog.messages) == 2
    assert caplog.messages[1].startswith("Compiling the planner")


def test_load_agent_counts_plans_for_each_number_of_environments(source: dict[str, Any], compiled: list[str]) -> None:
    """A planner is compiled for one number of environments, so plans for another number do not count."""
    agent = load_agent(source, device="cpu")
    assert plan(agent, 3, num_envs=1) == "plain"
    assert plan(agent, 3, num_envs=2) == "plain"
    assert plan(agent, 1, num_envs=2) == "compiled"
    assert agent.planner._by_use(agent.planner._plans, 5) is fast_planner.planner.plan  # type: ignore[arg-type]


@pytest.mark.parametrize(("wanted", "kind"), [(True, "compiled"), ("true", "compiled"), (False, "plain")])
def test_load_agent_obeys_compile_at_the_first_plan(
    source: dict[str, Any], compiled: list[str], caplog: pytest.LogCaptureFixture, wanted: Any, kind: str
) -> None:
    agent = load_agent(source, device="cpu", compile=wanted)
    assert not compiled
    assert plan(agent, 1) == kind
    assert len(caplog.messages) == (kind == "compiled")
    assert plan(agent, 9) == kind


def test_load_agent_quiet_says_nothing(
    source: dict[str, Any], compiled: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert plan(load_agent(source, device="cpu", quiet=True), 9) == "compiled"
    assert not caplog.messages


def test_load_agent_without_compiler_says_what_is_missing(
    source: dict[str, Any], compiled: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_planner, "can_compile", lambda device: False)
    assert plan(load_agent(source, device="cpu"), 9) == "plain"
    (line,) = caplog.messages
    assert MISSING in line
    assert "install g++" in line


def test_load_agent_says_where_torch_has_more_threads_than_the_container(
    source: dict[str, Any], compiled: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tdmpc2.support.runtime.quota_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    plan(load_agent(source, device="cpu"), 2)
    assert caplog.messages[0].startswith("torch uses 64 threads where the CPU quota of this container is 2")
    assert len(caplog.messages) == 2


def test_load_agent_takes_the_kernels_where_there_are_any(
    source: dict[str, Any], compiled: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's first snippet used to plan in the slowest way."""

    class Kernels:
        def __init__(self, model: object, products: object) -> None:
            self.functions, self.outdated, self.encodes = dict, lambda: False, False

    monkeypatch.setattr(fast_planner, "PackedNetworks", Kernels)
    with caplog.at_level(logging.INFO, "tdmpc2"):
        assert plan(load_agent(source, device="cpu"), 9) == "kernels"
    assert caplog.messages == ["Planning with the CPU kernels"]
    assert not compiled


def test_compile_planner_decides_anew_for_a_known_number_of_plans(source: dict[str, Any], compiled: list[str]) -> None:
    agent = load_agent(source, device="cpu")
    assert agent.compile_planner(2) == ""
    assert plan(agent, 9) == "plain"


@pytest.mark.parametrize("before", [0, 2, 5])
def test_a_player_with_a_budget_of_its_own_plans_as_its_agent(
    source: dict[str, Any], compiled: list[str], before: int
) -> None:
    """It planned plainly whatever the agent had chosen, and took several times as long."""
    agent = load_agent(source, device="cpu", quiet=True)
    plan(agent, before)
    player = agent.player(num_samples=8, num_elites=4)
    for _ in range(9):
        player.act(torch.zeros(1, agent.cfg.obs_dim), t0=True)
    assert player._planner is not agent.planner
    assert player._planner.kind == "compiled"


@pytest.mark.parametrize("wanted", [False, None])
def test_a_player_with_a_budget_of_its_own_plans_plainly_as_its_agent(
    source: dict[str, Any], compiled: list[str], wanted: bool | None
) -> None:
    """So does one of an agent that trains: its plans must not depend on how many there were."""
    agent = TDMPC2(Config(**source["config"])) if wanted is None else load_agent(source, device="cpu", compile=wanted)
    player = agent.player(num_samples=8, num_elites=4)
    for _ in range(9):
        player.act(torch.zeros(1, agent.cfg.obs_dim), t0=True)
    assert player._planner.kind == "plain"


@needs_library
def test_a_player_with_a_budget_of_its_own_takes_the_kernels(source: dict[str, Any]) -> None:
    agent = load_agent(source, device="cpu", quiet=True)
    for _ in range(2):  # before the agent's choice, and after it
        player = agent.player(num_samples=8, num_elites=4)
        player.act(torch.zeros(1, agent.cfg.obs_dim), t0=True)
        assert player._planner.kind == "kernels"
        agent.compile_planner()


def test_a_copied_agent_goes_on_choosing_by_use(source: dict[str, Any], compiled: list[str]) -> None:
    agent = load_agent(source, device="cpu")
    plan(agent, 2)
    other = copy.deepcopy(agent.planner)
    assert other.kind == "plain"
    assert other._undecided == "auto"


def test_a_copy_of_a_quiet_agent_is_quiet(
    source: dict[str, Any], compiled: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    other = copy.deepcopy(load_agent(source, device="cpu", quiet=True))
    assert plan(other, 9) == "compiled"
    assert not caplog.messages


@pytest.mark.parametrize(
    ("keys", "asked"),
    [({}, True), ({"mpc": False}, True), ({"compile": False}, False), ({"simnorm_dim": 32}, False)],
)
def test_load_agent_goes_by_the_kernels_speed_only_where_it_will_use_them(
    source: dict[str, Any], monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], asked: bool
) -> None:
    """Loading an agent that never uses the kernels used to spend seconds on building and timing them."""
    times: list[int] = []
    monkeypatch.setattr("tdmpc2.precision.kernel_seconds", lambda: times.append(1) or {})
    cfg = Config(**{**source["config"], "simnorm_dim": keys.get("simnorm_dim", 8), "latent_dim": 32})
    state = {name: tensor.bfloat16() for name, tensor in TDMPC2(cfg).model.state_dict().items()}
    load_agent({"model": state, "config": cfg.to_dict()}, device="cpu", quiet=True, **keys)
    assert bool(times) == asked


def test_an_agent_that_was_not_loaded_plans_plainly(tiny_cfg: Config, compiled: list[str]) -> None:
    """The results of a run must not depend on how often it was evaluated before."""
    agent = TDMPC2(tiny_cfg.replace(task="cartpole-balance"))
    assert plan(agent, 9) == "plain"
