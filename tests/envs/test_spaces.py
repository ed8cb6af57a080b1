"""Spaces of Gymnasium environments that cannot be learned from are refused with what to do."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Space, Tuple

from tdmpc2.envs import make_env

VECTOR = Box(-1, 1, (2,), np.float32)


def refusal(monkeypatch: pytest.MonkeyPatch, observation: Space[Any] = VECTOR, action: Space[Any] = VECTOR) -> str:
    """The error of an environment with these spaces."""
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
    """They were flattened to thousands of numbers without a word."""
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
        (Dict({"pose": VECTOR}), "FlattenObservation, with gymnasium.wrappers.FilterObservation"),
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
