"""Observations as images: the newest frames of a task, as agents that learn from pixels see them."""

from __future__ import annotations

from typing import Any, Protocol, cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


class Camera(Protocol):
    """An environment that draws itself at any size."""

    def frame(self, size: int) -> Frames:
        """Draw the current state as RGB [size, size, 3]."""


class PixelEnv(gymnasium.Wrapper[Frames, Any, Any, Any]):
    """Replaces the observation by the newest frames, uint8 [3 stacked, size, size], oldest first.

    A frame is drawn once for every agent step, after the action has been repeated. ``reset`` fills the stack with
    copies of the first frame. The observation that was replaced is in ``info["state"]``.

    Args:
        env: its ``unwrapped`` is a :class:`Camera`.
        size: height and width of a frame.
        stacked: frames of an observation.

    Raises:
        ValueError: by ``reset`` and ``step``, if a frame is not uint8 [size, size, 3].
    """

    def __init__(self, env: gymnasium.Env[Any, Any], size: int, stacked: int) -> None:
        super().__init__(env)
        self._camera = cast(Camera, env.unwrapped)
        self._size = size
        self._stack = np.zeros((stacked, 3, size, size), np.uint8)
        self.observation_space = Box(0, 255, (3 * stacked, size, size), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frames, dict[str, Any]]:
        state, info = self.env.reset(seed=seed, options=options)
        self._stack[:] = self._frame()
        return self._observation(), {**info, "state": state}

    def step(self, action: Any) -> tuple[Frames, float, bool, bool, dict[str, Any]]:
        state, reward, terminated, truncated, info = self.env.step(action)
        self._stack[:-1] = self._stack[1:]
        self._stack[-1] = self._frame()
        return self._observation(), float(reward), terminated, truncated, {**info, "state": state}

    def _frame(self) -> Frames:
        frame: Any = self._camera.frame(self._size)
        shape, is_array = (self._size, self._size, 3), isinstance(frame, np.ndarray)
        if not is_array or frame.dtype != np.uint8 or frame.shape != shape:
            kind = f"an array {frame.shape} of {frame.dtype}" if is_array else f"a {type(frame).__name__}"
            raise ValueError(f"frame({self._size}) returned {kind}: it has to return uint8 {list(shape)}")
        return np.asarray(frame).transpose(2, 0, 1)

    def _observation(self) -> Frames:
        return self._stack.reshape(-1, self._size, self._size).copy()
