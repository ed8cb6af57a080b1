"""A batch of training slices."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from tensordict import NonTensorData
from torch import Tensor

from tdmpc2.config import Config


class Batch(NamedTuple):
    """Slices of H steps, time-major; entry t of action and reward leads from obs[t] to obs[t+1]."""

    obs: Tensor  # [H+1, B, O] float32
    action: Tensor  # [H, B, A] float32
    reward: Tensor  # [H, B, 1] float32
    task: Tensor  # [B] int64
    teacher_reward: Tensor | None = None  # [1 to H, B, 1] float32, the teacher's reward of the same steps
    teacher_value: Tensor | None = None  # [1 to H, B, 1] float32, its value
    terminated: Tensor | None = None  # [H, B, 1] float32, 1 where a step ended its episode for good
    demonstrated: Tensor | None = None  # [1, B, 1] float32, 1 where the policy is to imitate the slice's actions
    teacher_policy: Tensor | None = (
        None  # [1 to H, B, 2A] float32, its policy: mean before tanh, log standard deviation
    )
    teacher_plan: Tensor | None = None  # [1 to H, B, A] float32, the mean action of its plans

    @classmethod
    def from_any(cls, batch: Any) -> Batch:
        """Read the fields of a named tuple, a dict or a tensordict.

        Raises:
            ValueError: a field is missing or no tensor; the teacher's columns and ``terminated`` may be missing.
        """
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

    def check(self, cfg: Config, like: Tensor) -> None:
        """Require the shapes and types that the class declares, so that nothing broadcasts by accident.

        Args:
            cfg: of the model.
            like: a tensor with the model's device and type of numbers.

        Raises:
            ValueError: a field has another shape, type or device.
        """
        if cfg.episodic and self.terminated is None:
            raise ValueError("The batch's 'terminated' is missing, which episodic=true learns from: pass [H, B, 1]")
        horizon, batch = cfg.horizon, self.obs.shape[1] if self.obs.ndim == 2 + len(cfg.obs_shape) else 0
        wanted = {
            "obs": (horizon + 1, batch, *cfg.obs_shape),
            "action": (horizon, batch, cfg.action_dim),
            "reward": (horizon, batch, 1),
            "terminated": (horizon, batch, 1),
            "demonstrated": (1, batch, 1),
        }
        widths = {"teacher_policy": 2 * cfg.action_dim, "teacher_plan": cfg.action_dim}
        for name, tensor in self._columns():
            if name.startswith("teacher_") and tensor.ndim == 3 and 1 <= len(tensor) <= horizon:
                wanted[name] = (len(tensor), batch, widths.get(name, 1))
            if tensor.device != like.device:
                raise ValueError(
                    f"The batch's '{name}' is on {tensor.device}, the agent on {like.device}: use batch.to()"
                )
            dtype = torch.uint8 if name == "obs" and cfg.observes_images else like.dtype
            if name != "task" and tensor.dtype != dtype:
                raise ValueError(f"The batch's '{name}' is {tensor.dtype}, expected {dtype}: convert it")
            if name != "task" and (not batch or tensor.shape != wanted.get(name)):
                forms = {"obs": "[H+1, B, O]", "teacher_policy": "[H, B, 2A]", "teacher_plan": "[H, B, A]"}
                form = {**forms, "action": "[H, B, A]"}.get(name, "[H, B, 1]")
                raise ValueError(
                    f"The batch's '{name}' has shape {list(tensor.shape)}, expected {form} with H={horizon}, "
                    f"O={', '.join(map(str, cfg.obs_shape))}, A={cfg.action_dim} and one B > 0 for all"
                )
        if not cfg.multitask:
            return
        if self.task.shape != (batch,) or self.task.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"The batch's 'task' is {list(self.task.shape)} of {self.task.dtype}, expected int64 [{batch}]"
            )

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to another device."""
        to_gpu = torch.device(device).type == "cuda"  # the other way, reading could begin before the copy has ended
        return self._replace(**{name: tensor.to(device, non_blocking=to_gpu) for name, tensor in self._columns()})

    @classmethod
    def joined(cls, first: Batch, second: Batch) -> Batch:
        """Put the slices of two batches with the same columns side by side, those of the first before the others."""
        parts = {name: (tensor, getattr(second, name)) for name, tensor in first._columns()}
        return cls(**{name: torch.cat(pair, 0 if name == "task" else 1) for name, pair in parts.items()})

    def pin_memory(self) -> Batch:
        """Copy the batch into page-locked memory, from which a GPU copies without the CPU."""
        return self._replace(**{name: tensor.pin_memory() for name, tensor in self._columns()})

    def _columns(self) -> list[tuple[str, Tensor]]:
        return [(name, tensor) for name, tensor in self._asdict().items() if tensor is not None]
