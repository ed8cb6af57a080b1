"""Every public checkpoint layout, int8 files included, as pure functions on flat dicts name -> tensor.

docs/algorithm.md, "Checkpoint layouts" and "Quantised weights".

The world model's own state dict has layout (a), float32. No function changes the dict it is given; a tensor that needs
no conversion is returned as it is, not copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

#: The encoder of states, which models of images do not have.
STATE_ENCODER = "_encoder.state"
#: Beginning of the names in the encoder of images.
IMAGE_ENCODER = "_encoder.rgb."
#: The network that only models of ``episodic`` tasks have.
TERMINATION = "_termination"
#: The networks that act, by the name of their parameters in layout (a), with the parts of their input.
NETWORKS = {
    STATE_ENCODER: ("obs", "task"),
    "_dynamics": ("latent", "task", "action"),
    "_reward": ("latent", "task", "action"),
    "_pi": ("latent", "task"),
    "_Qs": ("latent", "task", "action"),
    TERMINATION: ("latent", "task"),
}
#: The first convolution of a model of images.
PIXELS = f"{IMAGE_ENCODER}2.weight"
_PARTS = ("weight", "bias", "ln.weight", "ln.bias")  # (a) numbers the head tensors 4 * layer + position here
_GROUPS_B = ("_Qs.params", "_detach_Qs_params", "_target_Qs_params")
_EXTRAS_B = ("_action_masks", "log_std_min", "log_std_dif")
_HEAD_A = re.compile(r"(_Qs|_target_Qs)\.params\.(\d+)")
_HEAD_B = re.compile(r"(_Qs|_target_Qs)[._]params\.(\d+)\.(weight|bias|ln\.weight|ln\.bias)")
_LAYER_C = re.compile(r"(_encoder\.state|_dynamics\.0|_reward|_pi)\.(\d+)\.(weight|bias)")
_PREFIX = re.compile(r"(?:_orig_mod\.|module\.|model\.)+")  # of torch.compile, DataParallel and wrapper classes


# -- names ------------------------------------------------------------------------------------------------------------


def without_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same tensors without what wrappers put before every name, such as ``module.``."""
    first = _PREFIX.match(next(iter(state), ""))
    if first is None or not all(name.startswith(first[0]) for name in state):
        return dict(state)
    return {name.removeprefix(first[0]): value for name, value in state.items()}


def layout_of(state: Mapping[str, Any]) -> str:
    """``"a"``, ``"b"`` or ``"c"``.

    Raises:
        ValueError: none of them; the message shows some of the names found.
    """
    if "_detach_Qs_params.0.weight" in state or "_Qs.params.0.weight" in state:
        return "b"
    if "_dynamics.0.0.weight" in state:
        return "c"
    if "_Qs.params.0" in state or "_dynamics.0.weight" in state:
        return "a"
    raise ValueError(
        f"Not the weights of a TD-MPC2 model: found {some(state) or 'nothing'}; "
        "expected names such as '_encoder.state.0.weight' and '_Qs.params.0'"
    )


def rename(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of any layout as stored, under their layout (a) names; (b)'s duplicates and metadata are dropped.

    Raises:
        ValueError: unknown layout, an entry that is not a tensor, or names of two layouts.
    """
    to_a = _NAME_TO_A[layout_of(state)]
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        # Builds of autumn 2024 stored layout (b)'s target heads a second time, as '_target_Qs.params'.
        duplicate = name.startswith("_target_Qs.params.") and "_target_Qs_params.0.weight" in state
        if (new_name := to_a(name)) is None or duplicate:
            continue
        if not isinstance(value, Tensor):
            raise ValueError(f"'{name}' is a {type(value).__name__}, not a tensor")
        if new_name in renamed:
            raise ValueError(f"'{name}' and another entry are both '{new_name}' in layout (a): two layouts mix")
        renamed[new_name] = value
    return renamed


def _name_from_b(name: str) -> str | None:
    if name.startswith("_detach_Qs") or name in _EXTRAS_B or name.endswith((".__batch_size", ".__device")):
        return None
    if match := _HEAD_B.fullmatch(name):
        return f"{match[1]}.params.{4 * int(match[2]) + _PARTS.index(match[3])}"
    return name


def _name_from_c(name: str) -> str:
    # Linear, LayerNorm and activation were three modules in a row; the encoder had one module before them, and the
    # dynamics net kept its last LayerNorm outside of the row.
    if name in ("_dynamics.1.weight", "_dynamics.1.bias"):
        return name.replace(".1.", ".2.ln.")
    if not (match := _LAYER_C.fullmatch(name)):
        return name
    layer, module = divmod(int(match[2]) - (match[1] == "_encoder.state"), 3)
    if module == 2:
        return name
    return f"{match[1].removesuffix('.0')}.{layer}.{'ln.' if module else ''}{match[3]}"


_NAME_TO_A: dict[str, Callable[[str], str | None]] = {"a": str, "b": _name_from_b, "c": _name_from_c}


# -- conversion -------------------------------------------------------------------------------------------------------


def to_layout_a(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Float32 layout (a) from any layout, half precision or quantised form.

    An int8 tensor is multiplied by the ``<name>.scale`` beside it, a ``torch.qint8`` one by its own scale. If there are
    no target heads at all, they are copies of the online heads.

    Raises:
        ValueError: unknown layout, an entry that is not a tensor of weights, or an int8 tensor without fitting scale.
    """
    stored = rename(state)
    scales = {f"{name}.scale" for name, tensor in stored.items() if tensor.dtype == torch.int8}
    new = {
        name: _dequantise(name, tensor.detach(), stored.get(f"{name}.scale"))
        for name, tensor in stored.items()
        if name not in scales
    }
    if not any(name.startswith("_target_Qs.") for name in new):
        online = [name for name in new if name.startswith("_Qs.")]
        new |= {f"_target{name}": new[name].clone() for name in online}
    return new


def _dequantise(name: str, tensor: Tensor, scale: Tensor | None) -> Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    if tensor.is_floating_point():
        return tensor.float()
    if tensor.dtype != torch.int8:
        raise ValueError(f"'{name}' holds {tensor.dtype}; weights are floating point or int8")
    if scale is None:
        raise ValueError(f"'{name}' is int8, but '{name}.scale' is missing: the file is incomplete, quantise it again")
    sizes = zip(reversed(scale.shape), reversed(tensor.shape), strict=False)
    if scale.ndim > tensor.ndim or any(have not in (1, want) for have, want in sizes):
        raise ValueError(f"'{name}.scale' {list(scale.shape)} does not broadcast to '{name}' {list(tensor.shape)}")
    return tensor.float() * scale.float()


def to_layout_b(
    state: Mapping[str, Any], action_masks: Tensor | None, log_std_min: float, log_std_dif: float
) -> dict[str, Any]:
    """Float32 layout (b), which opens in current TD-MPC2.

    Args:
        state: any layout.
        action_masks: [num_tasks, A], 1 for the actions a task has; ``None`` for a single-task model.
        log_std_min: lower bound of the policy's log standard deviation.
        log_std_dif: distance from the lower to the upper bound.
    """
    new: dict[str, Any] = {}
    for name, tensor in to_layout_a(state).items():
        if not (match := _HEAD_A.fullmatch(name)):
            new[name] = tensor
            continue
        layer, part = divmod(int(match[2]), 4)
        for group in _GROUPS_B[:2] if match[1] == "_Qs" else _GROUPS_B[2:]:
            new[f"{group}.{layer}.{_PARTS[part]}"] = tensor
    for group in _GROUPS_B:
        new[f"{group}.__batch_size"] = new["_Qs.params.0.weight"].shape[:1]
        new[f"{group}.__device"] = None
    if action_masks is not None:
        new["_action_masks"] = action_masks.float()
    for name, bound in (("log_std_min", log_std_min), ("log_std_dif", log_std_dif)):
        new[name] = torch.tensor(int(bound) if float(bound).is_integer() else bound)
    return new


def some(names: Iterable[object], limit: int = 4) -> str:
    listed = [str(name) for name in names]
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest
