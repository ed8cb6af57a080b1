"""Pictures of the simulated tasks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tdmpc2.envs import make_env, register, rendering


def _frame(name: str, steps: int = 0, **state: Any) -> np.ndarray:
    env = make_env(name, seed=1, render_mode="rgb_array")
    env.reset()
    for _ in range(steps):
        env.step(env.action_space.sample())
    with env.unwrapped.physics.reset_context():
        for joint, position in state.items():
            env.unwrapped.physics.named.data.qpos[joint] = position
    image = env.render()
    env.close()
    env.close()
    return image


@pytest.mark.usefixtures("opengl")
def test_render_gives_frames_of_the_state(env: Callable) -> None:
    env("cheetah-run")  # built before without rendering
    image = _frame("cheetah-run")
    assert image.shape == (384, 384, 3)
    assert image.dtype == np.uint8
    assert image.std() > 5
    np.testing.assert_array_equal(image, _frame("cheetah-run"))
    assert (image != _frame("cheetah-run", rooty=1.5)).mean() > 0.01


@pytest.mark.usefixtures("opengl")
@pytest.mark.parametrize(
    ("name", "module", "shape"),
    [
        pytest.param("mw-drawer-close", "metaworld", (384, 384, 3), marks=pytest.mark.slow),
        pytest.param("myo-key-turn", "myosuite", (384, 384, 3), marks=pytest.mark.slow),
        ("mujoco-halfcheetah", "mujoco", (480, 480, 3)),
        ("lunarlander-continuous", "Box2D", (400, 600, 3)),
    ],
)
def test_frame_of_a_task_of_each_family_is_a_picture_of_its_state(
    name: str, module: str, shape: tuple[int, int, int]
) -> None:
    pytest.importorskip(module, reason=f"{module} is not installed: make setup EXTRAS=envs")
    env = make_env(name, seed=1, render_mode="rgb_array")
    env.reset(seed=1)
    first: Any = env.render()
    for _ in range(5):
        env.step(env.action_space.high)
    later: Any = env.render()
    env.close()
    assert (first.shape, first.dtype) == (shape, np.uint8)
    assert first.std() > 5
    assert 0.001 < (first != later).mean() < 0.9


@pytest.mark.slow
@pytest.mark.usefixtures("opengl")
def test_frame_of_meta_world_is_the_right_way_up() -> None:
    """Its camera hangs: above the table it sees the table above."""
    pytest.importorskip("metaworld", reason="metaworld is not installed: make setup EXTRAS=envs")
    env = make_env("mw-reach", seed=1, render_mode="rgb_array")
    env.reset()
    inner: Any = env.unwrapped
    view = inner.view()
    up = view.data.cam_xmat[view.camera].reshape(3, 3)[:, 1]  # of the picture, in the world
    assert up[2] < -0.5
    seen, image = rendering.RenderedEnv.frame(inner, 384), env.render()
    env.close()
    np.testing.assert_array_equal(image, seen[::-1])
    assert (image != seen).mean() > 0.1


@pytest.mark.usefixtures("opengl")
def test_render_of_custom_task_shows_floor_far_behind() -> None:
    """The floor of a custom task still fills the picture 50 m behind the start, where others show the sky."""
    stars = {name: (_frame(name, rootx=-50)[295:330] > 180).any() for name in ("cheetah-run", "cheetah-run-backwards")}
    assert stars == {"cheetah-run": True, "cheetah-run-backwards": False}


@pytest.mark.usefixtures("opengl")
def test_env_with_rendering_passes_gymnasium_checker() -> None:
    register()
    env = gymnasium.make("tdmpc2/pendulum-spin-v0", render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*observation space m.*")
        check_env(env.unwrapped)
    env.close()


@pytest.mark.usefixtures("opengl")
def test_picture_of_gymnasiums_mujoco_is_its_own_whatever_else_was_drawn() -> None:
    """Gymnasium draws into whichever context is current: the picture showed another environment's."""
    with warnings.catch_warnings(action="ignore"):  # about versions
        one, other = (make_env(name, seed=1, render_mode="rgb_array") for name in ("Hopper-v5", "InvertedPendulum-v5"))
    one.reset(seed=1)
    other.reset(seed=1)
    before = one.render()
    other.render()
    np.testing.assert_array_equal(one.render(), before)
    one.close()
    other.close()


def test_render_that_cannot_work_says_why(monkeypatch: pytest.MonkeyPatch, env: Callable) -> None:
    with pytest.raises(ValueError, match="render_mode='human'"):
        make_env("pendulum-spin", render_mode="human")
    assert env("pendulum-spin").unwrapped.render() is None
    rendering.context_module.cache_clear()
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(ValueError, match=r"MUJOCO_GL=disable.*libosmesa6"):
        make_env("pendulum-spin", render_mode="rgb_array")
