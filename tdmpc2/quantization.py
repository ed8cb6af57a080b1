"""Post-training quantisation: what a recipe stores, and how far the result is from the original.

========  ==============================  ==========================  ====================================
recipe    weight matrices                 biases, LayerNorms          task embedding
========  ==============================  ==========================  ====================================
fp16      fp16                            fp16                        fp16
int8      int8                            fp16                        fp16
mixed     reward and Q int8, others fp16  fp16                        fp16
========  ==============================  ==========================  ====================================

int8 is symmetric with one float32 scale per output channel and head, stored as ``<name>.scale``. Keeping biases and
LayerNorms in float32 was measured on the 1M student: it changes no output error of int8 by more than 0.1 dB (at
-13 to -40 dB) and makes the file 1.8 % larger, so they are fp16. Target heads serve training only and are not stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tdmpc2 import layouts
from tdmpc2.config import Config
from tdmpc2.nn.math import decode
from tdmpc2.nn.world_model import WorldModel

_INT8_MAX = 127  # -128 is left out, so that the grid is symmetric


@dataclass(frozen=True)
class Recipe:
    """How a file stores a model.

    Attributes:
        name: suffix of the file name.
        int8: modules whose weight matrices are int8; every other tensor is fp16.
    """

    name: str
    int8: frozenset[str] = frozenset()

    def stores(self, name: str, tensor: Tensor) -> torch.dtype:
        """The number format of one layout (a) tensor."""
        return torch.int8 if _module(name) in self.int8 and _is_matrix(name, tensor) else torch.float16


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp16"),
        Recipe("int8", frozenset({"encoder", "dynamics", "reward", "pi", "Qs"})),
        Recipe("mixed", frozenset({"reward", "Qs"})),
    )
}


def _module(name: str) -> str:
    return name.partition(".")[0].removeprefix("_")


def _is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether a layout (a) tensor is a factor of a matrix product: [out, in], or [num_q, out, in] in the Q ensemble."""
    return _module(name) != "task_emb" and tensor.ndim == (3 if _module(name) == "Qs" else 2)


# -- conversion -------------------------------------------------------------------------------------------------------


def deployable(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What acting needs: float32 layout (a) without target heads, from any layout and precision."""
    return {name: w for name, w in layouts.to_layout_a(state).items() if not name.startswith("_target_Qs.")}


def quantize_state(state: Mapping[str, Any], recipe: Recipe, origin: str = "the state dict") -> dict[str, Tensor]:
    """The tensors of a quantised file. Equal weights give equal bytes; ``state`` is not changed.

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
            stored[name], stored[f"{name}.scale"] = _to_int8(tensor)
        else:
            stored[name] = tensor.to(dtype)
    return stored


def _to_int8(w: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest multiples (half to even) of one scale per row: w [..., out, in] -> int8 [..., out, in], [..., out, 1]."""
    scale = w.abs().amax(-1, keepdim=True) / _INT8_MAX
    # Rows of zeros (new reward and Q heads), and rows so small that their scale would lose its precision.
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    return (w / scale).round().to(torch.int8), scale


# -- errors -----------------------------------------------------------------------------------------------------------


class ModuleError(NamedTuple):
    """What quantisation did to one module."""

    parameters: int  # without scales
    bytes: int  # as stored, with scales
    error_db: float  # RMS weight error relative to the RMS weight; -inf where nothing changed


def module_errors(reference_state: Mapping[str, Any], quantised_state: Mapping[str, Any]) -> dict[str, ModuleError]:
    """Size and weight error per module (``task_emb, encoder, dynamics, reward, pi, Qs``).

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


@torch.no_grad()
def output_errors(
    reference: WorldModel, other: WorldModel, obs: Tensor, action: Tensor, task: Tensor | None
) -> dict[str, float]:
    """RMS errors of a model's outputs in dB relative to the RMS of the reference; each model uses its own latents.

    Args:
        obs: [N, O].
        action: [N, A].
        task: ids [N]; ``None`` for single-task models.

    Returns:
        ``latent``, ``next_latent``, ``reward`` (decoded), ``value`` (decoded, all online heads) and ``policy`` (the
        squashed mean); -inf where nothing differs.
    """

    def outputs(model: WorldModel) -> dict[str, Tensor]:
        z = model.encode(obs, task)
        _, info = model.pi(z, task, torch.zeros_like(action))
        return {
            "latent": z,
            "next_latent": model.next(z, action, task),
            "reward": decode(model.reward(z, action, task), model.bins),
            "value": decode(model.Q(z, action, task, "all"), model.bins),
            "policy": info["mean"],
        }

    expected = outputs(reference)
    return {name: relative_db(got, expected[name]) for name, got in outputs(other).items()}


def relative_db(got: Tensor, expected: Tensor) -> float:
    """``20 log10(RMS(got - expected) / RMS(expected))``, both of one shape; -inf where they are equal."""
    error, size = (float(x.norm()) for x in (got.double() - expected.double(), expected.double()))
    if error and size:
        return 20 * math.log10(error / size)
    return math.inf if error else -math.inf


# -- inputs to measure on ---------------------------------------------------------------------------------------------


class Inputs(NamedTuple):
    """Inputs of :func:`output_errors`, and in words where they come from."""

    obs: Tensor  # [N, O]
    action: Tensor  # [N, A], zero where a task has no such entry
    task: Tensor | None  # [N]; None for single-task models
    source: str


def random_play(cfg: Config, count: int = 240, seed: int = 0) -> Inputs:
    """About ``count`` observations of the model's own tasks under random actions, every fourth step of an episode.

    Tasks whose environment cannot be built here are left out; if none can, the observations are standard-normal.

    Args:
        cfg: configuration of the model.
        count: observations, spread evenly over the tasks.
        seed: of environments and actions.
    """
    import gymnasium  # the environment layer is loaded only here, where it is played

    from tdmpc2.envs import make_env
    from tdmpc2.envs.wrappers import PadEnv

    rng = np.random.default_rng(seed)
    per_task = math.ceil(count / len(cfg.task_ids))
    rows: list[tuple[np.ndarray, np.ndarray, int]] = []
    refusals: list[str] = []

    def random_action(index: int) -> np.ndarray:
        active = np.arange(cfg.action_dim) < cfg.task_specs[index].action_dim
        return (rng.uniform(-1, 1, cfg.action_dim) * active).astype(np.float32)

    for index in cfg.task_ids:
        try:
            env = PadEnv(make_env(cfg.task_names[index], seed=seed), cfg.obs_dim, cfg.action_dim)
        except (ImportError, ValueError, gymnasium.error.Error) as error:
            refusals.append(str(error).partition(". ")[0])
            continue
        obs, _ = env.reset()
        for step in range(4 * per_task):
            action = random_action(index)
            if step % 4 == 0:
                rows.append((obs, action, index))
            obs, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                obs, _ = env.reset()
        env.close()
    source = f"{len(rows)} observations of {len(cfg.task_ids) - len(refusals)} tasks played with random actions"
    if refusals and rows:
        source += f"; {len(refusals)} tasks left out: {refusals[0]}"
    if not rows:
        ids = np.repeat(cfg.task_ids, per_task)
        rows = [(rng.standard_normal(cfg.obs_dim, np.float32), random_action(index), index) for index in ids]
        source = f"{len(rows)} standard-normal observations, because no task could be played here: {refusals[0]}"
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
    return Inputs(columns[0], columns[1], columns[2] if cfg.multitask else None, source)
