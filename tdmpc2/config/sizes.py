"""Sizes that follow from other keys: the widths of a model size, and the parts of a planning budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_LARGEST_SYMLOG = 80

#: Widths per model size in million parameters (docs/algorithm.md, "Networks and initialisation").
MODEL_SIZES: dict[int, dict[str, int]] = {
    size: dict(zip(("enc_dim", "num_enc_layers", "mlp_dim", "latent_dim", "num_q"), widths, strict=True))
    for size, widths in {
        1: (256, 2, 384, 128, 2),
        5: (256, 2, 512, 512, 5),
        19: (1024, 3, 1024, 768, 5),
        48: (1792, 4, 1792, 768, 5),
        317: (4096, 5, 4096, 1376, 8),
    }.items()
}


def model_widths(model_size: int | None, task: str, multitask: bool) -> dict[str, int]:
    """All widths of a model size; without one, those of the smallest, which the typed ones replace.

    Args:
        model_size: in millions of parameters.
        task: the task or task set, two of which have widths of their own.
        multitask: the model embeds its tasks.

    Raises:
        ValueError: there is no such size.
    """
    if model_size is not None and model_size not in MODEL_SIZES:
        raise ValueError(f"model_size={model_size} is not one of {', '.join(map(str, MODEL_SIZES))}, null")
    widths = dict(MODEL_SIZES[model_size or 1])
    if model_size == 19 and task == "mt30":
        widths["latent_dim"] = 512
    wide_embedding = task == "mt80" or model_size in (None, 1, 317)
    widths["task_dim"] = 0 if not multitask else 96 if wide_embedding else 64
    return widths


def check_widths(values: Mapping[str, Any], model_size: int | None, task: str, multitask: bool) -> None:
    """Raise ``ValueError`` if a width differs from that of the model size, which otherwise would win in silence."""
    if model_size is None:
        return
    for name, width in model_widths(model_size, task, multitask).items():
        if values[name] != width:
            raise ValueError(
                f"{name}={values[name]} beside model_size={model_size}, which has {name}={width} for task={task}: "
                f"leave {name} out, or set model_size=null, which takes all widths as typed"
            )


def check_bins(vmin: float, vmax: float) -> None:
    """Raise ``ValueError`` if values at the ends of the bins are beyond float32, which they are computed in."""
    for name, value in (("vmin", vmin), ("vmax", vmax)):
        if abs(value) > _LARGEST_SYMLOG:
            raise ValueError(
                f"{name}={value:g}: the bins are in symlog space, where {_LARGEST_SYMLOG} already stands for "
                f"{math.exp(_LARGEST_SYMLOG):.0e}: take a magnitude of at most that"
            )


def budget(num_samples: int, of: tuple[int, int, int] = (512, 64, 24)) -> dict[str, int]:
    """Elites and policy trajectories of a planning budget, in the proportion of another budget.

    Args:
        num_samples: action sequences per iteration.
        of: ``num_samples, num_elites, num_pi_trajs`` of the other budget; by default that of the method.
    """
    samples, elites, policy = of
    fewest = min(2, elites)  # a single elite stays one
    return {
        "num_elites": min(max(fewest, round(elites * num_samples / samples)), num_samples),
        "num_pi_trajs": min(max(1, round(policy * num_samples / samples)), num_samples - 1),
    }
