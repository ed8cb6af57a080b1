"""Environments of users, with the new and the old gym API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict, Discrete

from tdmpc2.envs import make_env, task_spec
from tdmpc2.envs.gymnasium_env import make
from tdmpc2.envs.registry import score_rule
from tdmpc2.envs.wrappers import OldGymEnv
from tdmpc2.tasks import TaskSpec
from tests.helpers.toy_envs import Counter


class _Choice(Counter):
    action_space = Discrete(2)


class _Unbounded(Counter):
    action_space = Box(-np.inf, np.inf, (1,), np.float32)


class _Broken(Counter):
    def __init__(self) -> None:
        raise KeyError("missing asset")


class _OldCounter:
    """An environment with the old gym API."""

    observation_space = Box(0, 10, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)
    steps = seeded = closed = 0

    def seed(self, seed: int) -> None:
        self.seeded = seed

    def reset(self) -> np.ndarray:
        self.steps = 0
        return np.zeros(2, np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict]:
        self.steps += 1
        return np.full(2, self.steps, np.float32), 1.0, self.steps == 3, {"TimeLimit.truncated": self.seeded == 2}

    def render(self, mode: str) -> str:
        return mode

    def close(self) -> None:
        self.closed = 1


def test_make_env_of_gymnasium_id_works() -> None:
    assert task_spec("Pendulum-v1") == TaskSpec("Pendulum-v1", 3, 1, episode_length=200)
    assert task_spec("gymnasium:Pendulum-v1").episode_length == 200
    ours, plain = make_env("Pendulum-v1", seed=5), gymnasium.make("Pendulum-v1")
    np.testing.assert_array_equal(ours.reset()[0], plain.reset(seed=5)[0])
    obs, reward, *_, info = ours.step(np.array([0.25], np.float32))
    expected_obs, expected_reward, *_ = plain.step(np.array([0.5], np.float32))
    np.testing.assert_allclose(obs, expected_obs, atol=1e-6)
    assert reward == pytest.approx(float(expected_reward))
    assert info["success"] == 0.0
    np.testing.assert_array_equal(ours.reset()[0], plain.reset()[0])
    assert ours.action_space == Box(-1, 1, (1,), np.float32)
    np.testing.assert_array_equal(ours.action_space.sample(), Box(-1, 1, (1,), np.float32, seed=5).sample())


def test_success_that_is_not_decided_counts_as_none() -> None:
    """A run that met NaN there saved a state which it then refused to continue from."""

    class Undecided(Counter):
        def step(self, action: Any) -> Any:
            return (*super().step(action)[:4], {"success": float("nan")})

    gymnasium.register("Undecided-v0", Undecided, max_episode_steps=20)
    env = make_env("Undecided-v0", seed=1)
    env.reset()
    assert env.step(np.zeros(1, np.float32))[4]["success"] == 0.0


def test_make_env_of_own_environment_flattens_and_scales() -> None:
    gymnasium.register("Counter-v0", Counter, max_episode_steps=20)
    assert task_spec("Counter-v0") == TaskSpec("Counter-v0", 6, 1, episode_length=20)
    env = make_env("Counter-v0", seed=1)
    obs, _ = env.reset()
    assert obs.dtype == np.float32
    assert obs.shape == (6,)
    for action, native in [(-1, -2), (0, 2), (1, 6)]:
        _, reward, *_, info = env.step(np.array([action], np.float32))
        assert reward == pytest.approx(native)
    assert info["success"] == 1.0


@pytest.mark.parametrize(
    ("kind", "limit", "error", "message"),
    [
        (_Choice, 10, ValueError, "action space of 'Wrong-v0' is Discrete"),
        (_Unbounded, 10, ValueError, "finite bounds"),
        (Counter, None, ValueError, "no time limit.*max_episode_steps"),
        (_Broken, 10, ValueError, "Wrong-v0: building the environment raised KeyError: .missing asset. .test_gymn"),
    ],
)
def test_make_env_of_unsuitable_environment_is_refused(
    kind: type, limit: int | None, error: type[Exception], message: str
) -> None:
    gymnasium.register("Wrong-v0", kind, max_episode_steps=limit)
    try:
        with pytest.raises(error, match=message):
            task_spec("Wrong-v0")
    finally:
        del gymnasium.registry["Wrong-v0"]


class _Undrawn(Counter):
    """An environment that was not written to be filmed."""

    def __init__(self) -> None:
        super().__init__()


def test_environment_that_cannot_be_filmed_says_what_it_lacks() -> None:
    gymnasium.register("Undrawn-v0", _Undrawn, max_episode_steps=5)
    try:
        with pytest.raises(ValueError, match=r"raised TypeError.* To be filmed it needs .*render_mode=None.*`render`"):
            make("Undrawn-v0", render_mode="rgb_array")
    finally:
        del gymnasium.registry["Undrawn-v0"]


@pytest.mark.parametrize(
    ("file", "remedy"),
    [(None, "install it, or .*PYTHONPATH=DIRECTORY"), ("beside_me.py", r"type PYTHONPATH=\. before")],
)
def test_make_env_of_missing_module_says_how_python_finds_it(
    file: str | None, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's first command is often typed beside the module's file, where Python does not look for it."""
    monkeypatch.chdir(tmp_path)
    if file:
        (tmp_path / file).touch()
    with pytest.raises(ModuleNotFoundError, match=f"No module named 'beside_me': .*{remedy}"):
        make_env("beside_me:Thing-v0")


def test_make_env_of_module_that_lacks_another_names_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_another.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_package'$"):
        make_env("needs_another:Thing-v0")


def test_old_gym_env_is_translated() -> None:
    old = _OldCounter()
    gymnasium.register("Old-v0", lambda **kwargs: OldGymEnv(old, **kwargs), max_episode_steps=50)
    env = make_env("Old-v0", seed=1, render_mode="rgb_array")
    obs, _ = env.reset()
    assert old.seeded == 1
    np.testing.assert_array_equal(obs, [0, 0])
    assert [env.step(np.zeros(1, np.float32))[2:4] for _ in range(3)] == [(False, False)] * 2 + [(True, False)]
    env.reset(seed=2)
    assert [env.step(np.zeros(1, np.float32))[2:4] for _ in range(3)][-1] == (False, True)
    assert env.unwrapped.render() == "rgb_array"
    env.close()
    assert old.closed
    with pytest.raises(ValueError, match="only Box"):
        OldGymEnv(type("Old", (_OldCounter,), {"action_space": Discrete(2)})())


def test_old_gym_env_without_a_seed_is_reset_all_the_same() -> None:
    class Unseeded(_OldCounter):
        seed: Any = property()  # as if there were none: reading it is an AttributeError

    obs, _ = OldGymEnv(Unseeded()).reset(seed=1)
    np.testing.assert_array_equal(obs, [0, 0])


class _Reach(gymnasium.Env):
    """Reaches after two steps, and says so as Gymnasium-Robotics' Fetch does."""

    observation_space = Dict({"observation": Box(-1, 1, (2,)), "desired_goal": Box(-1, 1, (1,))})
    action_space = Box(-1, 1, (1,), np.float64)
    tells = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observed(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._observed(), -1.0, False, False, {"is_success": float(self.steps > 1)} if self.tells else {}

    def _observed(self) -> Any:
        return {"observation": np.zeros(2, np.float32), "desired_goal": np.zeros(1, np.float32)}


class _Kitchen(_Reach):
    tells = False


@pytest.mark.parametrize(
    ("kind", "package", "by_success"),
    [
        (_Reach, "gymnasium_robotics.envs.fetch", True),
        (_Kitchen, "gymnasium_robotics.envs.franka_kitchen", False),  # of seven tasks, and tells no success
        (_Reach, "mine", False),  # which says by its metadata what it wants
    ],
)
def test_task_of_gymnasium_robotics_that_tells_success_is_scored_by_it(
    kind: type[_Reach], package: str, by_success: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its returns, -1 for each step away from the goal, were the score."""
    monkeypatch.setattr(kind, "__module__", package)
    told = EnvSpec("Told-v0", entry_point=kind, max_episode_steps=5)
    monkeypatch.setitem(gymnasium.registry, told.id, told)
    spec = task_spec("Told-v0")
    assert spec.success_score is by_success
    returns, successes = np.array([-50.0, -2.0]), np.array([0.0, 1.0])
    assert score_rule(spec).score(returns, successes).tolist() == ([0, 100] if by_success else [-50, -2])


def test_fetch_is_scored_by_success() -> None:
    pytest.importorskip("gymnasium_robotics", reason="Gymnasium-Robotics is not installed: make setup EXTRAS=robotics")
    assert task_spec("gymnasium_robotics:FetchReach-v4").success_score
