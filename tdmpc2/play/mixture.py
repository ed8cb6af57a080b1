"""Who plays the episodes of a data set: random actions, policies and planners, each a share of every task's episodes.

An entry of the key ``mix`` is ``SHARE random``, ``SHARE policy CHECKPOINT`` or ``SHARE planner CHECKPOINT``; the last
two may end in ``noise STD``. Shares are relative to their sum::

    mix=[0.2 random, 0.3 policy models/early.pt noise 0.3, 0.5 planner models/late.pt]
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import file_sha256
from tdmpc2.config import Config
from tdmpc2.play.evaluation import agent_actor
from tdmpc2.play.rollout import Actor

_ENTRY = re.compile(r"(?P<share>\S+)\s+(?P<kind>\S+)(?:\s+(?!noise\s)(?P<file>\S.*?))?(?:\s+noise\s+(?P<noise>\S+))?")
_PLANNER = ("iterations", "num_samples", "num_elites", "num_pi_trajs", "horizon", "min_std", "max_std", "temperature")


@dataclass(frozen=True)
class Source:
    """One entry of a mixture.

    Attributes:
        share: fraction of every task's episodes, in (0, 1].
        kind: ``random``, ``policy`` or ``planner``.
        checkpoint: file of the agent; None for random actions, and for an agent that is in memory.
        noise: standard deviation of Gaussian noise added to the noise-free action, which is then clipped to [-1, 1];
            None: the agent's own exploration noise.
    """

    share: float
    kind: str
    checkpoint: str | None = None
    noise: float | None = None

    def __str__(self) -> str:
        name = "" if self.checkpoint is None else f" {self.checkpoint}"
        return f"{self.kind}{name}{'' if self.noise is None else f' noise {self.noise:g}'}"


@dataclass(frozen=True)
class Player:
    """A source with its agent (None: random actions) and the checksum of the agent's file or weights."""

    source: Source
    agent: TDMPC2 | None = None
    sha256: str | None = None

    def settings(self) -> dict[str, Any]:
        """What decides the player's actions, apart from the machine they are computed on, as plain values."""
        plain: dict[str, Any] = {"share": self.source.share, "kind": self.source.kind}
        if self.agent is not None:
            plain |= {"noise": self.source.noise, "sha256": self.sha256}
        if self.agent is not None and self.source.kind == "planner":
            plain |= {"planner": {key: getattr(self.agent.cfg, key) for key in _PLANNER}}
        return plain

    def actor(self, cfg: Config, seed: int) -> Actor:
        """The player as an actor whose random numbers start at ``seed``."""
        if self.agent is None:
            return random_actor(cfg, seed)
        if self.source.noise is None:
            return agent_actor(self.agent, noise=True, seed=seed)
        return noisy_actor(cfg, agent_actor(self.agent, noise=False, seed=seed), self.source.noise, seed)


def parse_mix(entries: Sequence[str], origin: str = "mix") -> list[Source]:
    """The sources of a mixture; their shares are scaled to a sum of 1.

    Raises:
        ValueError: an entry that is not of the form above; the message names it and ``origin``.
    """
    sources = [_parse(entry.strip(), origin) for entry in entries]
    if not sources:
        raise ValueError(f"{origin} has no entries: give at least one, or null")
    total = sum(source.share for source in sources)
    return [Source(s.share / total, s.kind, s.checkpoint, s.noise) for s in sources]


def sources_of(mix: Sequence[str] | None, checkpoint: str | None, mpc: bool) -> list[Source]:
    """What the keys ``mix``, ``checkpoint`` and ``mpc`` say: a mixture, one agent, or random actions.

    Raises:
        ValueError: a bad entry, or both a mixture and a checkpoint.
    """
    if mix is not None and checkpoint is not None:
        raise ValueError(f"checkpoint={checkpoint} beside mix, whose entries name their checkpoints: leave one out")
    if mix is not None:
        return parse_mix(mix)
    if checkpoint is not None:
        return [Source(1.0, "planner" if mpc else "policy", checkpoint)]
    return [Source(1.0, "random")]


def load_players(sources: Sequence[Source], load: Callable[..., TDMPC2]) -> list[Player]:
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
        return Player(Source(1.0, "random"))
    digest = hashlib.sha256()
    for name, tensor in sorted(agent.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return Player(Source(1.0, "planner" if agent.cfg.mpc else "policy"), agent, digest.hexdigest())


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


def _parse(entry: str, origin: str) -> Source:
    form = '"SHARE random", "SHARE policy CHECKPOINT" or "SHARE planner CHECKPOINT" (and "noise STD")'
    match = _ENTRY.fullmatch(entry)
    if match is None or match["kind"] not in ("random", "policy", "planner"):
        raise ValueError(f"{origin}: '{entry}' is not of the form {form}")
    share, noise = _number(match["share"]), None if match["noise"] is None else _number(match["noise"])
    if share is None or share == 0:
        raise ValueError(f"{origin}: the share in '{entry}' must be a positive number")
    if match["noise"] is not None and noise is None:
        raise ValueError(f"{origin}: the noise in '{entry}' must be a number, 0 or more")
    if match["kind"] == "random":
        if match["file"] is not None or noise is not None:
            raise ValueError(f"{origin}: '{entry}': random actions have neither a checkpoint nor noise")
        return Source(share, "random")
    if match["file"] is None:
        raise ValueError(f"{origin}: '{entry}' names no checkpoint: {form}")
    return Source(share, match["kind"], os.path.expanduser(match["file"]), noise)


def _number(text: str) -> float | None:
    """A finite number that is not negative, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None
