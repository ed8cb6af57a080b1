"""Bytes that a configuration asks for, by arithmetic, before anything is allocated.

They are lower bounds: what is refused could not have worked, and names the keys that ask for most.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tdmpc2.config.config import Config
from tdmpc2.nn.convolutions import places
from tdmpc2.support.files import size_text

_FLOAT = 4
_TARGET = "the target heads"


class Part(NamedTuple):
    """Something that is kept in memory."""

    name: str
    bytes: int
    keys: tuple[str, ...]  # that decide about it


def model_parts(cfg: Config) -> list[Part]:
    """Weights of the model, target heads included."""
    inputs = cfg.latent_dim + cfg.action_dim + cfg.task_dim
    wide = cfg.mlp_dim * cfg.mlp_dim
    trunk = inputs * cfg.mlp_dim + wide
    others = trunk + cfg.mlp_dim * cfg.latent_dim  # dynamics
    others += trunk + cfg.mlp_dim * cfg.num_bins  # reward
    others += (cfg.latent_dim + cfg.task_dim) * cfg.mlp_dim + wide + cfg.mlp_dim * 2 * cfg.action_dim  # policy
    if cfg.episodic:
        others += (cfg.latent_dim + cfg.task_dim) * cfg.mlp_dim + wide + cfg.mlp_dim  # termination
    heads = cfg.num_q * (trunk + cfg.mlp_dim * cfg.num_bins)
    return [
        *([_pixel_encoder(cfg)] if cfg.observes_images else []),
        *([_state_encoder(cfg)] if cfg.observes_state else []),
        Part("the networks", _FLOAT * others, ("mlp_dim", "latent_dim", "num_bins")),
        Part("the Q heads", _FLOAT * heads, ("num_q", "mlp_dim", "latent_dim", "num_bins")),
        Part(_TARGET, _FLOAT * heads, ("num_q", "mlp_dim", "latent_dim", "num_bins")),
        Part("the task embedding", _FLOAT * len(cfg.task_specs) * cfg.task_dim, ("task_dim",)),
    ]


def _state_encoder(cfg: Config) -> Part:
    weights = (cfg.obs_dim + cfg.task_dim) * cfg.enc_dim + cfg.enc_dim * cfg.latent_dim
    weights += max(cfg.num_enc_layers - 2, 0) * cfg.enc_dim * cfg.enc_dim
    return Part("the encoder", _FLOAT * weights, ("obs_dim", "enc_dim", "num_enc_layers", "latent_dim"))


def _pixel_encoder(cfg: Config) -> Part:
    """Count the weights of four convolutions of 7, 5, 3 and 3 pixels, and of the map to the latent size."""
    channels, *sides = cfg.image_shape
    width = cfg.num_channels
    features = width * math.prod(map(places, sides))
    weights = 49 * channels * width + (25 + 9 + 9) * width * width
    weights += features * cfg.latent_dim if features != cfg.latent_dim or cfg.observes_state else 0
    return Part("the encoder of images", _FLOAT * weights, ("num_channels", "latent_dim"))


def plan_parts(cfg: Config) -> list[Part]:
    """One plan: its action sequences, and the widest layer of its samples."""
    sequences = cfg.horizon * cfg.num_samples * cfg.action_dim
    widest = cfg.num_samples * max(cfg.mlp_dim, cfg.num_bins, cfg.latent_dim)
    return [Part("a plan", _FLOAT * (sequences + widest), ("num_samples", "horizon", "mlp_dim", "num_bins"))]


def batch_parts(cfg: Config) -> list[Part]:
    """A batch and the predictions of it that an update keeps for its gradients."""
    row = cfg.action_dim + 2 + cfg.obs_dim * cfg.observes_state
    kept = cfg.latent_dim + 2 * cfg.mlp_dim + cfg.num_bins * (1 + cfg.num_q) + cfg.episodic * 2 * cfg.mlp_dim
    size = _FLOAT * cfg.batch_size * ((cfg.horizon + 1) * row + cfg.horizon * kept)
    parts = [Part("a batch and its gradients", size, ("batch_size", "horizon", "mlp_dim", "num_bins", "num_q"))]
    if cfg.observes_images:  # bytes, and the float32 output of the first convolution, about a quarter of the places
        channels, height, width = cfg.image_shape
        image = channels * height * width + _FLOAT * ((height - 5) // 2) * ((width - 5) // 2) * cfg.num_channels
        images = cfg.batch_size * (cfg.horizon + 1) * image
        parts.append(Part("the images of a batch", images, ("batch_size", "horizon", "num_channels")))
    return parts


def training_parts(cfg: Config) -> list[Part]:
    """Weights with gradients, the optimiser's two moments and their average, if there is one, and a batch.

    Target heads have none of these, nor has what is frozen.
    """
    average = bool(cfg.ema_decay)
    trained = 1 + average if cfg.freeze else 4 + average
    copies = {_TARGET: 1 + average}
    parts = [part._replace(bytes=copies.get(part.name, trained) * part.bytes) for part in model_parts(cfg)]
    return parts + batch_parts(cfg)


def check_memory(cfg: Config, parts: list[Part], available: int) -> None:
    """Raise ``ValueError`` if some parts take more than ``available`` bytes; it names the largest and its keys."""
    needed = sum(part.bytes for part in parts)
    if needed <= available:
        return
    largest = max(parts, key=lambda part: part.bytes)
    values = ", ".join(f"{key}={getattr(cfg, key)}" for key in largest.keys)
    raise ValueError(
        f"{values}: {largest.name} alone would take {size_text(largest.bytes)}, and {size_text(max(available, 0))} of "
        "memory are free: make one of these smaller"
    )
