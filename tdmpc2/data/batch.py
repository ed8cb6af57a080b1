"""A batch of training slices."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from tensordict import NonTensorData
from torch import Tensor


class Batch(NamedTuple):
    """Slices of H steps, time-major; entry t of action and reward leads from obs[t] to obs[t+1]."""

    obs: Tensor  # [H+1, B, O] float32
    action: Tensor  # [H, B, A] float32
    reward: Tensor  # [H, B, 1] float32
    task: Tensor  # [B] int64
    teacher_reward: Tensor | None = None  # [1 to H, B, 1] float32, the teacher's reward of the same steps
    teacher_value: Tensor | None = None  # [1 to H, B, 1] float32, its value
    terminated: Tensor | None = None  # [H, B, 1] float32, 1 where a step ended its episode for good

    @classmethod
    def from_any(cls, batch: Any) -> Batch:
        """Read the fields of a named tuple, a dict or a tensordict.

        Raises:
            ValueError: a field is missing or no tensor; the teacher's columns and ``terminated`` may be missing.
        """
        if isinstance(batch, cls):
            return batch
        get = batch.get if hasattr(batch, "get") else lambda name, default: getattr(batch, name, default)
        fields: dict[str, Any] = {}
        for name in cls._fields:
            value = get(name, None)
            if isinstance(value, NonTensorData):  # a tensordict's None
                value = value.data
            if not (isinstance(value, Tensor) or (value is None and name in cls._field_defaults)):
                kind = "missing" if value is None else f"a {type(value).__name__}"
                raise ValueError(f"The batch's '{name}' is {kind}: pass tensors obs, action, reward and task")
            fields[name] = value
        return cls(**fields)

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to another device."""
        to_gpu = torch.device(device).type == "cuda"  # the other way, reading could begin before the copy has ended
        return self._replace(**{name: tensor.to(device, non_blocking=to_gpu) for name, tensor in self._columns()})

    def pin_memory(self) -> Batch:
        """Copy the batch into page-locked memory, from which a GPU copies without the CPU."""
        return self._replace(**{name: tensor.pin_memory() for name, tensor in self._columns()})

    def _columns(self) -> list[tuple[str, Tensor]]:
        return [(name, tensor) for name, tensor in self._asdict().items() if tensor is not None]
