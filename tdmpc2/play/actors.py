"""Actors, who choose the actions of the environments that are played side by side: an agent, noise, chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.nn.inputs import observations
from tdmpc2.nn.pixels import SHIFT
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.play.rollout import Actor
from tdmpc2.support.draws import numbered_generator

PINK_NOISE = 3  # stream of numbered_generator


def agent_actor(agent: TDMPC2, *, noise: bool, seed: int | None = None, mpc: bool | None = None) -> Actor:
    """Let a player of the agent act; ``noise`` adds exploration noise to every action, ``seed`` is the player's.

    ``mpc`` lets it plan, or act with the policy prior; by default as the agent's configuration says.
    """
    player = agent.player(seed=seed, mpc=mpc)

    def act(obs: Any, t0: Any, task_ids: Any) -> Any:
        return player.act(obs, t0, task=task_ids, eval_mode=not noise)

    return act


def uniform_actions(cfg: Config, task_ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw uniform actions in [-1, 1] on each task's own dimensions, zero on the padding: [E, A] float32."""
    action = rng.uniform(-1, 1, (len(task_ids), cfg.action_dim)).astype(np.float32)
    return action * _used(cfg, task_ids)


def pink_actions(cfg: Config, task_ids: np.ndarray, step: int) -> np.ndarray:
    """Draw actions of pink noise, clipped to [-1, 1], as :func:`uniform_actions` does: [E, A] float32.

    Each is a sum of the last 16 standard-normal draws, whose weights ``w_k = w_(k-1) (k - 1/2) / k`` give a spectrum of
    1/f (Kasdin 1995, "Discrete simulation of colored noise"), scaled to variance 1. So it is a function of seed and
    step, and needs no state. Eberhard et al. (2023, "Pink noise is all you need") found it to explore best on average.

    Args:
        cfg: its seed decides.
        task_ids: [E]; a turn is so many steps.
        step: number of the turn's step.
    """
    past = step - len(task_ids) * np.arange(len(_PINK))
    shape = len(task_ids), cfg.action_dim
    draws = [numbered_generator(cfg.seed, one, PINK_NOISE).standard_normal(shape) for one in past.tolist() if one >= 0]
    action = np.einsum("k,kea->ea", _PINK[: len(draws)], np.stack(draws))
    return action.clip(-1, 1).astype(np.float32) * _used(cfg, task_ids)


def _pink(count: int) -> np.ndarray:
    weights = np.cumprod([1.0, *((np.arange(1, count) - 0.5) / np.arange(1, count))])
    return weights / np.linalg.norm(weights)


_PINK = _pink(16)


@torch.no_grad()
def prior_actions(
    model: WorldModel,
    obs: np.ndarray,
    task_ids: np.ndarray,
    rng: np.random.Generator,
    own: slice = slice(None),
) -> np.ndarray:
    """Sample the policy prior at observations [E, O] with numbers of a generator of the host: [E, A] float32.

    Args:
        model: its policy prior acts.
        obs: of the environments that ``own`` names.
        task_ids: of all environments.
        rng: draws for all of them.
        own: those that act here.
    """
    cfg, device = model.cfg, model.bins.device
    eps = torch.from_numpy(rng.standard_normal((len(task_ids), cfg.action_dim), np.float32)[own]).to(device)
    context = model.context(torch.from_numpy(task_ids[own]).to(device))
    shift = None
    if cfg.augment_eval and cfg.observes_images:
        shift = torch.from_numpy(rng.integers(0, 2 * SHIFT + 1, (len(task_ids), 2))[own]).to(device)
    action, _ = model.pi(model.encode(observations(obs, cfg).to(device), context, shift), context, eps)
    return action.cpu().numpy()


def random_actor(cfg: Config, seed: int) -> Actor:
    """Let :func:`uniform_actions` act."""
    rng = np.random.default_rng(seed)

    def act(obs: np.ndarray, t0: np.ndarray, task_ids: np.ndarray) -> np.ndarray:
        return uniform_actions(cfg, task_ids, rng)

    return act


def noisy_actor(cfg: Config, actor: Actor, std: float, seed: int) -> Actor:
    """Add Gaussian noise to an actor's actions on each task's own dimensions, clipped to [-1, 1]."""
    rng = np.random.default_rng(seed)

    def act(obs: np.ndarray, t0: np.ndarray, task_ids: np.ndarray) -> np.ndarray:
        action = actor(obs, t0, task_ids)
        noise = rng.standard_normal(action.shape, np.float32)
        return np.clip(action + np.float32(std) * noise, -1, 1) * _used(cfg, task_ids)

    return act


def _used(cfg: Config, task_ids: np.ndarray) -> np.ndarray:
    """Mark the action dimensions that the tasks have, bool [E, A]."""
    sizes = np.array([spec.action_dim for spec in cfg.task_specs])
    return np.arange(cfg.action_dim) < sizes[task_ids, None]
