"""Post-training quantisation: recipes, the conversion of weights, and errors of the result.

================  =========================================  =====================  ================================
recipe            weight matrices                            everything else        products, where the device has
                                                                                    such a unit (else the next best)
================  =========================================  =====================  ================================
fp16              fp16                                       fp16                   fp16 on CUDA, bf16 on a CPU
bf16              bf16                                       bf16                   bf16
int8              int8, the encoder's first fp16             fp16                   int8, encoder float32
int8-weight-only  int8, the encoder's first fp16             fp16                   as fp16, weights widened
mixed             int8 where measurement allows, else fp16   fp16                   int8 and as fp16
================  =========================================  =====================  ================================

int8 weights are symmetric with one float32 scale per output channel and head, stored as ``<name>.scale``. int8
products quantise every input row between its own bounds; those of the last layers of dynamics and Q heads keep
floating-point inputs (:func:`~tdmpc2.acceleration.low_precision.planning_format`), which the CPU kernels quantise to
12 bits. The first layer of the encoder takes raw observations of many units: with it in int8 all outputs lose 2 to 7
dB for 2 % of the bytes of a 1M model. Biases and LayerNorms are stored in fp16: in float32 they change no output error
of int8 by more than 0.1 dB (at -13 to -40 dB, 1M student) and make the file 1.8 % larger. Once loaded they are
float32, as is all that follows a product. Target heads serve training only and are not stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tdmpc2.checkpoints import layouts
from tdmpc2.nn.formats import to_int8
from tdmpc2.nn.math import decode
from tdmpc2.nn.world_model import WorldModel

VERSION = 1  # of what a recipe's name means, stored in its files


@dataclass(frozen=True)
class Recipe:
    """Format of each matrix in a file, and the format that the file asks to be computed in.

    Attributes:
        name: suffix of the file name.
        int8: modules (``dynamics``) or single weight matrices (``_dynamics.0.weight``) that are int8.
        not_int8: weight matrices of these modules that are not.
        dtype: of every other tensor.
        activations: what the inputs of int8 products are: ``int8`` or ``float``.
    """

    name: str
    int8: frozenset[str] = frozenset()
    not_int8: frozenset[str] = frozenset()
    dtype: torch.dtype = torch.float16
    activations: str = "int8"

    def stores(self, name: str, tensor: Tensor) -> torch.dtype:
        """The number format of one layout (a) tensor."""
        chosen = {name, _module(name)} & self.int8 and name not in self.not_int8
        return torch.int8 if chosen and is_matrix(name, tensor) else self.dtype

    def entry(self) -> dict[str, Any]:
        """Record of the recipe in a file made by it."""
        return {"name": self.name, "version": VERSION, "activations": self.activations}


def _module(name: str) -> str:
    return name.partition(".")[0].removeprefix("_")


_MODULES = frozenset(_module(name) for name in layouts.NETWORKS)
_OBSERVING = frozenset(f"{name}.0.weight" for name, inputs in layouts.NETWORKS.items() if "obs" in inputs)

#: Recipes that need no measurement; ``mixed`` is made by :func:`tdmpc2.quantization.calibration.mixed_recipe`.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp16"),
        Recipe("bf16", dtype=torch.bfloat16),
        Recipe("int8", _MODULES, _OBSERVING),
        Recipe("int8-weight-only", _MODULES, _OBSERVING, activations="float"),
    )
}


def is_matrix(name: str, tensor: Tensor) -> bool:
    """True if a layout (a) tensor is a factor of a matrix product: [out, in], or [num_q, out, in] in the Q ensemble.

    The encoder of images counts as convolutions throughout: it is never int8.
    """
    return (
        _module(name) != "task_emb"
        and not name.startswith(layouts.IMAGE_ENCODER)
        and tensor.ndim == (3 if _module(name) == "Qs" else 2)
    )


# -- conversion -------------------------------------------------------------------------------------------------------


def deployable(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Keep what acting needs: float32 layout (a) without target heads, from any layout and precision."""
    return {name: w for name, w in layouts.to_layout_a(state).items() if not name.startswith("_target_Qs.")}


def quantize_state(state: Mapping[str, Any], recipe: Recipe, origin: str = "the state dict") -> dict[str, Tensor]:
    """Convert weights to the tensors of a quantised file. Equal weights give equal bytes; ``state`` is not changed.

    Args:
        state: weights of any layout in fp32, bf16 or fp16; target heads are dropped.
        recipe: one of :data:`RECIPES`, or one's own.
        origin: what was loaded, for messages.

    Raises:
        ValueError: the weights are int8 already, not finite, or outside the range of fp16 where the recipe stores that.
    """
    for name, tensor in layouts.rename(state).items():
        if tensor.dtype in (torch.int8, torch.qint8):
            raise ValueError(f"{origin} is quantised ('{name}' is int8): take the full-precision file it was made from")
    stored: dict[str, Tensor] = {}
    for name, tensor in deployable(state).items():
        dtype = recipe.stores(name, tensor)
        limit = torch.finfo(torch.float32 if dtype == torch.int8 else dtype).max
        if not bool((tensor.abs() <= limit).all()):  # "any above" would let NaN through
            worst = float(tensor.flatten()[tensor.abs().argmax()])
            raise ValueError(
                f"{origin}: '{name}' holds {worst:g}, which recipe {recipe.name} cannot store (at most ±{limit:g}); "
                "training has diverged, take an earlier checkpoint"
            )
        if dtype == torch.int8:
            stored[name], stored[f"{name}.scale"] = to_int8(tensor)
        else:
            stored[name] = tensor.to(dtype)
    return stored


# -- errors -----------------------------------------------------------------------------------------------------------


class ModuleError(NamedTuple):
    """Size and weight error of one quantised module."""

    parameters: int  # without scales
    bytes: int  # as stored, with scales
    error_db: float  # RMS weight error relative to the RMS weight; -inf where nothing changed


def module_errors(reference_state: Mapping[str, Any], quantised_state: Mapping[str, Any]) -> dict[str, ModuleError]:
    """Measure size and weight error per module (``task_emb, encoder, dynamics, reward, pi, Qs``).

    Args:
        reference_state: weights of any layout and precision.
        quantised_state: the same model quantised; target heads in either are ignored.
    """
    restored, stored = deployable(quantised_state), layouts.rename(quantised_state)
    modules: dict[str, list[str]] = {}
    reference = deployable(reference_state)
    for name in reference:
        modules.setdefault(_module(name), []).append(name)
    return {
        module: ModuleError(
            parameters=sum(reference[name].numel() for name in names),
            bytes=sum(w.numel() * w.element_size() for name, w in stored.items() if _module(name) == module),
            error_db=relative_db(
                torch.cat([restored[name].flatten() for name in names]),
                torch.cat([reference[name].flatten() for name in names]),
            ),
        )
        for module, names in modules.items()
    }


#: What a model computes, and errors are measured of; an episodic one also ``termination``.
OUTPUTS = ("latent", "next_latent", "reward", "value", "policy")


def output_errors(
    reference: WorldModel, other: WorldModel, obs: Tensor, action: Tensor, task: Tensor | None
) -> dict[str, float]:
    """Measure RMS errors of a model's outputs, in dB relative to the RMS of the reference's.

    Each model uses its own latents.

    Args:
        reference: the model in float32.
        other: the same in other precision.
        obs: [N, O].
        action: [N, A].
        task: ids [N]; ``None`` for single-task models.

    Returns:
        The error of each of :func:`model_outputs`; -inf where nothing differs.
    """
    expected, got = (model_outputs(model, obs, action, task) for model in (reference, other))
    return {name: relative_db(got[name], output) for name, output in expected.items()}


@torch.no_grad()
def model_outputs(model: WorldModel, obs: Tensor, action: Tensor, task: Tensor | None) -> dict[str, Tensor]:
    """Compute the outputs that errors are measured of, with the arguments of :func:`output_errors`.

    Returns:
        ``latent``, ``next_latent``, ``reward`` (decoded), ``value`` (decoded, all online heads), ``policy`` (the
        squashed mean) and, of an episodic model, ``termination`` (the logit at ``next_latent``).
    """
    z = model.encode(obs, task)
    next_z = model.next(z, action, task)
    outputs = {
        "latent": z,
        "next_latent": next_z,
        "reward": decode(model.reward(z, action, task), model.bins),
        "value": decode(model.Q(z, action, task, "all"), model.bins),
        "policy": model.policy_mean(z, task),
    }
    return {**outputs, "termination": model.termination(next_z, task)} if model.cfg.episodic else outputs


def relative_db(got: Tensor, expected: Tensor) -> float:
    """``20 log10(RMS(got - expected) / RMS(expected))``, both of one shape; -inf where they are equal."""
    error, size = (float(x.norm()) for x in (got.double() - expected.double(), expected.double()))
    if error and size:
        return 20 * math.log10(error / size)
    return math.inf if error else -math.inf


def plain_errors(errors: Mapping[str, float]) -> dict[str, float | None]:
    """Write errors as rows have them: None where nothing differs."""
    return {name: None if value == -math.inf else value for name, value in errors.items()}
