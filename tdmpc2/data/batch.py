"""A batch of training slices."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Slices of H steps, time-major; entry t of action and reward leads from obs[t] to obs[t+1]."""

    obs: Tensor  # [H+1, B, O] float32
    action: Tensor  # [H, B, A] float32
    reward: Tensor  # [H, B, 1] float32
    task: Tensor  # [B] int64
    teacher_reward: Tensor | None = None  # [1 to H, B, 1] float32, the teacher's reward of the same steps
    teacher_value: Tensor | None = None  # [1 to H, B, 1] float32, its value

    @classmethod
    def from_any(cls, batch: Any) -> Batch:
        """Read the fields of a named tuple, a dict or a tensordict; the teacher's columns may be absent."""
        if isinstance(batch, cls):
            return batch
        get = batch.get if hasattr(batch, "get") else lambda name, default: getattr(batch, name, default)
        fields = {name: get(name, None) for name in cls._fields}
        # A tensordict wraps None into an object of its own.
        return cls(**{name: value if isinstance(value, Tensor) else None for name, value in fields.items()})  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to another device."""
        to_gpu = torch.device(device).type == "cuda"  # the other way, reading could begin before the copy has ended
        return self._replace(**{name: tensor.to(device, non_blocking=to_gpu) for name, tensor in self._columns()})

    def pin_memory(self) -> Batch:
        """Copy the batch into page-locked memory, from which a GPU copies without the CPU."""
        return self._replace(**{name: tensor.pin_memory() for name, tensor in self._columns()})

    def _columns(self) -> list[tuple[str, Tensor]]:
        return [(name, tensor) for name, tensor in self._asdict().items() if tensor is not None]
