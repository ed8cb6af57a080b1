"""Random actions: uniform ones, and pink noise."""

from __future__ import annotations

import numpy as np
import pytest

from tdmpc2.config import Config
from tdmpc2.play.actors import pink_actions

ENVS = np.array([0, 1])  # of walker-stand and cup-catch, which have 6 and 2 actions


@pytest.fixture(scope="module")
def cfg() -> Config:
    tasks = ("walker-stand", "cup-catch")
    full = Config(task="mt30", model_size=1)
    specs = tuple(spec for spec in full.task_specs if spec.name in tasks)
    return full.replace(task_specs=specs, seed=3)


def turns(cfg: Config, count: int) -> np.ndarray:
    return np.stack([pink_actions(cfg, ENVS, 1 + turn * len(ENVS)) for turn in range(count)])  # [T, E, A]


def test_pink_actions_are_a_function_of_seed_and_step(cfg: Config) -> None:
    assert np.array_equal(turns(cfg, 40), turns(cfg, 40))
    assert not np.array_equal(turns(cfg, 40), turns(cfg.replace(seed=4), 40))


def test_pink_actions_are_bounded_and_zero_on_padding(cfg: Config) -> None:
    actions = turns(cfg, 200)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() == 1
    assert actions[:, 0].any(0).all()
    assert not actions[:, 1, 2:].any()


def test_neighbours_of_pink_actions_are_alike(cfg: Config) -> None:
    """Correlations fall slowly with distance, and there are none between actions or environments."""
    actions = turns(cfg, 3000)
    one = actions[:, 0, 0]
    near, far, beyond = (np.corrcoef(one[:-lag], one[lag:])[0, 1] for lag in (1, 8, 40))
    assert near > 0.4
    assert near > far > 0.05
    assert abs(beyond) < 0.1
    assert abs(np.corrcoef(one, actions[:, 0, 1])[0, 1]) < 0.1
    assert abs(np.corrcoef(one, actions[:, 1, 0])[0, 1]) < 0.1
    assert abs(one.mean()) < 0.1
