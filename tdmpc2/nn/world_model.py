"""The TD-MPC2 world model: encoder, latent dynamics, reward, Q ensemble and policy prior.

docs/algorithm.md, "World model" and "Networks and initialisation".
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdmpc2.checkpoints import layouts, sizes
from tdmpc2.config import Config
from tdmpc2.nn.layers import MLP, Linear, QEnsemble, identity, mlp, simnorm
from tdmpc2.nn.math import bin_centres, bounded_log_std, decode, squashed_gaussian_stats
from tdmpc2.nn.pixels import PixelEncoder, split_observation
from tdmpc2.support.text import shown


class TaskContext(NamedTuple):
    """Everything the networks, targets and plans need of each row's task, looked up once."""

    embedding: Tensor | None  # [..., task_dim]; None for single-task models
    action_mask: Tensor | None  # [..., A]; None for single-task models
    discount: Tensor  # [..., 1]; [1] for single-task models

    def unsqueeze(self, dim: int) -> TaskContext:
        """Insert a leading axis at ``dim``, for inputs that have one more."""
        return TaskContext(*(None if x is None else x.unsqueeze(dim) for x in self))  # type: ignore[arg-type]

    def for_rows(self, rows: slice | Tensor) -> TaskContext:
        """Select rows of the context of a multi-task model."""
        return TaskContext(*(None if x is None else x[rows] for x in self))  # type: ignore[arg-type]


Task = Tensor | int | TaskContext | None


class Network(NamedTuple):
    """One of the world model's networks."""

    name: str  # of its parameters, as in _dynamics
    module: MLP | QEnsemble
    inputs: tuple[str, ...]  # the parts of its input: obs, latent, task, action

    @property
    def observes(self) -> bool:
        """True if it takes observations: planning runs it once, and repeats the others for every sample."""
        return "obs" in self.inputs

    @property
    def matrices(self) -> list[str]:
        """Names of its weight matrices, one for each layer."""
        if isinstance(self.module, QEnsemble):
            return [f"{self.name}.params.{4 * layer}" for layer in range(3)]
        return [f"{self.name}.{layer}.weight" for layer in range(len(self.module))]


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
            self._task_emb = nn.Embedding(len(cfg.task_specs), task_dim, dtype=torch.float32)
        hidden = [cfg.enc_dim] * max(cfg.num_enc_layers - 1, 1)
        latent_norm = partial(simnorm, group=cfg.simnorm_dim)
        both = cfg.observes_images and cfg.observes_state  # what is added goes through one SimNorm
        self._encoder = nn.ModuleDict()
        if cfg.observes_images:
            group = 0 if both else cfg.simnorm_dim
            self._encoder["rgb"] = PixelEncoder(cfg.image_shape, cfg.num_channels, latent, group)
        if cfg.observes_state:
            self._encoder["state"] = mlp(cfg.obs_dim + task_dim, hidden, latent, identity if both else latent_norm)
        joint = latent + task_dim + cfg.action_dim
        self._dynamics = mlp(joint, [width, width], latent, latent_norm)
        self._reward = mlp(joint, [width, width], bins)
        if cfg.episodic:
            self._termination = mlp(latent + task_dim, [width, width], 1)
        self._pi = mlp(latent + task_dim, [width, width], 2 * cfg.action_dim)
        self._Qs = QEnsemble(cfg.num_q, joint, width, bins)
        self._target_Qs = QEnsemble(cfg.num_q, joint, width, bins).requires_grad_(False)

        masks = torch.zeros(len(cfg.task_specs), cfg.action_dim, dtype=torch.float32)
        for row, spec in zip(masks, cfg.task_specs, strict=True):
            row[: spec.action_dim] = 1
        self.register_buffer("action_masks", masks, persistent=False)
        self.register_buffer("bins", bin_centres(bins, cfg.vmin, cfg.vmax), persistent=False)
        self.register_buffer("discounts", torch.tensor(cfg.discounts, dtype=torch.float32), persistent=False)
        self.register_buffer("rho", cfg.rho ** torch.arange(cfg.horizon + 1, dtype=torch.float32), persistent=False)
        self._init_weights(generator)

    action_masks: Tensor
    bins: Tensor
    discounts: Tensor
    rho: Tensor  # rho^t, [H+1]

    @torch.no_grad()
    def _init_weights(self, generator: torch.Generator | None) -> None:
        # The reference truncates at 100 standard deviations, which no draw reaches.
        for module in self.modules():
            if isinstance(module, Linear):
                module.weight.normal_(0, 0.02, generator=generator)
            elif isinstance(module, nn.Conv2d):  # as PyTorch does it, but from the generator
                bound = 1 / module.weight[0].numel() ** 0.5
                for parameter in module.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)
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

    def with_settings(self, cfg: Config) -> WorldModel:
        """Give the same networks other settings, such as another planning budget; nothing is copied.

        Args:
            cfg: of the same sizes and tasks.
        """
        view = copy.copy(self)  # shares the tables of parameters and modules
        view.cfg = cfg
        return view

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load any public layout, quantised or not: docs/algorithm.md, "Checkpoint layouts".

        Raises:
            ValueError: names or shapes differ; the message lists them and names the likely fix.
        """
        state = layouts.to_layout_a(state_dict)
        if strict:
            sizes.check_state(state, self.state_dict(), "the state dict")
        return super().load_state_dict(state, strict=strict, assign=assign)

    def networks(self) -> list[Network]:
        """The networks that act, in the order of :data:`~tdmpc2.checkpoints.layouts.NETWORKS`.

        Precision, packing and quantisation go through this table, so that a new network is a new row.
        """
        absent = set()
        if not self.cfg.episodic:
            absent.add(layouts.TERMINATION)
        if not self.cfg.observes_state:
            absent.add(layouts.STATE_ENCODER)  # that of images stays as it is
        own = {name: inputs for name, inputs in layouts.NETWORKS.items() if name not in absent}
        return [Network(name, self.get_submodule(name), inputs) for name, inputs in own.items()]  # type: ignore[arg-type]

    # -- tasks ------------------------------------------------------------------------------------------------------

    def context(self, task: Task, *, train: bool = False) -> TaskContext:
        """Look up embedding, action mask and discount of task ids [...]. Embeddings have a norm of at most 1.

        Args:
            task: ids, or a context, which is returned as it is.
            train: rescale looked-up rows with norm above 1 in the table itself, outside the gradient, so that training
                goes on from there. Otherwise the table is not changed; the returned copy is rescaled.

        Raises:
            ValueError: a multi-task model was given no task, or what is no task id of its own (as a CPU notices).
        """
        if isinstance(task, TaskContext):
            return task
        if not self.cfg.multitask:
            return TaskContext(None, None, self.discounts)
        if task is None:
            raise ValueError(f"This model has {len(self.cfg.task_specs)} tasks ('{self.cfg.task}'): pass a task id")
        table = self._task_emb.weight
        try:
            ids = torch.as_tensor(task, device=self.action_masks.device)
            if ids.dtype not in (torch.int64, torch.int32):
                raise TypeError(f"task ids of type {ids.dtype}")
            embedding = F.embedding(ids, table)
        except (IndexError, TypeError) as error:  # checking before would wait for a GPU
            raise ValueError(
                f"task={shown(task)} has task ids that the model has not: it knows 0 to {len(table) - 1}"
            ) from error
        norm = embedding.detach().norm(dim=-1, keepdim=True)
        rescaled = torch.where(norm > 1, embedding / (norm + 1e-7), embedding)
        if train:
            with torch.no_grad():
                table[ids] = rescaled
            rescaled = F.embedding(ids, table)
        return TaskContext(rescaled, self.action_masks[ids], self.discounts[ids].unsqueeze(-1))

    # -- networks ---------------------------------------------------------------------------------------------------

    def encode(self, obs: Tensor, task: Task = None, shift: Tensor | None = None) -> Tensor:
        """Encode observations of ``cfg.obs_shape``, such as [..., O] or images [..., C, 64, 64] -> [..., D].

        Args:
            obs: float states, uint8 images, or the bytes of both (:func:`~tdmpc2.nn.pixels.split_observation`).
            shift: of each image, [..., 2], in training, and while acting with ``augment_eval``:
                :func:`~tdmpc2.nn.pixels.random_shift`.
        """
        cfg = self.cfg
        if not cfg.observes_images:
            return self._encoder["state"](*_parts(obs, self.context(task).embedding))
        if not cfg.observes_state:
            return self._encoder["rgb"](obs, shift)
        return self.encode_both(*split_observation(obs, cfg.obs_dim, cfg.image_shape), shift)

    def encode_both(self, state: Tensor, images: Tensor, shift: Tensor | None = None) -> Tensor:
        """Encode states [..., O] and images [..., C, 64, 64] that stand side by side -> [..., D]: ``obs=rgb+state``."""
        both = self._encoder["state"](state) + self._encoder["rgb"](images, shift)
        return simnorm(both, self.cfg.simnorm_dim)

    def next(self, z: Tensor, a: Tensor, task: Task = None) -> Tensor:
        """Predict the next latent, [..., D] and [..., A] -> [..., D]."""
        return self._dynamics(*_parts(z, self.context(task).embedding, a))

    def reward(self, z: Tensor, a: Tensor, task: Task = None) -> Tensor:
        """Predict logits of the reward, [..., D] and [..., A] -> [..., K]."""
        return self._reward(*_parts(z, self.context(task).embedding, a))

    def termination(self, z: Tensor, task: Task = None) -> Tensor:
        """Predict the logit of the episode having terminated on the way to this latent, [..., D] -> [..., 1].

        Raises:
            ValueError: only models of ``episodic`` tasks can.
        """
        if not self.cfg.episodic:
            raise ValueError("termination() is of models with episodic=true, and this one has episodic=false")
        return self._termination(*_parts(z, self.context(task).embedding))

    def pi(self, z: Tensor, task: Task = None, eps: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Sample the policy prior: docs/algorithm.md, "Policy prior".

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
        counted: Tensor | float = active  # in the density's constant: all of a model of many tasks
        if (mask := context.action_mask) is not None:
            mean, log_std, eps = mean * mask, log_std * mask, eps * mask
            active = mask.sum(-1, keepdim=True)
            counted = counted if context.embedding is not None else active  # a model of one task, padded from outside
        action = torch.tanh(mean + eps * log_std.exp())
        stats = squashed_gaussian_stats(eps, log_std, action, active, counted)
        return action, {
            "mean": torch.tanh(mean),
            "presquash_mean": mean,
            "log_std": log_std,
            "log_prob": stats.log_prob,  # one by one: torch 2.6 compiles no _asdict
            "entropy": stats.entropy,
            "scaled_entropy": stats.scaled_entropy,
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
        """Compute state-action values, with dropout only where a mask is given: docs/algorithm.md, "World model".

        Args:
            z: [..., D].
            a: [..., A].
            return_type: ``all`` for the logits of every head [num_q, ..., K], whatever ``heads`` says; ``min`` or
                ``avg`` of two distinct random heads, decoded [..., 1].
            target: use the target heads.
            heads: the two heads of ``min`` and ``avg``, [2], where there are more; drawn with :func:`draw_heads` if not
                given.
            dropout_mask: factors on the first layer's affine output of the evaluated heads, [n, ..., M].
            detach: treat the weights as constants.

        Raises:
            ValueError: an unknown ``return_type``.
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
    """Draw two distinct head indices [2], on the device."""
    return torch.rand(num_q, dtype=torch.float32, device=device, generator=generator).topk(2).indices


def _parts(*parts: Tensor | None) -> list[Tensor]:
    return [part for part in parts if part is not None]
