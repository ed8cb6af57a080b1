"""Players of a data set: random actions, policies and planners, each with a share of every task's episodes.

They are the entries of the key ``mix`` (:mod:`tdmpc2.config.mix`) with their agents.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import file_sha256
from tdmpc2.config import PLANNER_KEYS, Config, MixEntry
from tdmpc2.play.evaluation import agent_actor
from tdmpc2.play.rollout import Actor


@dataclass(frozen=True)
class Player:
    """An entry of a mixture with its agent (None: random actions) and the checksum of the agent's file or weights."""

    source: MixEntry
    agent: TDMPC2 | None = None
    sha256: str | None = None

    def settings(self) -> dict[str, Any]:
        """What decides the player's actions, apart from the machine they are computed on, as plain values."""
        plain: dict[str, Any] = {"share": self.source.share, "kind": self.source.kind}
        if self.agent is not None:
            plain |= {"noise": self.source.noise, "sha256": self.sha256}
        if self.agent is not None and self.source.kind == "planner":
            plain |= {"planner": {key: getattr(self.agent.cfg, key) for key in PLANNER_KEYS}}
        return plain

    def actor(self, cfg: Config, seed: int) -> Actor:
        """The player as an actor whose random numbers start at ``seed``."""
        if self.agent is None:
            return random_actor(cfg, seed)
        if self.source.noise is None:
            return agent_actor(self.agent, noise=True, seed=seed)
        return noisy_actor(cfg, agent_actor(self.agent, noise=False, seed=seed), self.source.noise, seed)


def sources_of(mix: Sequence[MixEntry] | None, checkpoint: str | None, mpc: bool) -> list[MixEntry]:
    """List who plays by the keys ``mix``, ``checkpoint`` and ``mpc``: a mixture, one agent, or random actions.

    Returns:
        Entries whose shares sum to 1.

    Raises:
        ValueError: both a mixture and a checkpoint.
    """
    if mix is not None and checkpoint is not None:
        raise ValueError(f"checkpoint={checkpoint} beside mix, whose entries name their checkpoints: leave one out")
    if mix is not None:
        total = sum(entry.share for entry in mix)
        return [replace(entry, share=entry.share / total) for entry in mix]
    if checkpoint is not None:
        return [MixEntry(1.0, "planner" if mpc else "policy", checkpoint)]
    return [MixEntry(1.0, "random")]


def load_players(sources: Sequence[MixEntry], load: Callable[..., TDMPC2]) -> list[Player]:
    """Load every checkpoint once.

    Args:
        sources: of a mixture.
        load: :func:`~tdmpc2.loading.load_agent`, perhaps with keywords bound; called with a file and ``mpc``.

    Raises:
        ValueError: a file that cannot be read, or agents of different tasks.
    """
    loaded: dict[str, tuple[TDMPC2, str]] = {}
    players: list[Player] = []
    for source in sources:
        if source.checkpoint is None:
            players.append(Player(source))
            continue
        mpc = source.kind == "planner"
        if source.checkpoint not in loaded:
            loaded[source.checkpoint] = load(source.checkpoint, mpc=mpc), file_sha256(source.checkpoint)
        agent, sha256 = loaded[source.checkpoint]
        if agent.cfg.mpc != mpc:  # one set of weights planning and acting without a plan
            agent = copy.copy(agent)
            agent.cfg = agent.cfg.replace(mpc=mpc)
        players.append(Player(source, agent, sha256))
    agents = [player for player in players if player.agent is not None]
    for first, other in zip(agents, agents[1:], strict=False):
        a, b = (player.agent.cfg for player in (first, other) if player.agent)
        if (a.task_specs, a.task_ids) != (b.task_specs, b.task_ids):
            raise ValueError(
                f"mix: {first.source.checkpoint} plays {len(a.task_ids)} tasks of '{a.task}', "
                f"{other.source.checkpoint} {len(b.task_ids)} of '{b.task}': they need one task set, and where their "
                "tasks differ, tasks=[...] to choose some"
            )
    return players


def player_of(agent: TDMPC2 | None) -> Player:
    """An agent in memory, with its own exploration noise, or random actions."""
    if agent is None:
        return Player(MixEntry(1.0, "random"))
    digest = hashlib.sha256()
    for name, tensor in sorted(agent.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return Player(MixEntry(1.0, "planner" if agent.cfg.mpc else "policy"), agent, digest.hexdigest())


def random_actor(cfg: Config, seed: int) -> Actor:
    """Uniform actions in [-1, 1] on each task's own dimensions, zero on the padding."""
    rng = np.random.default_rng(seed)

    def act(obs: np.ndarray, t0: np.ndarray, task_ids: np.ndarray) -> np.ndarray:
        action = rng.uniform(-1, 1, (len(obs), cfg.action_dim)).astype(np.float32)
        return action * _used(cfg, task_ids)

    return act


def noisy_actor(cfg: Config, actor: Actor, std: float, seed: int) -> Actor:
    """An actor with Gaussian noise on each task's own dimensions, clipped to [-1, 1]."""
    rng = np.random.default_rng(seed)

    def act(obs: np.ndarray, t0: np.ndarray, task_ids: np.ndarray) -> np.ndarray:
        action = actor(obs, t0, task_ids)
        noise = rng.standard_normal(action.shape, np.float32)
        return np.clip(action + np.float32(std) * noise, -1, 1) * _used(cfg, task_ids)

    return act


def split(total: int, shares: Sequence[float]) -> list[int]:
    """``total`` things by shares that sum to 1: rounded down, and the rest goes to the largest remainders."""
    exact = [total * share for share in shares]
    parts = [math.floor(value + 1e-9) for value in exact]  # 0.1 + 0.2 is more than 0.3: shares are not exact
    order = sorted(range(len(shares)), key=lambda i: (round(parts[i] - exact[i], 9), i))
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts


def _used(cfg: Config, task_ids: np.ndarray) -> np.ndarray:
    """Which action dimensions the tasks have, bool [E, A]."""
    sizes = np.array([spec.action_dim for spec in cfg.task_specs])
    return np.arange(cfg.action_dim) < sizes[task_ids, None]
