"""The random numbers of one update, drawn at once, so that an update is a function of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.nn.pixels import random_shift
from tdmpc2.nn.world_model import draw_heads

#: Sequences that the target ``ranking`` compares in each state. One slice of the batch in as many gives a state, so
#: that there are as many sequences as slices.
NUM_SEQUENCES = 8
#: Standard deviations of a sequence's actions around those of the data; its own lies in between, log-uniformly.
WIDTHS = (0.1, 2.0)


class UpdateNoise(NamedTuple):
    """All random numbers of one update."""

    target_eps: Tensor  # [H, B, A] standard normal
    target_heads: Tensor  # [2]
    policy_eps: Tensor  # [H+1, B, A] standard normal
    policy_heads: Tensor  # [2]
    value_dropout: Tensor | None  # [Q, H, B, M] factors
    policy_dropout: Tensor | None  # [2, H+1, B, M] factors
    shift: Tensor | None = None  # [H+1, B, 2] of the images observed at each time
    offsets: Tensor | None = None  # [H, B, S, A] of the action sequences of the distillation target ``ranking``

    def for_rows(self, rows: slice) -> UpdateNoise:
        """Select the numbers of some rows of the batch."""
        return self._replace(
            target_eps=self.target_eps[:, rows],
            policy_eps=self.policy_eps[:, rows],
            value_dropout=None if self.value_dropout is None else self.value_dropout[:, :, rows],
            policy_dropout=None if self.policy_dropout is None else self.policy_dropout[:, :, rows],
            shift=None if self.shift is None else self.shift[:, rows],
            offsets=None if self.offsets is None else self.offsets[:, rows],
        )


def draw_update_noise(
    cfg: Config, batch_size: int, device: torch.device, generator: torch.Generator | None, *, ranking: bool = False
) -> UpdateNoise:
    """Draw the random numbers of one update of ``batch_size`` slices, with those of ``ranking`` if needed."""

    def normal(steps: int) -> Tensor:
        return torch.randn(steps, batch_size, cfg.action_dim, dtype=torch.float32, device=device, generator=generator)

    def dropout(heads: int, steps: int) -> Tensor | None:
        shape = (heads, steps, batch_size, cfg.mlp_dim)
        return None if cfg.dropout == 0 else dropout_factors(shape, cfg.dropout, device, generator)

    return UpdateNoise(
        target_eps=normal(cfg.horizon),
        target_heads=draw_heads(cfg.num_q, device, generator),
        policy_eps=normal(cfg.horizon + 1),
        policy_heads=draw_heads(cfg.num_q, device, generator),
        value_dropout=dropout(cfg.num_q, cfg.horizon),
        policy_dropout=dropout(2, cfg.horizon + 1),
        shift=random_shift((cfg.horizon + 1, batch_size), device, generator) if cfg.observes_images else None,
        offsets=draw_offsets(cfg, batch_size, device, generator) if ranking else None,
    )


def check_shares(ranking: bool, batch_size: int, processes: int) -> None:
    """Raise ``ValueError`` if several processes would compare sequences in other states than one process does."""
    if ranking and processes > 1 and batch_size % (NUM_SEQUENCES * processes):
        raise ValueError(
            f"distillation_targets=ranking takes one slice in {NUM_SEQUENCES} of each process's share: with "
            f"{processes} processes batch_size={batch_size} must be a multiple of {NUM_SEQUENCES * processes}"
        )


def draw_offsets(cfg: Config, batch_size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw how far the actions of the sequences that ``ranking`` compares lie from those of the data, [H, B, S, A]."""
    shape = (cfg.horizon, batch_size, NUM_SEQUENCES, cfg.action_dim)
    normal = torch.randn(shape, dtype=torch.float32, device=device, generator=generator)
    uniform = torch.rand((1, *shape[1:3], 1), dtype=torch.float32, device=device, generator=generator)
    low, high = (math.log(width) for width in WIDTHS)
    return normal * torch.exp(low + (high - low) * uniform)


def dropout_factors(
    shape: tuple[int, ...], rate: float, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Draw dropout factors: 0 with probability ``rate``, else 1 / (1 - rate), independently.

    A rate is small, so what is drawn is not a number for each element but the gaps between zeros, which have a
    geometric distribution: a hundredth of the numbers. They run out before the end in one of 10^23 draws.
    """
    size = math.prod(shape)
    count = math.ceil(size * rate + 10 * math.sqrt(size * rate) + 10)
    uniform = torch.rand(count, dtype=torch.float32, device=device, generator=generator)
    gaps = (torch.log1p(-uniform) / math.log1p(-rate)).long() + 1
    factors = torch.full(
        (size + 1,), 1 / (1 - rate), dtype=torch.float32, device=device
    )  # the last one takes the zeros beyond the end
    return factors.index_fill_(0, (gaps.cumsum(0) - 1).clamp_(max=size), 0)[:size].view(shape)
