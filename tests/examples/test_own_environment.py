"""The example that learns a user's own environment: the environment, its keys, and the whole path at tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tdmpc2.config import parse_cfg
from tests.helpers.scripts import load_script

FILE = Path(__file__).resolve().parents[2] / "examples" / "own_environment.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script(FILE)


@pytest.mark.filterwarnings("ignore:.*A Box observation space")
def test_environment_of_the_example_is_what_gymnasium_asks_for(example: ModuleType) -> None:
    check_env(example.Puck(render_mode="rgb_array"))


def test_puck_pushed_to_its_target_is_rewarded(example: ModuleType) -> None:
    """A proportional-derivative controller solves the task."""
    env = example.Puck()
    obs, _ = env.reset(seed=1)
    first = env.step(np.zeros(2, np.float32))[1]
    for _ in range(100):
        obs, reward, *_ = env.step(np.clip(4 * obs[4:6] - 4 * obs[2:4], -1, 1).astype(np.float32))
    assert first < 0.5
    assert reward > 0.95


def test_keys_of_the_example_are_keys(example: ModuleType) -> None:
    assert parse_cfg({"task": example.TASK, **example.TRAINING}).steps == example.TRAINING["steps"]
    assert parse_cfg({"task": example.TASK, **example.EVALUATION}).eval_episodes == example.EVALUATION["eval_episodes"]


@pytest.mark.slow
def test_example_trains_plays_and_films(tmp_path: Path) -> None:
    words = "steps=120 seed_steps=101 batch_size=8 utd=0.05 compile=false".split()
    words += "num_samples=16 num_elites=4 iterations=1 eval_episodes=2".split()  # the full budget takes a minute
    subprocess.run([sys.executable, FILE, str(tmp_path / "own"), *words], check=True, timeout=500)
    results = json.loads((tmp_path / "own/played/results.json").read_text())
    assert len(results["tasks"]) == 1
    assert list((tmp_path / "own/played").rglob("*.mp4"))
