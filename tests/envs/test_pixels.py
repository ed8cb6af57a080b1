"""Images as observations: frames, their order, and their stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from tdmpc2.config import Config
from tdmpc2.envs import make_env
from tdmpc2.envs.checked import EnvironmentFault
from tdmpc2.envs.pixels import PixelEnv
from tdmpc2.envs.registry import build_env
from tdmpc2.envs.rendering import context_module
from tdmpc2.envs.vector import make_vec_env
from tdmpc2.tasks import lookup
from tests.helpers.toy_envs import STANDS


@pytest.fixture(scope="module")
def images() -> None:
    try:
        context_module()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def env(images: None) -> Iterator[gymnasium.Env]:
    env = PixelEnv(make_env("cup-catch"), size=64, stacked=3)
    yield env
    env.close()


def test_pixel_env_reset_repeats_the_first_frame(env: gymnasium.Env) -> None:
    obs, info = env.reset(seed=1)
    assert obs.dtype == np.uint8
    assert env.observation_space.contains(obs)
    frames = obs.reshape(3, 3, 64, 64)
    assert (frames == frames[0]).all()
    assert len(np.unique(frames)) > 20  # enough colours for a picture
    assert info["state"].shape == (8,)


def test_pixel_env_step_moves_the_frames_up(env: gymnasium.Env) -> None:
    before, _ = env.reset(seed=1)
    observations = [before]
    for _ in range(3):
        observations.append(env.step(np.ones(2, np.float32))[0])
    for older, newer in zip(observations[:-1], observations[1:], strict=True):
        assert (newer[:6] == older[3:]).all()
    assert (observations[-1][6:] != before[6:]).any()


def test_pixel_env_first_observation_is_not_written_over(env: gymnasium.Env) -> None:
    first, _ = env.reset(seed=1)
    copy = first.copy()
    env.step(np.ones(2, np.float32))
    assert (first == copy).all()


def test_pixel_env_frame_is_the_large_picture_in_small(env: gymnasium.Env) -> None:
    obs, _ = env.reset(seed=1)
    large = env.unwrapped.frame(384).reshape(64, 6, 64, 6, 3).mean((1, 3))  # type: ignore[attr-defined]
    assert np.abs(large.transpose(2, 0, 1) - obs[-3:]).mean() < 6


def test_make_env_of_rgb_configuration_gives_images(images: None) -> None:
    env = make_env(Config(task="cup-catch", obs="rgb"))
    obs, _ = env.reset(seed=1)
    again, _ = env.reset(seed=1)
    env.close()
    assert obs.shape == Config(task="cup-catch", obs="rgb").obs_shape
    assert (obs == again).all()


def test_make_vec_env_of_images_plays_side_by_side(images: None) -> None:
    envs = make_vec_env([lookup("cup-catch")] * 2, [1, 2], 8, 2, obs="rgb")
    obs, _ = envs.reset()
    envs.close()
    assert (obs.shape, obs.dtype) == ((2, 9, 64, 64), np.uint8)
    assert (obs[0] != obs[1]).any()


def test_build_env_of_an_own_environment_with_frames_gives_images() -> None:
    env = build_env(STANDS, 1, obs="rgb")
    obs, _ = env.reset(seed=1)
    obs, *_ = env.step(np.zeros(2, np.float32))
    assert [int(frame.max()) // 20 for frame in obs.reshape(3, -1)] == [0, 0, 1]


@pytest.mark.parametrize(("frame", "said"), [
    (lambda self, size: np.full((size, size, 3), 0.5), r"an array \(64, 64, 3\) of float64"),
    (lambda self, size: np.zeros((size, size), np.uint8), r"an array \(64, 64\) of uint8"),
    (lambda self, size: np.zeros((32, 32, 3), np.uint8), r"an array \(32, 32, 3\) of uint8"),
    (lambda self, size: None, "None"),
    (lambda self, size: 1 / 0, "ZeroDivisionError"),
])  # fmt: skip
def test_build_env_of_frames_that_are_no_images_is_an_environment_fault(
    frame: Callable[..., Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of floats between 0 and 1 used to become black pictures silently."""
    monkeypatch.setattr("tests.helpers.toy_envs.ToyEnv.frame", frame)
    with pytest.raises(EnvironmentFault, match=rf"Stands-v0 \(seed 1, step 0\): .*{said}"):
        build_env(STANDS, 1, obs="rgb").reset(seed=1)


def test_build_env_without_images_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"obs=rgb: task 'Pendulum-v1' draws no images: use obs=state, or .* frame\(size\)"
    ):
        build_env("Pendulum-v1", 1, obs="rgb")


def test_config_of_images_of_a_task_set_is_refused() -> None:
    with pytest.raises(ValueError, match="obs=rgb learns one task, and task=mt30 is a set"):
        Config(task="mt30", obs="rgb")
