"""Choose what an agent acts in, from the formats its file stores and what the device does fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from tdmpc2.acceleration.cpu.speed import fastest, kernel_seconds
from tdmpc2.acceleration.low_precision import planning_format
from tdmpc2.checkpoints.files import Checkpoint, formats_of, precision_of
from tdmpc2.nn.formats import FLOATS
from tdmpc2.support.runtime import has_fast_bf16, has_fast_int8


class Execution(NamedTuple):
    """Formats in which a model's products are computed.

    Attributes:
        name: ``fp32``, ``bf16``, ``fp16``, ``int8``, ``int8-weight-only`` or ``mixed``.
        format_of: name of a weight matrix -> one of :data:`~tdmpc2.nn.formats.FORMATS`.
        compute_dtype: what int8 weights are widened to where a product is not int8.
        note: one line where this is not what the file's name promises, else empty.
    """

    name: str
    format_of: Callable[[str], str]
    compute_dtype: torch.dtype
    note: str


def execution(requested: str, file: Checkpoint, device: torch.device, *, kernels: bool = True) -> Execution:
    """Choose what to compute a file's model in.

    The encoder runs once per plan: its products are float32, with int8 weights widened.

    Args:
        requested: ``auto`` (the fastest that is correct for the file here), ``fp32``, ``bf16``, ``fp16`` or ``int8``.
        file: the file; its int8 matrices stay int8 unless a floating-point format is requested.
        device: where it is computed.
        kernels: whether it may use the CPU kernels, which decides what is fast on a CPU.
    """
    formats, stored = formats_of(file.model), precision_of(file.model)
    chosen = "int8" if requested == "int8" else stored
    seconds: Mapping[str, float] = {}
    if device.type == "cpu" and kernels and requested in ("auto", "int8") and chosen != "fp32":
        seconds = kernel_seconds()
    floating = requested if requested in FLOATS else fastest_float(chosen, device, seconds)
    kept = _int8_format(file) if requested == "auto" else "int8"
    keep = requested == "int8"
    if requested == "auto" and "int8" in formats.values():
        widened_once = kept == "int8-weight-only" and (bool(seconds) or device.type != "cpu")
        keep = widened_once or int8_is_fast(floating, device, seconds)

    def format_of(matrix: str) -> str:
        is_int8 = keep and formats[matrix] == "int8"
        if matrix.startswith("_encoder."):
            return "int8-weight-only" if is_int8 else "fp32"
        return planning_format(kept if is_int8 or requested == "int8" else floating, matrix)

    computed = {
        (formats[m], format_of(m).removesuffix("-weight-only")) for m in formats if not m.startswith("_encoder.")
    }
    changes = [f"{was} weights are computed in {now}" for was, now in sorted(computed) if was != now]
    note = f"{stored} file: {', '.join(changes)}, the fastest this {device.type} does well" if changes else ""
    name = floating if not keep else kept if stored != "mixed" or requested == "int8" else "mixed"
    return Execution(name, format_of, FLOATS[floating], note if requested == "auto" else "")


def fastest_float(stored: str, device: torch.device, seconds: Mapping[str, float]) -> str:
    """Choose the floating-point format for the products of a file.

    On a CPU without the kernels that is float32: what flags promise of bf16 there, few rows at a time do not keep.

    Args:
        stored: the file's format.
        device: where it is computed.
        seconds: of the CPU kernels by format, if they are used.
    """
    if stored == "fp32":
        return "fp32"
    if seconds:
        return fastest(("fp32", "bf16"), seconds)
    if device.type == "cpu":
        return "fp32"
    if stored != "bf16" and device.type == "cuda":
        return "fp16"
    return "bf16" if has_fast_bf16(device) else "fp32"


def int8_is_fast(floating: str, device: torch.device, seconds: Mapping[str, float]) -> bool:
    """True if int8 products are faster than a floating-point format's; ``seconds`` as of :func:`fastest_float`."""
    return fastest((floating, "int8"), seconds) == "int8" if seconds else has_fast_int8(device)


def _int8_format(file: Checkpoint) -> str:
    """Format in which a file's recipe wants the products of its int8 weights: the inputs are quantised too, or not."""
    recipe = file.extra.get("recipe")
    weight_only = isinstance(recipe, dict) and recipe.get("activations") == "float"
    return "int8-weight-only" if weight_only else "int8"
