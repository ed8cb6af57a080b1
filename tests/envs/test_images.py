"""Environments that observe images and numbers: nothing is lost, mixed up or silently flattened."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Space

from tdmpc2.config import parse_cfg
from tdmpc2.envs import make_env, task_spec
from tdmpc2.envs.checked import EnvironmentFault
from tests.helpers.toy_envs import SEES, STANDS, SeeingEnv

ANGLE = Box(-1, 1, (2,), np.float32)
VIEW = Box(0, 255, (40, 40, 3), np.uint8)


def spaces(monkeypatch: pytest.MonkeyPatch, space: Space[Any]) -> None:
    env = type("Env", (gymnasium.Env,), {"observation_space": space, "action_space": Box(-1, 1, (1,), np.float32)})
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    gymnasium.register("Spaces-v0", env, max_episode_steps=10, disable_env_checker=True)


def test_task_spec_counts_numbers_and_images_apart() -> None:
    """Two cameras with three channels and one make one image of four channels; the vectors have five numbers."""
    spec = task_spec(SEES)
    assert (spec.obs_dim, spec.image) == (5, (4, 40, 44))
    assert task_spec(STANDS).image is None
    assert "image" not in task_spec(STANDS).plain()


def test_attributes_of_a_users_environment_are_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with its own attribute image_shape used to be refused as one of images."""
    names = {"image_shape": (84, 84, 3), "observed_image": None, "as_state": "mine"}
    space = {"observation_space": ANGLE, "action_space": Box(-1, 1, (1,), np.float32)}
    env = type("Env", (gymnasium.Env,), {**space, **names, "reset": lambda self, **_: (np.zeros(2, np.float32), {})})
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    gymnasium.register("Named-v0", env, max_episode_steps=10, disable_env_checker=True)
    spec = task_spec("Named-v0")
    assert (spec.obs_dim, spec.image) == (2, None)
    assert make_env("Named-v0", seed=1).reset()[0].shape == (2,)


@pytest.mark.parametrize("obs", ["rgb+state", "rgb"])
def test_images_of_an_environment_are_stacked_beside_its_numbers(obs: str) -> None:
    """Numbers come first, then frames from oldest to newest, with cameras in the order of their keys."""
    cfg = parse_cfg({"task": SEES, "obs": obs})
    env = make_env(cfg, 3)
    seen = env.reset()[0]
    for _ in range(2):
        seen = env.step(np.array([0.25, -0.5], np.float32))[0]
    env.close()
    assert seen.dtype == np.uint8
    assert seen.shape == env.observation_space.shape == cfg.obs_shape
    numbers, images = (seen[:20].view(np.float32), seen[20:]) if obs == "rgb+state" else (None, seen)
    frames = images.reshape(3, 4, 40, 44)
    np.testing.assert_array_equal(frames[:, :, 7, 9], [[5 * t, 10 * t, 20 * t, 200] for t in range(3)])
    assert (frames == frames[:, :, :1, :1]).all()
    if numbers is not None:
        np.testing.assert_array_equal(numbers[:4], np.array([2, 0.25, -0.5, 2], np.float32))


def test_make_env_draws_frames_beside_the_state_where_none_are_observed() -> None:
    cfg = parse_cfg({"task": STANDS, "obs": "rgb+state"})
    env = make_env(cfg, 3)
    obs, _ = env.reset()
    assert obs.shape == cfg.obs_shape == (4 * 4 + 9 * 64 * 64,)
    state = make_env(parse_cfg({"task": STANDS}), 3).reset()[0]
    np.testing.assert_array_equal(obs[:16].view(np.float32), state)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_beside_images_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    monkeypatch.setattr(SeeingEnv, "bad", bad)
    env = make_env(parse_cfg({"task": SEES, "obs": "rgb+state"}), 3)
    with pytest.raises(EnvironmentFault, match=f"entry 4 of the observation is {bad}"):
        env.reset()


def test_image_of_another_shape_than_declared_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = SeeingEnv._observed
    monkeypatch.setattr(SeeingEnv, "_observed", lambda *args: observed(*args) | {"above": np.zeros((9, 9), np.uint8)})
    env = make_env(parse_cfg({"task": SEES, "obs": "rgb+state"}), 3)
    with pytest.raises(EnvironmentFault, match=r"the image.above is \[9, 9\] of uint8, but .* uint8 \[40, 44\]"):
        env.reset()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "obs=state: task '.*Sees-v0' observes images, which are no state: obs=rgb.state learns from them and"),
        ({"obs": "rgb+state", "data_dir": "data"}, "obs=rgb.state learns online: stored episodes hold states"),
        ({"obs": "rgb+state", "task": "mt30"}, "obs=rgb.state learns one task"),
        ({"obs": "rgb+state", "demonstrations": "data"}, "demonstrations=data hold states, no images"),
    ],
)
def test_config_that_would_lose_images_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_cfg({"task": SEES, **keys})


def test_make_env_of_images_by_name_says_how_to_observe_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are refused with the remedy, never flattened and never left out."""
    spaces(monkeypatch, Dict({"angle": ANGLE, "view": VIEW}))
    with pytest.raises(ValueError, match=r"Dict with images \(view\).*obs=rgb\+state learns from all of it"):
        make_env("Spaces-v0")


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (Dict({"a": VIEW, "b": Box(0, 255, (48, 40, 3), np.uint8)}), "different sizes .a 40 x 40, b 48 x 40."),
        (Dict({"angle": ANGLE, "view": Box(0, 255, (32, 40, 3), np.uint8)}), "32 x 40 pixels, .* 39 x 39 at least"),
        (Dict({"angle": ANGLE, "view": Box(0, 1, (64, 64, 3), np.float32)}), "entry view.*have to be uint8"),
        (Dict({"angle": ANGLE, "view": Box(0, 255, (4, 64, 64, 3), np.uint8)}), "entry view.*of one moment"),
    ],
)
def test_images_that_cannot_be_learned_from_are_refused(
    monkeypatch: pytest.MonkeyPatch, space: Space[Any], said: str
) -> None:
    spaces(monkeypatch, space)
    with pytest.raises(ValueError, match=said) as error:
        make_env("Spaces-v0")
    assert "\n" not in str(error.value)


def test_images_alone_are_learned_with_rgb_only(monkeypatch: pytest.MonkeyPatch) -> None:
    spaces(monkeypatch, VIEW)
    assert parse_cfg({"task": "Spaces-v0", "obs": "rgb"}).obs_shape == (9, 40, 40)
    with pytest.raises(ValueError, match=r"obs=rgb\+state: task 'Spaces-v0' observes images and no other numbers"):
        parse_cfg({"task": "Spaces-v0", "obs": "rgb+state"})
