"""The TD-MPC2 world model: encoder, latent dynamics, reward, Q ensemble and policy prior (specification, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdmpc2.checkpoints import layouts
from tdmpc2.config import Config
from tdmpc2.nn.layers import Linear, NormedLinear, NormMish, QEnsemble, mlp, simnorm
from tdmpc2.nn.math import bin_centres, bounded_log_std, decode, squashed_gaussian_stats


class TaskContext(NamedTuple):
    """Everything the networks, targets and plans need of each row's task, looked up once."""

    embedding: Tensor | None  # [..., task_dim]; None for single-task models
    action_mask: Tensor | None  # [..., A]; None for single-task models
    discount: Tensor  # [..., 1]; [1] for single-task models

    def unsqueeze(self, dim: int) -> TaskContext:
        """The same context for inputs with one more leading axis at ``dim``."""
        return TaskContext(*(None if x is None else x.unsqueeze(dim) for x in self))  # type: ignore[arg-type]

    def for_rows(self, rows: slice | Tensor) -> TaskContext:
        """Select rows of the context of a multi-task model."""
        return TaskContext(*(None if x is None else x[rows] for x in self))  # type: ignore[arg-type]


Task = Tensor | int | TaskContext | None


class WorldModel(nn.Module):
    """All networks of one agent. Every method takes task ids [...] (or a :class:`TaskContext`) as ``task``.

    Leading axes broadcast from the right, so one task per batch column serves a time-major [T, B, .] input.
    """

    def __init__(self, cfg: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        latent, width, bins = cfg.latent_dim, cfg.mlp_dim, cfg.num_bins
        task_dim = cfg.task_dim if cfg.multitask else 0
        if cfg.multitask:
            self._task_emb = nn.Embedding(len(cfg.task_specs), task_dim)
        hidden = [cfg.enc_dim] * max(cfg.num_enc_layers - 1, 1)
        latent_norm = partial(simnorm, group=cfg.simnorm_dim)
        self._encoder = nn.ModuleDict({"state": mlp(cfg.obs_dim + task_dim, hidden, latent, latent_norm)})
        joint = latent + task_dim + cfg.action_dim
        self._dynamics = mlp(joint, [width, width], latent, latent_norm)
        self._reward = mlp(joint, [width, width], bins)
        self._pi = mlp(latent + task_dim, [width, width], 2 * cfg.action_dim)
        self._Qs = QEnsemble(cfg.num_q, joint, width, bins)
        self._target_Qs = QEnsemble(cfg.num_q, joint, width, bins).requires_grad_(False)

        masks = torch.zeros(len(cfg.task_specs), cfg.action_dim)
        for row, spec in zip(masks, cfg.task_specs, strict=True):
            row[: spec.action_dim] = 1
        self.register_buffer("action_masks", masks, persistent=False)
        self.register_buffer("bins", bin_centres(bins, cfg.vmin, cfg.vmax), persistent=False)
        self.register_buffer("discounts", torch.tensor(cfg.discounts), persistent=False)
        self.register_buffer("rho", cfg.rho ** torch.arange(cfg.horizon + 1), persistent=False)
        self._init_weights(generator)

    action_masks: Tensor
    bins: Tensor
    discounts: Tensor
    rho: Tensor  # rho^t, [H+1]

    @torch.no_grad()
    def _init_weights(self, generator: torch.Generator | None) -> None:
        # The specification truncates at 100 standard deviations, which no draw reaches.
        for module in self.modules():
            if isinstance(module, Linear):
                module.weight.normal_(0, 0.02, generator=generator)
            elif isinstance(module, nn.Embedding):
                module.weight.uniform_(-0.02, 0.02, generator=generator)
        for index, param in enumerate(self._Qs.params[:8]):
            if param.ndim == 3:
                param.normal_(0, 0.02, generator=generator)
            else:
                param.fill_(float(index % 4 == 2))
        last = self._reward[-1]
        assert isinstance(last, Linear)
        last.weight.zero_()
        self.reset_target()

    @torch.no_grad()
    def reset_target(self) -> None:
        """Copy the online Q heads into the target heads."""
        for target, online in zip(self._target_Qs.params, self._Qs.params, strict=True):
            target.copy_(online)

    @torch.no_grad()
    def update_target(self, tau: float) -> None:
        """Move the target heads by a fraction ``tau`` towards the online heads."""
        torch._foreach_lerp_(list(self._target_Qs.params), list(self._Qs.params), tau)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load any public layout, quantised or not (specification sections 15 and 16).

        Raises:
            ValueError: names or shapes differ; the message lists them and names the likely fix.
        """
        state = layouts.to_layout_a(state_dict)
        if strict:
            layouts.check_state(state, self.state_dict(), "the state dict")
        return super().load_state_dict(state, strict=strict, assign=assign)

    def set_precision(self, precision: str | Callable[[str], str], wide: torch.dtype = torch.float32) -> WorldModel:
        """Convert a float32 model's weight matrices to the formats it is to act in; it can no longer be trained.

        LayerNorms, the embedding and all that follows a product stay float32. There are no target heads of its own
        afterwards: they are the online heads.

        Args:
            precision: one of :data:`~tdmpc2.nn.formats.FORMATS` for all matrices, the encoder's excepted: it runs once
                per plan, where planning repeats the others for every sample. Or the format of each matrix by its name.
            wide: what int8 weights are widened to where a product is not int8 itself; the encoder's to float32.
        """
        format_of = precision if callable(precision) else partial(planning_format, precision)
        self.requires_grad_(False)
        self.use_norm_mish(None)
        networks: dict[str, Any] = {name: getattr(self, name) for name in ("_dynamics", "_reward", "_pi")}
        for name, network in {"_encoder.state": self._encoder["state"], **networks}.items():
            for index, layer in enumerate(network):
                layer.set_format(format_of(f"{name}.{index}.weight"), wide if name in networks else torch.float32)
        for index in range(3):
            self._Qs.set_format(index, format_of(f"_Qs.params.{4 * index}"), wide)
        self._target_Qs = self._Qs
        return self

    def use_norm_mish(self, function: NormMish | None) -> None:
        """Train with an operator for Mish of LayerNorm, see :class:`~tdmpc2.nn.layers.NormedLinear`."""
        for module in self.modules():
            if isinstance(module, (NormedLinear, QEnsemble)):
                module.norm_mish = function

    def weight_bytes(self) -> int:
        """Bytes of all weights as they lie in memory, scales included."""
        tensors = {t.data_ptr(): t.nbytes for t in (*self.parameters(), *self._scales())}
        return sum(tensors.values())

    def _scales(self) -> list[Tensor]:
        return [buffer for name, buffer in self.named_buffers() if name.rpartition(".")[2].startswith("scale")]

    # -- tasks ------------------------------------------------------------------------------------------------------

    def context(self, task: Task) -> TaskContext:
        """Look up embedding, action mask and discount of task ids [...].

        Looked-up rows with norm above 1 are rescaled in the table first, outside the gradient (section 3).

        Raises:
            ValueError: a multi-task model was given no task.
        """
        if isinstance(task, TaskContext):
            return task
        if not self.cfg.multitask:
            return TaskContext(None, None, self.discounts)
        if task is None:
            raise ValueError(f"This model has {len(self.cfg.task_specs)} tasks ('{self.cfg.task}'): pass a task id")
        ids = torch.as_tensor(task, device=self.action_masks.device)
        table = self._task_emb.weight
        with torch.no_grad():
            rows = table[ids]
            norm = rows.norm(dim=-1, keepdim=True)
            table[ids] = torch.where(norm > 1, rows / (norm + 1e-7), rows)
        return TaskContext(F.embedding(ids, table), self.action_masks[ids], self.discounts[ids].unsqueeze(-1))

    # -- networks ---------------------------------------------------------------------------------------------------

    def encode(self, obs: Tensor, task: Task = None) -> Tensor:
        """Latent of observations, [..., O] -> [..., D]."""
        return self._encoder["state"](*_parts(obs, self.context(task).embedding))

    def next(self, z: Tensor, a: Tensor, task: Task = None) -> Tensor:
        """Next latent, [..., D] and [..., A] -> [..., D]."""
        return self._dynamics(*_parts(z, self.context(task).embedding, a))

    def reward(self, z: Tensor, a: Tensor, task: Task = None) -> Tensor:
        """Reward logits, [..., D] and [..., A] -> [..., K]."""
        return self._reward(*_parts(z, self.context(task).embedding, a))

    def pi(self, z: Tensor, task: Task = None, eps: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Sample the policy prior (specification section 5).

        Args:
            z: [..., D].
            eps: standard-normal draw [..., A]; drawn from torch's default generator if not given.

        Returns:
            The action [..., A] in [-1, 1] and a dict with ``mean`` (squashed), ``presquash_mean`` and ``log_std``
            [..., A], ``log_prob``, ``entropy`` and ``scaled_entropy`` [..., 1].
        """
        context = self.context(task)
        mean, raw = self._pi(*_parts(z, context.embedding)).chunk(2, -1)
        log_std = bounded_log_std(raw, self.cfg.log_std_min, self.cfg.log_std_max)
        eps = torch.randn_like(mean) if eps is None else eps
        active: Tensor | float = float(self.cfg.action_dim)
        if (mask := context.action_mask) is not None:
            mean, log_std, eps = mean * mask, log_std * mask, eps * mask
            active = mask.sum(-1, keepdim=True)
        action = torch.tanh(mean + eps * log_std.exp())
        stats = squashed_gaussian_stats(eps, log_std, action, active)
        return action, {
            "mean": torch.tanh(mean),
            "presquash_mean": mean,
            "log_std": log_std,
            **stats._asdict(),
        }

    def policy_mean(self, z: Tensor, task: Task = None) -> Tensor:
        """Noise-free action of the policy prior, [..., D] -> [..., A]: what :meth:`pi` calls ``mean``."""
        context = self.context(task)
        mean = self._pi(*_parts(z, context.embedding))[..., : self.cfg.action_dim]
        return torch.tanh(mean if context.action_mask is None else mean * context.action_mask)

    def Q(
        self,
        z: Tensor,
        a: Tensor,
        task: Task = None,
        return_type: str = "min",
        target: bool = False,
        *,
        heads: Tensor | None = None,
        dropout_mask: Tensor | None = None,
        detach: bool = False,
    ) -> Tensor:
        """State-action values (specification section 6). Dropout only where a mask is given.

        Args:
            z: [..., D].
            a: [..., A].
            return_type: ``all`` for the logits of every head [num_q, ..., K]; ``min`` or ``avg`` of two distinct
                random heads, decoded [..., 1].
            target: use the target heads.
            heads: the two heads of ``min`` and ``avg``, [2]; drawn with :func:`draw_heads` if not given.
            dropout_mask: factors on the first layer's affine output of the evaluated heads, [n, ..., M].
            detach: treat the weights as constants.
        """
        if return_type not in ("min", "avg", "all"):
            raise ValueError(f"return_type='{return_type}' is not one of min, avg, all")
        ensemble = self._target_Qs if target else self._Qs
        parts = _parts(z, self.context(task).embedding, a)
        if return_type == "all":
            return ensemble(*parts, dropout_mask=dropout_mask, detach=detach)
        if self.cfg.num_q > 2:
            heads = draw_heads(self.cfg.num_q, z.device) if heads is None else heads
        else:
            heads = None
        values = decode(ensemble(*parts, heads=heads, dropout_mask=dropout_mask, detach=detach), self.bins)
        return values.amin(0) if return_type == "min" else values.mean(0)


def draw_heads(num_q: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Two distinct head indices [2], drawn on the device."""
    return torch.rand(num_q, device=device, generator=generator).topk(2).indices


#: int8 keeps the inputs of these in floating point: quantised, they made half of the squared error of a plan's value.
_FLOAT_INPUTS = ("_dynamics.2.weight", "_Qs.params.8")


def planning_format(precision: str, matrix: str) -> str:
    """Format of a weight matrix in a model that plans in ``precision``."""
    if matrix.startswith("_encoder."):
        return "fp32"
    return "int8-weight-only" if precision == "int8" and matrix in _FLOAT_INPUTS else precision


def _parts(*parts: Tensor | None) -> list[Tensor]:
    return [part for part in parts if part is not None]
