"""Spaces of Gymnasium environments that cannot be learned from are refused with a remedy."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Space, Tuple

from tdmpc2.envs import make_env

VECTOR = Box(-1, 1, (2,), np.float32)


def refusal(monkeypatch: pytest.MonkeyPatch, observation: Space[Any] = VECTOR, action: Space[Any] = VECTOR) -> str:
    """Return the error of an environment with these spaces."""
    env = type("Env", (gymnasium.Env,), {"observation_space": observation, "action_space": action})
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    gymnasium.register("Spaces-v0", env, max_episode_steps=10, disable_env_checker=True)
    with pytest.raises(ValueError, match="space of 'Spaces-v0' is") as error:
        make_env("Spaces-v0")
    return str(error.value)


@pytest.mark.parametrize(
    "space",
    [
        Box(0, 255, (64, 64, 3), np.uint8),
        Box(0, 255, (84, 84), np.uint8),
        Box(0, 255, (4, 84, 84, 3), np.uint8),
        Box(0, 1, (3, 64, 64), np.float32),
    ],
)
def test_images_are_refused_as_states(monkeypatch: pytest.MonkeyPatch, space: Box) -> None:
    """Images used to be flattened silently to thousands of numbers."""
    message = refusal(monkeypatch, observation=space)
    assert "\n" not in message
    assert f"images, Box of shape {space.shape} and type {space.dtype}" in message
    assert "gymnasium.wrappers.FlattenObservation" in message


@pytest.mark.parametrize(
    "space",
    [
        Box(0, 255, (128,), np.uint8),
        Box(-1, 1, (4, 4, 2), np.float32),
        Box(-1, 1, (16, 16), np.float32),
        Box(-1, 1, (3, 3, 3), np.float32),
    ],
)
def test_numbers_of_other_shapes_are_states(monkeypatch: pytest.MonkeyPatch, space: Box) -> None:
    env = type("Env", (gymnasium.Env,), {"observation_space": space, "action_space": VECTOR})
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    gymnasium.register("Spaces-v0", env, max_episode_steps=10, disable_env_checker=True)
    assert make_env("Spaces-v0").observation_space.shape == (np.prod(space.shape),)


def test_flattened_images_are_accepted_if_one_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    spaces = {"observation_space": Box(0, 255, (8, 8, 3), np.uint8), "action_space": VECTOR}
    env = type("Env", (gymnasium.Env,), spaces)
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    gymnasium.register(
        "Spaces-v0", lambda: gymnasium.wrappers.FlattenObservation(env()), max_episode_steps=9, disable_env_checker=True
    )
    assert make_env("Spaces-v0").observation_space.shape == (192,)


@pytest.mark.parametrize(
    ("space", "remedy"),
    [
        (Dict({"pose": VECTOR, "button": Discrete(2)}), "FilterObservation"),
        (Tuple((VECTOR, VECTOR)), "wrap the environment in gymnasium.wrappers.FlattenObservation"),
        (Discrete(5), "FlattenObservation, which makes one-hot vectors"),
        (MultiDiscrete([2, 3]), "FlattenObservation, which makes one-hot vectors"),
        (gymnasium.spaces.Text(3), "gymnasium.ObservationWrapper"),
    ],
)
def test_observations_that_are_no_box_name_space_and_remedy(
    monkeypatch: pytest.MonkeyPatch, space: Space[Any], remedy: str
) -> None:
    message = refusal(monkeypatch, observation=space)
    assert f"is {space}, but must be a Box" in message
    assert remedy in message


@pytest.mark.parametrize(
    ("space", "remedy"),
    [
        (Discrete(5), "is Discrete(5), but must be a Box: TD-MPC2 plans continuous actions. Wrap"),
        (Dict({"arm": VECTOR}), "gymnasium.ActionWrapper"),
        (Box(-1, 1, (2, 2), np.float32), "but must be a vector: wrap the environment in a gymnasium.ActionWrapper"),
        (Box(-np.inf, np.inf, (2,), np.float32), "must have finite bounds: give it some, as gymnasium.wrappers.Tr"),
    ],
)
def test_actions_that_are_no_bounded_vector_name_space_and_remedy(
    monkeypatch: pytest.MonkeyPatch, space: Space[Any], remedy: str
) -> None:
    assert remedy in refusal(monkeypatch, action=space)


class Reach(gymnasium.Env[Any, Any]):
    """An environment with a goal dictionary and a fixed second action; in a ``whole`` one, actions are integers."""

    observation_space = Dict({"desired_goal": Box(0, 9, (1,), np.float64), "arm": Dict({"angle": Box(-1, 1, (2, 1))})})

    def __init__(self, whole: bool) -> None:
        kind = np.int64 if whole else np.float32
        self.action_space = Box(np.array([-2, 3, 0], kind), np.array([2, 3, 10], kind), dtype=kind)  # type: ignore[type-var]

    def reset(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"desired_goal": np.array([7.0]), "arm": {"angle": np.array([[0.25], [0.5]], np.float32)}}, {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.taken = action
        return self.reset()[0], 0.0, False, False, {"is_success": True}


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> gymnasium.Env[Any, Any]:
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    keywords = {"whole": getattr(request, "param", False)}
    gymnasium.register("Reach-v0", Reach, max_episode_steps=10, kwargs=keywords, disable_env_checker=True)
    return make_env("Reach-v0")


def test_dictionary_of_vectors_is_laid_end_to_end_in_the_order_of_its_keys(reach: gymnasium.Env[Any, Any]) -> None:
    """Goal dictionaries of robotics environments used to be refused."""
    obs, _ = reach.reset()
    assert obs.dtype == np.float32
    assert obs.tolist() == [0.25, 0.5, 7.0]


@pytest.mark.parametrize(("reach", "taken"), [(False, [1.0, 3.0, 6.5]), (True, [1, 3, 6])], indirect=["reach"])
def test_action_entry_of_one_value_is_left_out_and_whole_numbers_are_rounded_to(
    reach: gymnasium.Env[Any, Any], taken: list[float]
) -> None:
    """Actions with a fixed entry and actions of whole numbers used to be refused."""
    assert reach.action_space.shape == (2,)
    reach.reset()
    info = reach.step(np.array([0.5, 0.3], np.float32))[4]
    np.testing.assert_allclose(reach.unwrapped.taken, taken, rtol=1e-6)
    assert reach.unwrapped.taken.dtype == reach.unwrapped.action_space.dtype
    assert info["success"] == 1.0


def test_action_without_a_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is nothing to choose" in refusal(monkeypatch, action=Box(1, 1, (2,), np.float32))


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.8), (-0.2, 1.0), (0.1, 1.0), (0.05, 0.3)])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_action_at_its_end_is_within_the_bounds_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, low: float, high: float, kind: type[Any]
) -> None:
    """Rescaled, the ends of [-1, 1] were one bit beyond them, which environments may refuse."""

    class Strict(gymnasium.Env[Any, Any]):
        observation_space, action_space = VECTOR, Box(low, high, (1,), kind)

        def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
            return np.zeros(2, np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            assert self.action_space.contains(action)
            return np.zeros(2, np.float32), float(action[0]), False, False, {}

    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    gymnasium.register("Strict-v0", Strict, max_episode_steps=10, disable_env_checker=True)
    for space in (Strict.action_space, Box(np.array([low, 1], kind), np.array([high, 1], kind), dtype=kind)):
        monkeypatch.setattr(Strict, "action_space", space)  # the second entry can have one value only
        env = make_env("Strict-v0")
        env.reset()
        ends = [env.step(np.array([end], np.float32))[1] for end in (-1, 1)]
        assert ends == pytest.approx([low, high])
