"""Behaviour policies of a data set: random actions, policies and planners, each with a share of every task's episodes.

They are the entries of the key ``mix`` (:mod:`tdmpc2.config.mix`) with their agents.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import KEYS, PLANNER_KEYS, Config, MixEntry
from tdmpc2.play.actors import agent_actor, noisy_actor, random_actor
from tdmpc2.play.rollout import Actor


@dataclass(frozen=True)
class BehaviourPolicy:
    """Entry of a mixture with its agent (None: random actions) and the checksum of the agent's file or weights."""

    entry: MixEntry
    agent: TDMPC2 | None = None
    sha256: str | None = None

    @property
    def mpc(self) -> bool:
        """True if it plans; the entry says so, since policy and planner of one file share an agent."""
        return self.entry.kind == "planner"

    def settings(self) -> dict[str, Any]:
        """List the settings that decide its actions, apart from the machine they are computed on, as plain values."""
        plain: dict[str, Any] = {"share": self.entry.share, "kind": self.entry.kind}
        if self.agent is not None:
            plain |= {"noise": self.entry.noise, "sha256": self.sha256}
            if self.agent.cfg.augment_eval and self.agent.cfg.observes_images:
                plain |= {"augment_eval": True}
        if self.agent is not None and self.mpc:
            planner = {key: getattr(self.agent.cfg, key) for key in PLANNER_KEYS}
            for key in ("plan_action", "plan_start"):  # records of older versions do not have them
                if planner[key] == KEYS[key].default:
                    del planner[key]
            plain |= {"planner": planner}
        return plain

    def actor(self, cfg: Config, seed: int) -> Actor:
        """Make an actor of it, whose random numbers start at ``seed``."""
        if self.agent is None:
            return random_actor(cfg, seed)
        if self.entry.noise is None:
            return agent_actor(self.agent, noise=True, seed=seed, mpc=self.mpc)
        actor = agent_actor(self.agent, noise=False, seed=seed, mpc=self.mpc)
        return noisy_actor(cfg, actor, self.entry.noise, seed)


def mixture_entries(mix: Sequence[MixEntry] | None, checkpoint: str | None, mpc: bool) -> list[MixEntry]:
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


def load_policies(entries: Sequence[MixEntry], load: Callable[..., TDMPC2]) -> list[BehaviourPolicy]:
    """Load every checkpoint once: its entries share an agent.

    Args:
        entries: of a mixture.
        load: :func:`~tdmpc2.loading.load_agent`, perhaps with keywords bound; called with a file that was read and
            with ``mpc``, which is true if any of the file's entries plans.

    Raises:
        ValueError: a file that cannot be read, or agents of different tasks.
    """
    planning = {entry.checkpoint for entry in entries if entry.kind == "planner"}
    loaded: dict[str, tuple[TDMPC2, str]] = {}  # agent, and the checksum of what it was read from
    policies: list[BehaviourPolicy] = []
    for entry in entries:
        if entry.checkpoint is None:
            policies.append(BehaviourPolicy(entry))
            continue
        if entry.checkpoint not in loaded:
            file = load_file(entry.checkpoint, identify=True)
            loaded[entry.checkpoint] = load(file, mpc=entry.checkpoint in planning), file.sha256 or ""
        policies.append(BehaviourPolicy(entry, *loaded[entry.checkpoint]))
    agents = [policy for policy in policies if policy.agent is not None]
    for first, other in zip(agents, agents[1:], strict=False):
        a, b = (policy.agent.cfg for policy in (first, other) if policy.agent)
        if (a.task_specs, a.task_ids) != (b.task_specs, b.task_ids):
            raise ValueError(
                f"mix: {first.entry.checkpoint} plays {len(a.task_ids)} tasks of '{a.task}', "
                f"{other.entry.checkpoint} {len(b.task_ids)} of '{b.task}': they need one task set, and where their "
                "tasks differ, tasks=[...] to choose some"
            )
    return policies


def policy_from_agent(agent: TDMPC2 | None) -> BehaviourPolicy:
    """Make a behaviour policy of an agent in memory, with its own exploration noise; None: of random actions."""
    if agent is None:
        return BehaviourPolicy(MixEntry(1.0, "random"))
    digest = hashlib.sha256()
    for name, tensor in sorted(agent.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return BehaviourPolicy(MixEntry(1.0, "planner" if agent.cfg.mpc else "policy"), agent, digest.hexdigest())


def split(total: int, shares: Sequence[float]) -> list[int]:
    """Split ``total`` things by shares that sum to 1: rounded down, and the rest goes to the largest remainders."""
    exact = [total * share for share in shares]
    parts = [math.floor(value + 1e-9) for value in exact]  # 0.1 + 0.2 is more than 0.3: shares are not exact
    order = sorted(range(len(shares)), key=lambda i: (round(parts[i] - exact[i], 9), i))
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts
