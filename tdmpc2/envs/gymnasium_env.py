"""Environments registered with Gymnasium, as tasks named by their id, or by the name that TD-MPC2 gave them."""

from __future__ import annotations

import os
import warnings
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from tdmpc2.envs.checked import EnvironmentFault, described
from tdmpc2.envs.images import ImagesApart, has_images, images_of, is_image
from tdmpc2.envs.wrappers import Env, FlatEnv, FreeActions, SuccessAbove, sizes
from tdmpc2.support.extras import extra_of, install_module
from tdmpc2.tasks import TaskSpec


class Named(NamedTuple):
    """An environment of Gymnasium that TD-MPC2 has a name of its own for."""

    id: str
    keywords: dict[str, Any] = {}  # noqa: RUF012
    solved: float | None = None  # an episode is a success if its return is above


NAMED = {
    "mujoco-walker": Named("Walker2d-v4"),
    "mujoco-halfcheetah": Named("HalfCheetah-v4"),
    "bipedal-walker": Named("BipedalWalker-v3"),
    "lunarlander-continuous": Named(
        "LunarLander-v3",
        {"continuous": True, "max_episode_steps": 500},
        solved=200.0,  # upstream: v2, removed since
    ),
}

#: Packages whose environments are scored by success wherever ``info`` tells it, since their returns have no scale:
#: -1 or 0 for each step, or distances.
TELL_SUCCESS = ("gymnasium_robotics", "myosuite")

_FLATTEN = "wrap the environment in gymnasium.wrappers.FlattenObservation"
_OBSERVATION_REMEDIES: dict[type[Space[Any]], str] = {
    Dict: f"{_FLATTEN}, which makes one-hot vectors of choices, or leave them out with FilterObservation",
    Tuple: _FLATTEN,
    Discrete: f"{_FLATTEN}, which makes one-hot vectors",
    MultiDiscrete: f"{_FLATTEN}, which makes one-hot vectors",
    MultiBinary: _FLATTEN,
}
_DRAWN = (
    "To be filmed it needs `def __init__(self, render_mode=None)`, `metadata = {'render_modes': ['rgb_array']}` and a "
    "`render` that returns an image [H, W, 3]"
)
_REGISTER = "Register it with gymnasium.register, in a module that the name begins with, as in my_package:Mine-v0"
_CONTINUOUS = (
    "TD-MPC2 plans continuous actions. Wrap the environment in a gymnasium.ActionWrapper whose action space is a Box "
    "and whose action() turns a vector into the environment's own action"
)


def make(name: str, seed: int | None = None, render_mode: str | None = None) -> Env:
    """Call ``gymnasium.make`` and give flat float32 observations and actions in [-1, 1].

    A dictionary of vectors is laid end to end in the order of its keys, which Gymnasium sorts; images are taken apart
    from it (:class:`~tdmpc2.envs.images.ImagesApart`). Whole numbers among the actions are rounded to, and entries that
    can have one value only are left out.

    Raises:
        ValueError: not registered, observations that are no Boxes or images that are not bytes, or actions that are not
            a bounded vector of numbers.
        ModuleNotFoundError: the module that registers it, or one that it needs, is not installed.
        EnvironmentFault: building it raised an error.
    """
    env = _made(name, render_mode)
    if _package(env) == "myosuite":
        from tdmpc2.envs.myo_suite import RegisteredMyoSuite  # imports MuJoCo

        env = RegisteredMyoSuite(env)
    if render_mode == "rgb_array" and hasattr(env.unwrapped, "mujoco_renderer"):
        env = _WithoutDisplay(env)
    try:
        if has_images(env.observation_space):
            env = ImagesApart(env, name)
        elif _is_vectors(env.observation_space):
            env = gymnasium.wrappers.FlattenObservation(env)
        _check_observations(name, env.observation_space, isinstance(env, ImagesApart))
        _check_actions(name, env.action_space)
    except ValueError:
        env.close()
        raise
    if name in NAMED and (solved := NAMED[name].solved) is not None:
        env = SuccessAbove(env, solved)
    return FlatEnv(FreeActions.around(env), seed)


def spec(name: str) -> TaskSpec:
    """Read sizes and time limit of a Gymnasium environment from one that is built and closed.

    An environment whose ``metadata`` says ``"success_score": True`` is scored by success, and so is one of
    :data:`TELL_SUCCESS` that tells it after a step.

    Raises:
        ValueError: as :func:`make`, or no time limit.
    """
    env = make(name)
    limit = env.spec.max_episode_steps if env.spec else None
    by_success = env.metadata.get("success_score", False) is True or _tells_success(env)
    images = images_of(env)
    env.close()
    if limit is None:
        raise ValueError(f"'{name}' has no time limit: give gymnasium.register(...) its max_episode_steps.")
    return TaskSpec(name, *sizes(env), limit, by_success, images.image_shape if images else None)


def registered_limit(name: str) -> int | None:
    """The time limit that Gymnasium has for an id, with or without the module that registers it; None: it has none."""
    found = gymnasium.registry.get(name.rpartition(":")[2])
    return None if found is None else found.max_episode_steps


class _WithoutDisplay(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Draws MuJoCo's frames with a backend that works here; Gymnasium takes the first one, which needs a display."""

    def render(self) -> Any:
        from tdmpc2.envs.rendering import context_module  # imports MuJoCo

        renderer: Any = self.env.unwrapped
        viewer = renderer.mujoco_renderer.viewer
        if viewer is not None:  # Gymnasium leaves current what another environment has drawn into
            viewer.make_context_current()
        if "MUJOCO_GL" in os.environ:
            return self.env.render()
        try:
            backend = context_module().rpartition(".")[2]
        except ValueError:  # a display may do
            return self.env.render()
        os.environ["MUJOCO_GL"] = backend
        try:
            return self.env.render()
        finally:
            del os.environ["MUJOCO_GL"]


def _package(env: gymnasium.Env[Any, Any]) -> str:
    return type(env.unwrapped).__module__.partition(".")[0]


def _tells_success(env: Env) -> bool:
    if _package(env) not in TELL_SUCCESS:
        return False
    env.reset(seed=0)
    raw = env.unwrapped
    if hasattr(raw, "ref"):  # MyoSuite's motions to be followed, whose success is always 0
        return False
    *_, info = raw.step(np.zeros(raw.action_space.shape or (), raw.action_space.dtype))
    return not info.keys().isdisjoint(("success", "is_success", "solved"))


def _made(name: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    named = NAMED.get(name, Named(name))
    keywords = named.keywords if render_mode is None else {**named.keywords, "render_mode": render_mode}
    try:
        with warnings.catch_warnings():
            if name in NAMED:
                warnings.filterwarnings("ignore", message=".*is out of date")  # on purpose: models know the old one
            return gymnasium.make(named.id, **keywords)
    except (ModuleNotFoundError, gymnasium.error.DependencyNotInstalled) as error:
        cause = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        module = (getattr(cause, "name", None) or "").partition(".")[0]
        if not extra_of(module):
            raise
        text = f"Task '{name}' needs {module}, which is not installed: {install_module(module)}"
        raise ModuleNotFoundError(text, name=module) from error
    except gymnasium.error.Error as error:
        text = " ".join(str(error).split())
        raise ValueError(f"'{name}' is no environment that Gymnasium can make here: {text}. {_REGISTER}") from error
    except Exception as error:  # the environment is the user's code: it can raise anything
        to_draw = isinstance(error, TypeError) and render_mode is not None and "render_mode" in str(error)
        way_out = f". {_DRAWN}" if to_draw else ""
        raise EnvironmentFault(f"{name}: building the environment raised {described(error)}{way_out}") from error


def _check_observations(name: str, space: Space[Any], images: bool) -> None:
    if not isinstance(space, Box):
        remedy = _OBSERVATION_REMEDIES.get(type(space), "wrap the environment in a gymnasium.ObservationWrapper")
        raise ValueError(f"The observation space of '{name}' is {space}, but must be a Box: {remedy}.")
    if not np.prod(space.shape) and not images:
        raise ValueError(f"The observation space of '{name}' is {_short(space)}, which has no numbers to learn from.")


def _check_actions(name: str, space: Space[Any]) -> None:
    if not isinstance(space, Box):
        raise ValueError(f"The action space of '{name}' is {space}, but must be a Box: {_CONTINUOUS}.")
    if len(space.shape) != 1:
        raise ValueError(
            f"The action space of '{name}' is {_short(space)}, but must be a vector: wrap the environment in a "
            "gymnasium.ActionWrapper that reshapes."
        )
    if not space.is_bounded():
        raise ValueError(
            f"The action space of '{name}' is {_short(space)}, but must have finite bounds: give it some, as "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, Box(low, high)) does."
        )
    if not np.issubdtype(space.dtype, np.number):
        raise ValueError(f"The action space of '{name}' is {_short(space)}, but must be numbers: {_CONTINUOUS}.")
    with np.errstate(over="ignore"):
        spread = space.high.astype(np.float32) - space.low.astype(np.float32)
    if not np.isfinite(spread).all():
        raise ValueError(f"The action space of '{name}' is {_short(space)} with bounds that float32 cannot hold.")
    if not (spread > 0).any():
        raise ValueError(f"The action space of '{name}' is {_short(space)}: there is nothing to choose.")


def _is_vectors(space: Space[Any]) -> bool:
    """Tell if a space is a dictionary, of dictionaries at most, of numbers that are no images."""
    if not isinstance(space, Dict):
        return False
    return all(
        _is_vectors(entry) or (isinstance(entry, Box) and np.issubdtype(entry.dtype, np.number) and not is_image(entry))
        for entry in space.values()
    )


def _short(space: Box) -> str:
    """Describe a Box by shape and type: its bounds can be thousands of numbers."""
    return f"Box of shape {space.shape} and type {space.dtype}"
