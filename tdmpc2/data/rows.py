"""Rows of an episode as records: observation, action, reward side by side.

A slice of an episode is then one stretch of memory, and a batch one gather. Records are kept as 32-bit words so that
the same code serves float32 and float16 (observation and action; the reward stays float32).
"""

from __future__ import annotations

import math
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


@dataclass(frozen=True)
class FrameFormat:
    """Layout of a record of one frame, O + A + 1 numbers: of observations with the newest frames side by side.

    Each frame is stored once, though it is part of several observations: a batch puts them together again, and repeats
    the first frame of an episode where there are no older ones.

    Attributes:
        shape: of the images of an observation, (C, height, width).
        action_dim: A.
        stacked: frames of an observation, oldest first.
        state_dim: O, numbers that are observed beside the images: observations are then the bytes of both, the
            numbers first, uint8 [4 O + C height width].
    """

    shape: tuple[int, int, int]
    action_dim: int
    stacked: int = 3
    state_dim: int = 0

    @property
    def frame(self) -> tuple[int, int, int]:
        """Shape of a single frame."""
        channels, height, width = self.shape
        return channels // self.stacked, height, width

    @property
    def frame_words(self) -> int:
        """Size of a frame in 32-bit words."""
        return -(-math.prod(self.frame) // 4)

    @property
    def words(self) -> int:
        """Size W of a record in 32-bit words."""
        return self.frame_words + self.state_dim + self.action_dim + 1

    def split(self, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """View parts of records [..., W] int32: frame uint8 [..., *frame], action [..., A] and reward [...] float32."""
        numbers = words[..., self.frame_words + self.state_dim :].view(torch.float32)
        return self.frames(words[..., : self.frame_words]), numbers[..., :-1], numbers[..., -1]

    def states(self, words: Tensor) -> Tensor:
        """View the numbers that were observed beside the frame, [..., O] float32."""
        return words[..., self.frame_words : self.frame_words + self.state_dim].view(torch.float32)

    def frames(self, words: Tensor) -> Tensor:
        """View the frames in the first words of records, uint8 [..., *frame]."""
        return words.view(torch.uint8)[..., : math.prod(self.frame)].unflatten(-1, self.frame)

    def join(self, obs: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Join the newest frame of obs, what is observed beside it, action and reward to records [..., W]."""
        words = torch.zeros(*reward.shape, self.words, dtype=torch.int32, device=reward.device)
        if self.state_dim:
            self.states(words).copy_(obs[..., : 4 * self.state_dim].contiguous().view(torch.float32))
            obs = obs[..., 4 * self.state_dim :].unflatten(-1, self.shape)
        newest = obs[..., -self.frame[0] :, :, :]
        for view, values in zip(self.split(words), (newest, action, reward), strict=True):
            view.copy_(values)
        return words
