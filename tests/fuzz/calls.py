"""Calls of public functions with arguments that a careless program may pass."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import tdmpc2
from tests.fuzz.mutations import VALUES


def act(rng: random.Random, file: str) -> None:
    """Load a checkpoint and act once with it; an action that is not finite is a fault."""
    agent = tdmpc2.load_agent(file, device="cpu", compile=False, quiet=True)
    specs = agent.cfg.task_specs
    action = agent.act(np.zeros(agent.cfg.obs_dim, np.float32), t0=True, task=specs[0].name if len(specs) > 1 else None)
    assert np.isfinite(np.asarray(action)).all(), f"the action is {action}"


def anything(rng: random.Random) -> Any:
    """Draw a value of any type, arrays included."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(VALUES[:8])(rng)
    if kind == 1:
        return rng.choice(
            ("walker-walk", "cpu", "auto", "toy.pt", "student.pt", "tests.helpers.toy_envs:Stands-v0", "mt30", 1,
             "Pendulum-v1", "Hopper-v5", "mw-drawer-open", "myo-pose", "gymnasium:Pendulum-v1", "mw-", "ALE/Pong-v5")
        )  # fmt: skip
    shape = tuple(rng.choice((0, 1, 2, 4, 24, 128)) for _ in range(rng.randrange(4)))
    array = np.asarray(np.random.default_rng(rng.randrange(2**32)).normal(size=shape))
    array = array.astype(rng.choice((np.float32, np.float64, np.int64, np.uint8, bool)))
    if kind == 2 and array.size and array.dtype.kind == "f":
        array.flat[0] = rng.choice((np.nan, np.inf, 1e30))
    return rng.choice((array, torch.as_tensor(array), array.tolist(), array[..., ::-1] if array.ndim else array))


def random_call(rng: random.Random) -> None:
    """Call a public function after replacing some arguments by arbitrary values."""
    rng.choice(CALLS)(rng)


def _some(rng: random.Random, **right: Any) -> dict[str, Any]:
    """Replace one or two of the right arguments."""
    for name in rng.sample(sorted(right), min(len(right), rng.choice((1, 1, 2)))):
        right[name] = anything(rng)
    return right


def _agent() -> Any:
    return tdmpc2.load_agent("student.pt", device="cpu", compile=False, quiet=True)


def _load(rng: random.Random) -> None:
    tdmpc2.load_agent(**_some(rng, source="toy.pt", device="cpu", precision="auto", compile=False, quiet=True))


def _config(rng: random.Random) -> None:
    name = rng.choice(sorted(tdmpc2.config.key_names()))
    tdmpc2.Config(**{name: anything(rng)})


def _parse(rng: random.Random) -> None:
    name = rng.choice(sorted(tdmpc2.config.key_names()))
    tdmpc2.parse_cfg(rng.choice(({name: anything(rng)}, anything(rng))))


def _env(rng: random.Random) -> None:
    tdmpc2.make_env(**_some(rng, task="tests.helpers.toy_envs:Stands-v0", seed=1)).close()


def _act(rng: random.Random) -> None:
    agent = _agent()
    task = rng.choice(("pendulum-spin", 0))
    action = agent.act(**_some(rng, obs=np.zeros(24, np.float32), t0=True, eval_mode=False, task=task))
    assert np.isfinite(np.asarray(action)).all(), f"the action is {action}"


def _batched(rng: random.Random) -> None:
    player = _agent().player(num_envs=2)
    right = {"obs": np.zeros((2, 24), np.float32), "t0": np.ones(2, bool), "task": np.zeros(2, int), "eval_mode": True}
    action = player.act(**_some(rng, **right))
    assert np.isfinite(np.asarray(action)).all(), f"the action is {action}"


def _update(rng: random.Random) -> None:
    from tdmpc2.data.batch import Batch

    agent = _agent()
    horizon, width = agent.cfg.horizon, agent.cfg.action_dim
    right = {
        "obs": torch.zeros(horizon + 1, 4, 24),
        "action": torch.zeros(horizon, 4, width),
        "reward": torch.zeros(horizon, 4, 1),
        "task": torch.zeros(4, dtype=torch.int64),
    }
    metrics = agent.update(Batch(**_some(rng, **right)))
    assert all(torch.isfinite(value).all() for value in metrics.values()), f"the metrics are {metrics}"


def _write(rng: random.Random) -> None:
    from tdmpc2.data.episodes import write_episodes

    episode = np.zeros((6, 4)), np.zeros((5, 2)), np.zeros(5)
    parts = _some(rng, obs=episode[0], action=episode[1], reward=episode[2])
    episodes = anything(rng) if rng.random() < 0.2 else [episode, tuple(parts.values())]
    right = {"task": "tests.helpers.toy_envs:Stands-v0", "task_set": None, "terminated": [True, False]}
    write_episodes("new", episodes=episodes, **(_some(rng, **right) if rng.random() < 0.3 else right))


CALLS: tuple[Callable[[random.Random], None], ...] = (_load, _config, _parse, _env, _act, _batched, _update, _write)
