"""Environments of users: that close badly, change under a checkpoint, have the old interface, or tell odd things."""

from __future__ import annotations

import gc
import logging
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, parse_cfg
from tdmpc2.envs.multitask import MultiTaskEnv
from tdmpc2.envs.registry import build_env
from tdmpc2.envs.stepping import EachAlone, Played
from tdmpc2.envs.task_sets import own_set
from tdmpc2.envs.vector import EnvPool, make_vec_env
from tdmpc2.envs.workers import Workers, WorkerVecEnv
from tdmpc2.envs.wrappers import OldGymEnv, frame_rate
from tdmpc2.export.card import environment_facts
from tdmpc2.play.evaluation import evaluate
from tdmpc2.tasks import TASKS
from tests.helpers.playing import SMALL_AGENT

#: Names of what was opened and closed, in order.
LOG: list[str] = []


class Logged(gymnasium.Env[Any, Any]):
    """An environment whose close() may be called once, as that of a client of a simulator."""

    def __init__(self, size: int = 3, actions: int = 2, **keys: Any) -> None:
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space = Box(-1, 1, (actions,), np.float64)
        self.render_mode, self.keys, self.client = None, keys, "open"
        LOG.append("open")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        obs = np.zeros(self.observation_space.shape or ())
        return obs if self.keys.get("old") else (obs, {})

    def step(self, action: Any) -> Any:
        if self.keys.get("raises"):
            raise ConnectionError("the simulator is gone")
        obs = np.zeros(self.observation_space.shape or ())
        return obs, 1.0, False, False, {"task_rewards": [1.0, None]}

    def close(self) -> None:
        LOG.append("close")
        del self.client
        if self.keys.get("raises"):
            raise RuntimeError("the socket is closed already")


class Wide(Logged):
    """An environment whose actions are from -5 to 5."""

    def __init__(self, **keys: Any) -> None:
        super().__init__(**keys)
        self.action_space = Box(-5, 5, (2,), np.float32)


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    LOG.clear()
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium, "registry", gymnasium.envs.registration.registry)
    return registered()


def registered(limit: int = 5, **keys: Any) -> str:
    gymnasium.envs.registration.registry.pop("Logged-v0", None)
    gymnasium.register("Logged-v0", Logged, max_episode_steps=limit, kwargs=keys, disable_env_checker=True)
    return "Logged-v0"


def agent(name: str) -> TDMPC2:
    return TDMPC2(parse_cfg({"task": name, "mpc": False, "eval_episodes": 2, **SMALL_AGENT}))


def test_agent_of_an_environment_that_has_changed_does_not_play(name: str) -> None:
    """Fewer observed numbers were padded and more actions cut, without a word."""
    own = agent(name)
    evaluate(own, quiet=True)
    for size, actions in ((2, 2), (3, 1)):
        registered(size=size, actions=actions)
        what = f"Logged-v0 has {size} observed numbers and {actions} actions here, but 3 and 2 where it was learned"
        with pytest.raises(ValueError, match=what):
            evaluate(own, quiet=True)
        several = MultiTaskEnv((own.cfg.task_specs[0], TASKS["cup-catch"]), 1)
        with pytest.raises(ValueError, match=what):
            several.reset(options={"task": name})


@pytest.mark.parametrize(("limit", "counts"), [(50, 5), (3, 3)])
def test_limit_that_has_changed_is_said(name: str, caplog: pytest.LogCaptureFixture, limit: int, counts: int) -> None:
    own = agent(name)
    registered(limit=limit)
    logger = logging.getLogger("tdmpc2")
    logger.addHandler(caplog.handler)
    try:
        result = evaluate(own, quiet=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert result.tasks[0].returns == (counts, counts)
    said = (
        f"Logged-v0 has {limit} steps an episode here, and 5 where it was learned: episodes end at the smaller number"
    )
    assert said in caplog.messages


def test_environments_of_a_pool_are_closed_once(name: str) -> None:
    """Gymnasium closed them as well, when the batch that they had played was forgotten."""
    spec = parse_cfg({"task": name, **SMALL_AGENT}).task_specs[0]
    LOG.clear()
    with EnvPool(3, 2) as pool:
        pool.make([spec, spec]).reset(seed=[1, 2])
        gc.collect()
        assert LOG == ["open"] * 2
    assert LOG == ["open"] * 2 + ["close"] * 2


@pytest.mark.parametrize("kind", ["alone", "build", "pool"])
def test_environments_of_a_worker_are_closed_with_it(tmp_path: Any, kind: str) -> None:
    """A simulator that they had started went on for ever."""
    log = tmp_path / "log"
    module = tmp_path / "closes_in_a_worker.py"
    module.write_text(
        "import gymnasium\nfrom tests.helpers.toy_envs import ToyEnv\n"
        f"class Closing(ToyEnv):\n    def close(self):\n        open({str(log)!r}, 'a').write('closed ')\n"
        "gymnasium.register('Closing-v0', Closing, max_episode_steps=3)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        task = "closes_in_a_worker:Closing-v0"
        spec = Config(
            **{**SMALL_AGENT, "task": task, "task_specs": (parse_cfg({"task": task}).task_specs[0],)}
        ).task_specs[0]
        log.write_text("")
        with Workers(1) as workers:
            workers.prepare([task])
            if kind == "alone":
                workers._all[0].ask("alone", [Played(0, task, 1), Played(1, task, 2)], 4, 2, "state")
            elif kind == "build":
                WorkerVecEnv(workers, 2).build([spec] * 2, [1, 2], 4, 2)
            else:
                WorkerVecEnv(workers, 2).pool([spec] * 2, 4, 2)
    assert log.read_text() == "closed closed "


def test_error_of_close_does_not_hide_the_fault(name: str, caplog: pytest.LogCaptureFixture) -> None:
    own = agent(name)
    registered(raises=True)
    logger = logging.getLogger("tdmpc2")
    logger.addHandler(caplog.handler)
    try:
        with pytest.raises(ValueError, match="raised ConnectionError: the simulator is gone"):
            evaluate(own, quiet=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert any("close() raised RuntimeError: the socket is closed already" in line for line in caplog.messages)


@pytest.mark.parametrize("together", [False, True])
def test_environments_that_were_built_are_closed_where_one_fails(
    name: str, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    spec = parse_cfg({"task": name, **SMALL_AGENT}).task_specs[0]
    LOG.clear()
    real, built = Logged.__init__, []

    def limited(self: Logged, *args: Any, **keys: Any) -> None:
        if len(built) == 2:
            raise RuntimeError("no more licences")
        built.append(self)
        real(self, *args, **keys)

    monkeypatch.setattr(Logged, "__init__", limited)
    played = [Played(i, name, i) for i in range(3)]
    alone: list[Any] = [EachAlone, played, 3, 2, "state"]
    build, *args = [make_vec_env, [spec] * 3, [1, 2, 3], 3, 2] if together else alone
    with pytest.raises(ValueError, match="no more licences"):
        build(*args)
    assert LOG == ["open"] * 2 + ["close"] * 2


def test_task_rewards_of_a_users_own_are_let_be(name: str) -> None:
    env = build_env(name, 1)
    env.reset(seed=1)
    assert env.step(np.zeros(2, np.float32))[1] == 1.0
    env.close()


def test_environment_with_the_old_interface_is_told_how_to_be_wrapped(name: str) -> None:
    registered(old=True)
    env = build_env(name, 1)
    with pytest.raises(ValueError, match=r"values to unpack .*reset\(\) must return \(obs, info\).*OldGymEnv"):
        env.reset(seed=1)


def test_old_environment_keeps_its_metadata() -> None:
    class Old:
        metadata = {"success_score": True, "video.frames_per_second": 30, "render_fps": 30}  # noqa: RUF012
        observation_space = action_space = Box(-1, 1, (2,))

    wrapped = OldGymEnv(Old())
    assert wrapped.metadata["success_score"] is True
    assert frame_rate(wrapped) == 30


def test_exported_actuators_are_those_that_gymnasium_make_shows(name: str) -> None:
    """An environment that scales its actions itself got them scaled twice from an exported file's control loop."""
    limits = {"min_action": -1.0, "max_action": 1.0}
    gymnasium.register(
        "Scaled-v0", lambda **keys: gymnasium.wrappers.RescaleAction(Wide(**keys), **limits), max_episode_steps=3
    )
    facts = environment_facts("Scaled-v0")
    assert facts is not None
    assert [(entry["low"], entry["high"]) for entry in facts["actuators"]] == [(-1, 1)] * 2
    gymnasium.register("Wide-v0", Wide, max_episode_steps=3)
    facts = environment_facts("Wide-v0")
    assert facts is not None
    assert [(entry["low"], entry["high"]) for entry in facts["actuators"]] == [(-5, 5)] * 2


def test_set_with_two_names_of_one_task_is_refused(tmp_path: Any) -> None:
    file = tmp_path / "two.yaml"
    file.write_text("tasks: [cup-catch, ball_in_cup-catch, walker-walk]")
    with pytest.raises(ValueError, match="has the task cup-catch twice, as 'cup-catch' and 'ball_in_cup-catch'"):
        parse_cfg({"task": str(file)})
    assert own_set(str(file)) is not None
