"""Observations with images: the newest frames of a task, alone or beside its state, as agents learn from them."""

from __future__ import annotations

import math
from typing import Any, Protocol, cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from tdmpc2.envs.images import images_of

Frames = NDArray[np.uint8]


class Camera(Protocol):
    """An environment that draws itself at any size."""

    def frame(self, size: int) -> Frames:
        """Draw the current state as RGB [size, size, 3]."""


class PixelEnv(gymnasium.Wrapper[Frames, Any, Any, Any]):
    """Replaces the observation by the newest frames, uint8 [C stacked, height, width], oldest first.

    A frame is drawn once for every agent step, after the action has been repeated. ``reset`` fills the stack with
    copies of the first frame. The observation that was replaced is in ``info["state"]``.

    Args:
        env: observes images itself (:class:`~tdmpc2.envs.images.ImagesApart`), or its ``unwrapped`` is a
            :class:`Camera`.
        size: height and width of a frame that is drawn.
        stacked: frames of an observation.
        state: observe the state beside the frames, as bytes: uint8 [4 O + C stacked height width], float32 first.

    Raises:
        ValueError: by ``reset`` and ``step``, if a frame is not uint8 [size, size, 3].
    """

    def __init__(self, env: gymnasium.Env[Any, Any], size: int, stacked: int, state: bool = False) -> None:
        super().__init__(env)
        self._own = images_of(env)
        self._camera = cast(Camera, env.unwrapped)
        self._size = size
        frame = (3, size, size) if self._own is None else self._own.image_shape
        self._stack = np.zeros((stacked, *frame), np.uint8)
        images = (frame[0] * stacked, *frame[1:])
        self._images = images
        self.state_dim = env.observation_space.shape[0] if state and env.observation_space.shape else 0
        shape = (4 * self.state_dim + math.prod(images),) if state else images
        self.observation_space = Box(0, 255, shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frames, dict[str, Any]]:
        state, info = self.env.reset(seed=seed, options=options)
        self._stack[:] = self._frame()
        return self._observation(state), {**info, "state": state}

    def step(self, action: Any) -> tuple[Frames, float, bool, bool, dict[str, Any]]:
        state, reward, terminated, truncated, info = self.env.step(action)
        self._stack[:-1] = self._stack[1:]
        self._stack[-1] = self._frame()
        return self._observation(state), float(reward), terminated, truncated, {**info, "state": state}

    def _frame(self) -> Frames:
        if self._own is not None:
            return self._own.observed_image()
        frame: Any = self._camera.frame(self._size)
        shape, is_array = (self._size, self._size, 3), isinstance(frame, np.ndarray)
        if not is_array or frame.dtype != np.uint8 or frame.shape != shape:
            kind = f"an array {frame.shape} of {frame.dtype}" if is_array else f"a {type(frame).__name__}"
            raise ValueError(f"frame({self._size}) returned {kind}: it has to return uint8 {list(shape)}")
        return np.asarray(frame).transpose(2, 0, 1)

    def _observation(self, state: Any) -> Frames:
        images = self._stack.reshape(self._images).copy()
        if not self.state_dim:
            return images
        if np.shape(state) != (self.state_dim,):
            raise ValueError(
                f"an observation of {np.size(state)} numbers, but its observation_space declares {self.state_dim}: "
                "make them agree"
            )
        return np.concatenate([np.asarray(state, np.float32).view(np.uint8), images.ravel()])
