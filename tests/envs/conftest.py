"""Fixtures: environments that are built once for each file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gymnasium
import pytest

from tdmpc2.envs import make_env, rendering


@pytest.fixture(scope="module")
def env() -> Iterator[Callable[[str], gymnasium.Env]]:
    """Return a function that makes environments by name, each once for this file."""
    built: dict[str, gymnasium.Env] = {}

    def get(name: str) -> gymnasium.Env:
        if name not in built:
            built[name] = make_env(name, seed=1)
        return built[name]

    yield get
    for instance in built.values():
        instance.close()


@pytest.fixture(scope="module")
def opengl() -> None:
    """Skip tests that draw where nothing can."""
    try:
        rendering.context_module()
    except ValueError as error:
        pytest.skip(str(error))
