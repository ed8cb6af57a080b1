"""Rows of an episode as records: observation, action, reward side by side.

A slice of an episode is then one stretch of memory, and a batch one gather. Records are kept as 32-bit words so that
the same code serves float32 and float16 (observation and action; the reward stays float32).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class RowFormat:
    """Layout of a record of O + A + 1 numbers.

    Attributes:
        obs_dim: O, padded.
        action_dim: A, padded.
        dtype: of observation and action, ``float32`` or ``float16``.
    """

    obs_dim: int
    action_dim: int
    dtype: str = "float32"

    @property
    def record(self) -> np.dtype:
        """The record as a numpy type with the fields obs, action and reward."""
        fields = [("obs", self.dtype, (self.obs_dim,)), ("action", self.dtype, (self.action_dim,)), ("reward", "<f4")]
        return np.dtype(fields, align=True)

    @property
    def words(self) -> int:
        """Size W of a record in 32-bit words."""
        return self.record.itemsize // 4

    def split(self, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """View parts of records [..., W] int32: obs [..., O] and action [..., A] as stored, reward [...] float32."""
        values = words.view(DTYPES[self.dtype])
        end = self.obs_dim + self.action_dim
        return values[..., : self.obs_dim], values[..., self.obs_dim : end], words.view(torch.float32)[..., -1]

    def join(self, obs: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Join obs [..., O], action [..., A] and reward [...] to records [..., W] int32."""
        words = torch.zeros(*reward.shape, self.words, dtype=torch.int32, device=reward.device)
        for view, values in zip(self.split(words), (obs, action, reward), strict=True):
            view.copy_(values)
        return words
