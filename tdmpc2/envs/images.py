"""Images among the observations of a user's environment: taken apart from its other numbers, never flattened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space, flatten
from gymnasium.spaces.utils import flatten_space
from numpy.typing import NDArray

from tdmpc2.tasks import SMALLEST_IMAGE

Path = tuple[str, ...]  # keys that lead to an entry of nested dictionaries
_CHANNELS = (1, 3, 4)
_A_STATE = "If these numbers are a state, wrap the environment in gymnasium.wrappers.FlattenObservation"


class ImagesApart(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Observes the numbers of a dictionary end to end, and keeps its images at hand: :meth:`observed_image`.

    Several images are put side by side as channels, in the order of their keys, so they have one height and width.

    Args:
        env: observes a dictionary with images, or one image.
        name: of the task, for messages.

    Attributes:
        image_shape: (channels, height, width).
        as_state: why its observations are no states, and what to do.

    Raises:
        ValueError: images of other types than uint8, of different or too small sizes, or entries that are neither
            images nor vectors.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], name: str) -> None:
        super().__init__(env)
        space = env.observation_space
        self._paths = [path for path, entry in _boxes(space) if is_image(entry)]
        shapes = {path: _channels_first(name, path, _at(space, path)) for path in self._paths}
        sides = {shape[1:] for shape in shapes.values()}
        if len(sides) > 1:
            listed = ", ".join(f"{'.'.join(path)} {height} x {width}" for path, (_, height, width) in shapes.items())
            raise ValueError(
                f"The images that '{name}' observes are of different sizes ({listed}): make them alike, as "
                "gymnasium.wrappers.TransformObservation can"
            )
        (height, width), channels = sides.pop(), sum(shape[0] for shape in shapes.values())
        if min(height, width) < SMALLEST_IMAGE:
            raise ValueError(
                f"The images that '{name}' observes have {height} x {width} pixels, and the encoder takes "
                f"{SMALLEST_IMAGE} x {SMALLEST_IMAGE} at least: let it observe larger ones. {_A_STATE}"
            )
        self.image_shape = channels, height, width
        if isinstance(space, Dict):
            listed = ", ".join(".".join(path) for path in self._paths)
            both = "rgb+state learns from all of it" if len(self._paths) < len(list(_boxes(space))) else "rgb learns"
            remedy = f"obs={both}; gymnasium.wrappers.FilterObservation leaves images out"
            self.as_state = f"The observation space of '{name}' is a Dict with images ({listed}), no states: {remedy}"
        else:
            assert isinstance(space, Box)
            self.as_state = f"{_named(name, space)}, and flattened images make poor states: use obs=rgb. {_A_STATE}"
        self._numbers = _without(space, set(self._paths))
        self.observation_space = flatten_space(self._numbers) if self._numbers else Box(0, 0, (0,), np.float32)
        self._image = np.zeros(self.image_shape, np.uint8)

    def observed_image(self) -> NDArray[np.uint8]:
        """Give the newest image, uint8 [channels, height, width]."""
        return self._image

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._split(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._split(obs), reward, terminated, truncated, info

    def _split(self, obs: Any) -> Any:
        parts = []
        for path in self._paths:
            image, space = np.asarray(_at(obs, path)), _at(self.env.observation_space, path)
            if image.shape != space.shape or image.dtype != np.uint8:
                label = ".".join(("the image", *path))
                raise ValueError(
                    f"{label} is {list(image.shape)} of {image.dtype}, but its observation_space declares uint8 "
                    f"{list(space.shape)}: make them agree"
                )
            parts.append(_to_channels_first(image))
        self._image = np.concatenate(parts)
        return flatten(self._numbers, obs) if self._numbers else np.zeros(0, np.float32)


def images_of(env: gymnasium.Env[Any, Any]) -> ImagesApart | None:
    """Find what takes the images apart from an environment's observations; attributes of a user's own do not count."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, ImagesApart):
            return env
        env = env.env
    return None


def has_images(space: Space[Any]) -> bool:
    """Tell if a space is an image, or a dictionary with images and otherwise vectors of numbers at most."""
    return any(is_image(entry) for _, entry in _boxes(space)) and _is_known(space)


def is_image(space: Space[Any]) -> bool:
    """Tell images from states: bytes in two or more dimensions, or height, width and 1, 3 or 4 channels."""
    if not isinstance(space, Box):
        return False
    shape = space.shape
    if space.dtype == np.uint8:
        return len(shape) >= 2
    readings = [(shape[-1], shape[:-1]), (shape[0], shape[1:])] if len(shape) == 3 else []
    return any(channels in _CHANNELS and min(sides) >= 8 for channels, sides in readings)


def _boxes(space: Space[Any], path: Path = ()) -> Iterator[tuple[Path, Box]]:
    if isinstance(space, Box):
        yield path, space
    elif isinstance(space, Dict):
        for key, entry in space.items():
            yield from _boxes(entry, (*path, key))


def _is_known(space: Space[Any]) -> bool:
    if isinstance(space, Dict):
        return all(map(_is_known, space.values()))
    return isinstance(space, Box) and np.issubdtype(space.dtype, np.number)


def _at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _without(space: Space[Any], paths: set[Path], path: Path = ()) -> Dict | None:
    """Copy a dictionary without some of its entries; None if nothing is left."""
    if not isinstance(space, Dict):
        return None
    left: dict[str, Space[Any]] = {}
    for key, entry in space.items():
        kept = _without(entry, paths, (*path, key)) if isinstance(entry, Dict) else entry
        if kept is not None and (*path, key) not in paths:
            left[key] = kept
    return Dict(left) if left else None


def _channels_first(name: str, path: Path, space: Box) -> tuple[int, int, int]:
    """Find the shape of an image as (channels, height, width)."""
    shape = space.shape
    known = len(shape) == 2 or (len(shape) == 3 and (shape[-1] in _CHANNELS or shape[0] in _CHANNELS))
    if space.dtype != np.uint8 or not known:
        entry = f" (entry {'.'.join(path)})" if path else ""
        raise ValueError(
            f"{_named(name, space)}{entry}: to be learned from they have to be uint8 of height, width and 1, 3 or 4 "
            f"channels, of one moment, since the newest three are put side by side here. {_A_STATE}"
        )
    channels, height, width = _to_channels_first(np.broadcast_to(np.uint8(0), shape)).shape
    return channels, height, width


def _named(name: str, space: Box) -> str:
    return f"The observation space of '{name}' is images, Box of shape {space.shape} and type {space.dtype}"


def _to_channels_first(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.ndim == 2:
        return image[None]
    return image.transpose(2, 0, 1) if image.shape[-1] in _CHANNELS else image
