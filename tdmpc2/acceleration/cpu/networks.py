"""A world model's networks packed for the CPU kernels, and MPPI's functions on them.

The kernels compute what :mod:`tdmpc2.planner` does, each product in the format of its weight:

================  ==================================================================================================
weight            product
================  ==================================================================================================
float32, fp16     float32
bf16              inputs rounded to bf16, sums in float32
int8              every input row quantised to 8 bits between its smallest and its largest value, sums in int32
int8, widened     among int8 products (the last layers of dynamics and Q heads): the same with 12 bits;
                  otherwise as the type that it is widened to
================  ==================================================================================================

The parts of the first layers that all samples share (bias, task embedding, the latent of the first step), the actions'
parts and everything that follows a product are float32. All but products in bf16 give the same bits on every processor,
from the observation to the elites, and so does the planner without Python (docs/deployment.md).

Quantising the inputs of those last layers to 8 bits would make half of the squared error of all int8 products. On the
1M student regret (:mod:`tdmpc2.quantization.regret`) would rise from 0.03 to 0.10.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tdmpc2 import planner
from tdmpc2.acceleration.cpu import library
from tdmpc2.acceleration.cpu.weight_versions import WeightVersions
from tdmpc2.acceleration.layers import has_mish
from tdmpc2.checkpoints.layouts import TERMINATION
from tdmpc2.config import Config
from tdmpc2.nn.layers import Linear, NormedLinear, QEnsemble
from tdmpc2.nn.world_model import Network, TaskContext, WorldModel
from tdmpc2.support.runtime import kernel_threads

_NONE, _MISH, _SIMNORM = range(3)  # Activation of kernels.h
_FP32, _BF16, _INT8, _INT12 = range(4)  # Format of kernels.h
_NETWORKS = ("_dynamics", "_reward", "_pi", "_Qs")  # then, of episodic tasks, the termination head
_AFTERWARDS = ("_Qs", TERMINATION)  # what judges a step by the latent that it led to
_FEW_ROWS = 16  # measured: benchmarks/RESULTS.md, "The policy alone"
_PADDING = 64  # vectors of one number per output are padded to a multiple of this
_SIMNORM_DIMS = (1, 2, 4, 8, 16)


class Affine(NamedTuple):
    """One affine map, and the LayerNorm and activation after it."""

    weight: Tensor  # [out, in] in the format of the product, or int8
    scale: Tensor | None  # of an int8 weight, [out, 1]
    compute_dtype: torch.dtype  # of the product: the weight's own type, or what an int8 weight is widened to
    bias: Tensor  # [out]
    norm: tuple[Tensor, Tensor] | None  # scale and shift of the LayerNorm, [out]
    activation: int


def linear(layer: nn.Module) -> Affine:
    """Read one layer of an MLP, plain or in lower precision."""
    assert isinstance(layer, Linear)
    norm, activation = None, _NONE
    if isinstance(layer, NormedLinear):
        norm, activation = (layer.ln.weight, layer.ln.bias), _MISH if has_mish(layer) else _SIMNORM
    scale, dtype = getattr(layer, "scale", None), getattr(layer, "compute_dtype", layer.weight.dtype)
    return Affine(layer.weight, scale, dtype, layer.bias, norm, activation)


def head_layer(heads: QEnsemble, head: int, layer: int) -> Affine:
    """Read one layer of a Q head, plain or in lower precision."""
    weight, bias, *norm = (p[head] for p in heads.params[4 * layer : 4 * layer + 4])
    scale: Tensor | None = getattr(heads, f"scale{layer}", None)
    dtypes: list[torch.dtype] | None = getattr(heads, "compute_dtypes", None)
    return Affine(
        weight, None if scale is None else scale[head], dtypes[layer] if dtypes else weight.dtype, bias,
        (norm[0], norm[1]) if norm else None, _MISH if norm else _NONE,
    )  # fmt: skip


class _Layer(ctypes.Structure):
    """``Layer`` of kernels.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in "format inputs outputs activation".split()),
        *((name, ctypes.c_void_p) for name in "weight scale sums bias gain shift latent task action".split()),
    )


class _Networks(ctypes.Structure):
    """``Networks`` of kernels.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in "latent_dim task_dim action_dim num_bins simnorm_dim num_layers".split()),
        ("termination", ctypes.c_int32),
        *((name, ctypes.c_float) for name in "log_std_min log_std_max".split()),
        *((name, ctypes.c_void_p) for name in "bins layers".split()),
    )


class PackedLayer:
    """A copy of one layer as the kernels read it.

    Args:
        layer: the layer.
        parts: widths of the latent, the task embedding and the action that a first layer takes; only the latent is
            multiplied in the layer's format. None: not a first layer.
        first_step: whether the layer is also applied to latents that all samples share.
        among_int8: whether other layers of its model have int8 products.

    Attributes:
        kernels: the variant that it is packed for.
        struct: points into tensors that this object holds.
    """

    @torch.no_grad()
    def __init__(
        self, layer: Affine, parts: Sequence[int] | None = None, *, first_step: bool = False, among_int8: bool = False
    ) -> None:
        self.kernels = library.load()
        self.out, self.inputs = len(layer.weight), parts[0] if parts else layer.weight.shape[1]
        weight = layer.weight[:, : self.inputs]
        code = product_format(layer, among_int8)
        sums = None  # of weights: floating-point inputs have no offset
        if code in (_FP32, _BF16):
            weight = weight.to(layer.compute_dtype).float()
        else:
            assert layer.scale is not None
            sums = weight.sum(-1, dtype=torch.int32).float() * layer.scale[:, 0]
        rows: Sequence[Tensor | None] = (None, None, None)
        if parts:
            whole = layer.weight.float() if layer.scale is None else layer.weight.float() * layer.scale
            rows = whole.T.split(list(parts))
        scale = torch.ones(self.out, device="cpu") if layer.scale is None else layer.scale[:, 0]
        self._tensors = [
            self._packed(code, weight.contiguous()),
            *map(_padded, (scale, torch.zeros_like(scale) if sums is None else sums)),
            *map(_padded, (layer.bias, *(layer.norm or (None, None)))),
            *map(_padded, (rows[0] if first_step else None, *rows[1:])),
        ]
        self.struct = _Layer(code, self.inputs, self.out, layer.activation, *map(_address, self._tensors))

    def _packed(self, code: int, weight: Tensor) -> Tensor:
        out, inputs = weight.shape
        packed = torch.empty(self.kernels.packed_bytes(code, inputs, out), dtype=torch.uint8, device="cpu")
        self.kernels.pack(code, inputs, out, _address(weight), _address(packed))
        return packed


def product_format(layer: Affine, among_int8: bool) -> int:
    """``Format`` of a layer's product."""
    if layer.weight.dtype == torch.int8 and (layer.compute_dtype == torch.int8 or among_int8):
        return _INT8 if layer.compute_dtype == torch.int8 else _INT12
    return _BF16 if layer.compute_dtype == torch.bfloat16 else _FP32


def _padded(x: Tensor | None) -> Tensor | None:
    """A float32 copy with zeros after the last column up to a multiple of the padding; None if there are no values."""
    if x is None or not x.numel():
        return None
    width = x.shape[-1]
    if width % _PADDING == 0:
        return _empty(*x.shape).copy_(x)
    padded = _empty(*x.shape[:-1], width - width % -_PADDING).zero_()
    padded[..., :width] = x
    return padded


def _empty(*shape: int) -> Tensor:
    """Memory for kernels to read and write, whatever the program's default device is."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _address(x: Tensor | None) -> ctypes.c_void_p:
    if x is not None and x.device.type != "cpu":
        raise ValueError(f"The CPU kernels were given a tensor on {x.device}")
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _threads_for(rows: int) -> int:
    """Leave few rows to the caller's own thread: they take less time than waking another one does."""
    return 1 if rows < _FEW_ROWS else kernel_threads()


def normed_linear(x: Tensor, layer: PackedLayer) -> Tensor:
    """``act(LayerNorm(W x + b))`` of a packed layer without SimNorm, [N, in] -> [N, out]."""
    assert x.shape[1] == layer.inputs, (x.shape, layer.inputs)
    assert layer.struct.activation != _SIMNORM
    x, out = x.float().contiguous(), _empty(len(x), layer.out)
    threads = kernel_threads()
    layer.kernels.normed_linear(ctypes.byref(layer.struct), len(x), threads, _address(x), _address(out))
    return out


def unsupported(cfg: Config) -> str:
    """Say why no kernels fit a model of this configuration; empty if some do, which may yet not be built here."""
    if cfg.simnorm_dim in _SIMNORM_DIMS:
        return ""
    return f"simnorm_dim={cfg.simnorm_dim}: the CPU kernels take one of {_SIMNORM_DIMS}; plan without them"


class PackedNetworks:
    """A copy of the networks that planning repeats for every sample. Holds no gradient; several threads may use it.

    Args:
        model: on the CPU; its weights are in the formats to compute in. Later changes to it are not seen.
        products: number format to multiply float32 weights in; None: float32.

    Raises:
        RuntimeError: the kernels are not available here (:func:`tdmpc2.acceleration.cpu.library.reason`).
        ValueError: the kernels have no SimNorm for this model.
    """

    def __init__(self, model: WorldModel, products: torch.dtype | None = None) -> None:
        cfg, self._kernels = model.cfg, library.load()
        if why := unsupported(cfg):
            raise ValueError(why)
        self._versions = WeightVersions(model)
        self.num_q, self.latent_dim, self.action_dim = cfg.num_q, cfg.latent_dim, cfg.action_dim
        self.encodes = cfg.obs == "state"
        task_dim = cfg.task_dim if cfg.multitask else 0
        widths = {"latent": cfg.latent_dim, "task": task_dim, "action": cfg.action_dim}
        networks = [(network, _multiplied_in(products, layers_of(network))) for network in planned(model)]
        int8 = any(layer.compute_dtype == torch.int8 for _, layers in networks for layer in layers)
        self._layers: list[PackedLayer] = []
        for network, layers in networks:
            parts = [width if part in network.inputs else 0 for part, width in widths.items()]
            repeated = network.name not in _AFTERWARDS
            for index, layer in enumerate(layers):
                first = index % 3 == 0
                self._layers.append(
                    PackedLayer(layer, parts if first else None, first_step=first and repeated, among_int8=int8)
                )
        self._encoder = [
            PackedLayer(layer, [cfg.obs_dim, task_dim, 0] if index == 0 else None)
            for index, layer in enumerate(
                _multiplied_in(products, layers_of(encoder_of(model))) if self.encodes else []
            )
        ]
        self._encoder_structs = (_Layer * len(self._encoder))(*(layer.struct for layer in self._encoder))
        self._bins = _padded(model.bins)
        self._structs = (_Layer * len(self._layers))(*(layer.struct for layer in self._layers))
        self._networks = _Networks(
            *widths.values(), cfg.num_bins, cfg.simnorm_dim, len(self._layers),
            len(self._layers) // 3 - 1 if cfg.episodic else 0, cfg.log_std_min, cfg.log_std_max,
            _address(self._bins), ctypes.addressof(self._structs),
        )  # fmt: skip

    def outdated(self) -> bool:
        """Tell whether the model's weights have changed since, as :class:`WeightVersions` can know."""
        return self._versions.changed()

    def functions(self) -> dict[str, Callable[..., Any]]:
        """``iteration_fn`` and ``rollout_fn`` of :func:`tdmpc2.planner.plan`, computed with these networks."""
        return {"iteration_fn": self._iteration, "rollout_fn": lambda model, *args: self.policy_rollout(*args)}

    def _iteration(
        self,
        model: WorldModel,
        z: Tensor,
        task: TaskContext,
        mean: Tensor,
        std: Tensor,
        policy_actions: Tensor,
        noise: planner.IterationNoise,
    ) -> planner.Iteration:
        actions = planner.sample_actions(task, mean, std, policy_actions, noise)
        value = self.estimate_value(z, task, actions, noise.value, noise.heads)
        return self.refit(model.cfg, actions, value, task.action_mask)

    def encode(self, obs: Tensor, task: TaskContext) -> Tensor:
        """Compute :meth:`tdmpc2.nn.world_model.WorldModel.encode` of states, [E, O] -> [E, D]."""
        assert self.encodes
        assert obs.shape[1] == self._encoder[0].inputs, (obs.shape, self._encoder[0].inputs)
        embedding = None if task.embedding is None else task.embedding.expand(len(obs), -1)
        out = _empty(len(obs), self.latent_dim)
        encoder = ctypes.byref(self._encoder_structs), len(self._encoder)
        self._call(self._kernels.encode, (*encoder, len(obs), _threads_for(len(obs))), obs, embedding, out)
        return out

    def refit(self, cfg: Config, actions: Tensor, value: Tensor, mask: Tensor | None) -> planner.Iteration:
        """Compute :func:`tdmpc2.planner.refit`."""
        num_envs, horizon, samples, dim = actions.shape
        elites = cfg.num_elites
        assert value.shape == (num_envs, samples), value.shape
        assert 0 < elites <= samples, (elites, samples)
        shapes = (num_envs, horizon, dim), (num_envs, horizon, dim), (num_envs, elites), (num_envs, elites)
        mean, std, elite_value, score, elite_actions = (
            _empty(*shape) for shape in (*shapes, (num_envs, horizon, elites, dim))
        )
        settings = torch.tensor([cfg.temperature, cfg.min_std, cfg.max_std], dtype=torch.float32, device="cpu")
        own_mask = None if mask is None else mask.expand(num_envs, 1, dim)
        held = [None if x is None else x.float().contiguous() for x in (settings, own_mask, actions, value)]
        counts = num_envs, horizon, samples, dim, elites, kernel_threads()
        results = mean, std, elite_value, score, elite_actions
        self._kernels.refit(*counts, *map(_address, (*held, *results)))
        return planner.Iteration(mean, std, value, elite_value, score, elite_actions)

    def estimate_value(self, z: Tensor, task: TaskContext, actions: Tensor, eps: Tensor, heads: Tensor) -> Tensor:
        """Compute :func:`tdmpc2.planner.estimate_value`, with one task for each environment."""
        num_envs, horizon, samples, _ = actions.shape
        heads = heads.long() if self.num_q > 2 else torch.arange(self.num_q, device="cpu")
        self._check(z, actions, num_envs, samples)
        assert eps.shape == (num_envs, samples, self.action_dim), eps.shape
        assert 0 <= int(heads.min()) <= int(heads.max()) < self.num_q, heads
        out = _empty(num_envs, samples)
        counts = (num_envs, horizon, samples, len(heads), kernel_threads())
        discount = task.discount.reshape(-1).expand(num_envs)
        self._call(self._kernels.estimate_value, counts, z, *_rows(task, num_envs), discount, actions, eps, heads, out)
        return out

    def policy_rollout(self, z: Tensor, task: TaskContext, eps: Tensor) -> Tensor:
        """Compute :func:`tdmpc2.planner.policy_rollout`, with one task for each environment."""
        horizon, num_envs, samples, dim = eps.shape
        self._check(z, eps, num_envs, samples)
        out = _empty(num_envs, horizon, samples, dim)
        counts = (num_envs, horizon, samples, _threads_for(num_envs * samples * horizon))
        self._call(self._kernels.policy_rollout, counts, z, *_rows(task, num_envs), eps, out)
        return out

    def policy(self, obs: Tensor, task: TaskContext, eps: Tensor | None) -> Tensor:
        """Compute the policy prior's actions for states, [E, O] -> [E, A].

        Args:
            eps: standard-normal draw [E, A]; None: the policy's mean.
        """
        drawn = _empty(len(obs), self.action_dim).zero_() if eps is None else eps
        return self.policy_rollout(self.encode(obs, task), task.unsqueeze(1), drawn[None, :, None])[:, 0, 0]

    def _check(self, z: Tensor, actions: Tensor, num_envs: int, samples: int) -> None:
        """Sizes that the kernels rely on."""
        assert z.shape == (num_envs, self.latent_dim), (z.shape, num_envs, self.latent_dim)
        assert samples > 0, samples
        assert actions.shape[-1] == self.action_dim, (actions.shape, self.action_dim)

    def _call(self, function: Callable[..., Any], counts: Sequence[Any], *tensors: Tensor | None) -> None:
        held = [x if x is None or x.dtype == torch.int64 else x.detach().float() for x in tensors]
        held = [None if x is None else x.contiguous() for x in held]
        function(ctypes.byref(self._networks), *counts, *map(_address, held))


def _multiplied_in(products: torch.dtype | None, layers: Sequence[Affine]) -> Sequence[Affine]:
    """Have layers with float32 weights multiplied in another number format."""
    if products is None:
        return layers
    return [
        layer._replace(compute_dtype=products) if layer.weight.dtype == torch.float32 else layer for layer in layers
    ]


def encoder_of(model: WorldModel) -> Network:
    """The network that takes states; only models that observe them have one."""
    return next(network for network in model.networks() if network.observes)


def planned(model: WorldModel) -> list[Network]:
    """The networks that the kernels have, in the order of ``enum Network`` of kernels.h.

    Raises:
        ValueError: the model has others.
    """
    found = [network for network in model.networks() if not network.observes]
    known = [*_NETWORKS, *([TERMINATION] if model.cfg.episodic else [])]
    if (names := [network.name for network in found]) != known:
        raise ValueError(f"The CPU kernels have the networks {', '.join(known)}, the model has {', '.join(names)}")
    return found


def layers_of(network: Network) -> list[Affine]:
    """The layers of a network, or of one Q head after the other."""
    if isinstance(network.module, QEnsemble):
        return [head_layer(network.module, head, i) for head in range(len(network.module.params[0])) for i in range(3)]
    return list(map(linear, network.module))


def _rows(task: TaskContext, num_envs: int) -> list[Tensor | None]:
    """Embedding and mask of each environment, from a context that broadcasts over the samples."""
    return [None if x is None else x.expand(num_envs, 1, -1) for x in (task.embedding, task.action_mask)]
