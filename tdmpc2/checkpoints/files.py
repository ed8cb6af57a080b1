"""Checkpoint files: writing, reading without running code, describing and converting them.

A file is a dict of tensors and plain values: ``model`` (name -> tensor), ``config``, ``step``, ``format`` and whatever
else its writer adds. Names and tensor forms are the business of :mod:`tdmpc2.checkpoints.layouts`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tdmpc2.checkpoints import hub, layouts, safetensors
from tdmpc2.checkpoints.card import NAME as CARD
from tdmpc2.checkpoints.card import check_card
from tdmpc2.checkpoints.reading import check_tensor, is_plain, read_identified
from tdmpc2.checkpoints.reading import file_sha256 as file_sha256
from tdmpc2.checkpoints.reading import read_file as read_file
from tdmpc2.checkpoints.shared_storage import pack
from tdmpc2.checkpoints.sizes import infer_sizes, log_std_bounds, size_keys, task_set
from tdmpc2.checkpoints.values import check_finite
from tdmpc2.config import Config
from tdmpc2.support.archives import checksums_on
from tdmpc2.support.files import replacing
from tdmpc2.support.text import cut, shown
from tdmpc2.tasks import TASK_SETS, TaskSpec, lookup, read_specs

FORMAT = 1  # version of the files written here

_WEIGHTS = ("model", "state_dict", "model_state_dict")  # entries that code bases store weights under
_PLAIN_TYPES = (str, int, float, bool, type(None), torch.Size, torch.dtype)
_PRECISIONS = {
    torch.float64: "fp32",  # what it is loaded as
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int8: "int8",
    torch.qint8: "qint8",  # the published files': one scale per tensor
}
_MATRIX = re.compile(r"(?!_task_emb).*(?<!\.ln)\.weight|_(target_)?Qs\.params\.(0|4|8)")


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint file.

    Attributes:
        model: tensors as stored, in the file's own layout and precision.
        config: keys of :class:`~tdmpc2.config.Config`, if the file has them.
        step: updates the weights have seen, if the file says.
        format: version of the file format; ``None`` for files of other code bases.
        extra: all other entries.
        path: where it was read from; ``None`` for a dict in memory.
        sha256: of the bytes it was read from, if that was asked for.
    """

    model: dict[str, Any]
    config: dict[str, Any] | None = None
    step: int | None = None
    format: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    path: str | None = None
    sha256: str | None = None

    @property
    def origin(self) -> str:
        """The file's name for messages."""
        return self.path or "the given state dict"

    @property
    def card(self) -> dict[str, Any] | None:
        """The card of the file, see :mod:`tdmpc2.checkpoints.card`; None if it has none."""
        return self.extra.get(CARD)

    @property
    def task_specs(self) -> tuple[TaskSpec, ...]:
        """Tasks in id order, from the configuration or the number of embedding rows; empty if neither tells."""
        if self.config and self.config.get("task_specs"):
            with naming(self.origin):
                return read_specs(self.config["task_specs"])
        known = task_set(infer_sizes(self.model)["num_tasks"])
        return tuple(lookup(name) for name in TASK_SETS[known]) if known else ()


# -- writing ----------------------------------------------------------------------------------------------------------


def save_file(
    path: str | os.PathLike[str], payload: Mapping[str, Any], *, overwrite: bool, packed: Sequence[str] = ()
) -> None:
    """Write a dict so that ``path`` is at every moment either the old or the complete new file.

    Args:
        path: the file; one that ends in ``.safetensors`` has that format.
        payload: tensors, which are stored as CPU tensors, and plain values; ``format`` is added.
        overwrite: replace a file that is there.
        packed: entries whose small tensors are stored together, see :func:`tdmpc2.checkpoints.shared_storage.pack`.

    Raises:
        ValueError: the file exists and ``overwrite`` is false, an entry is neither a tensor nor plain, a weight is not
            finite, or the disk refused; nothing is left behind.
    """
    if isinstance(payload.get("model"), Mapping):
        check_finite(payload["model"], f"What {path} would hold")
    plain = _plain({"format": FORMAT, **payload}, "payload")
    plain |= pack({name: plain[name] for name in packed})
    with replacing(path, overwrite=overwrite) as temporary, open(temporary, "wb") as file, checksums_on():
        if os.fspath(path).endswith(safetensors.SUFFIX):
            safetensors.write(file, plain)
        else:
            torch.save(plain, file)  # given a name, torch would store it and hide what the disk says


def _plain(value: Any, where: str) -> Any:
    """A copy that ``torch.load(weights_only=True)`` reads back, tensors on the CPU."""
    kind = type(value)
    if kind in (Tensor, nn.Parameter):
        tensor = value.detach().cpu()
        # A view would drag its whole storage into the file.
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    if kind in (dict, OrderedDict):
        return {_plain(key, f"a key of {where}"): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if kind in (list, tuple):
        return kind(_plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    if kind in _PLAIN_TYPES:
        return value
    raise ValueError(f"{where} is a {kind.__name__}; files hold tensors, numbers, text, None, lists and dicts of these")


# -- reading ----------------------------------------------------------------------------------------------------------


def load_file(source: str | os.PathLike[str] | Mapping[str, Any], *, identify: bool = False) -> Checkpoint:
    """Read a checkpoint: a file, or a dict in memory; ``{"model": ...}`` or a bare state dict.

    Args:
        source: a file may be one on a hub, ``hf://user/name`` (:mod:`tdmpc2.checkpoints.hub`). The weights may also be
            the entry ``state_dict`` or ``model_state_dict``, and all their names may begin with what wrappers put there
            (``module.``, ``_orig_mod.``, ``model.``).
        identify: compute the SHA-256 of the file's bytes while they are loaded.

    Raises:
        ValueError: the file cannot be read (see :func:`~tdmpc2.checkpoints.reading.read_file`), holds no weights, was
            written by a newer version, has an entry of a wrong type, a card that is none, or weights that are not
            finite in float32.
    """
    path, sha256 = None if isinstance(source, Mapping) else hub.as_typed(source), None
    content: Any = source
    if not isinstance(source, Mapping):
        content, sha256 = read_identified(source) if identify else (read_file(source), None)
    origin = path or "the given dict"
    if not isinstance(content, Mapping):
        raise ValueError(f"{origin} holds a {type(content).__name__}, not a dict of weights")
    name = next((name for name in _WEIGHTS if isinstance(content.get(name), Mapping)), None)
    entries = dict(content) if name else {"model": content}
    model = dict(entries.pop(name or "model"))
    if not any(isinstance(value, Tensor) for value in model.values()):
        found = ", ".join(shown(key) if type(key) is not str else cut(key, 40) for key in list(model)[:4]) or "nothing"
        raise ValueError(f"{origin} holds no weights (found {found}): expected an entry 'model' of named tensors")
    for kind, names in (("weight", model), ("entry", entries)):
        if wrong := [key for key in names if not isinstance(key, str)]:
            raise ValueError(f"{origin}: {shown(wrong[0])} is the name of a {kind}, expected text")
    version, config, step = (entries.pop(key, None) for key in ("format", "config", "step"))
    if version is not None and (type(version) is not int or version > FORMAT):
        found = version if isinstance(version, str) else shown(version)
        raise ValueError(f"{origin} has format {cut(found, 40)}, this version reads up to {FORMAT}: update tdmpc2")
    if not isinstance(config, dict | None) or not (step is None or type(step) is int):
        raise ValueError(
            f"{origin}: 'config' must be a dict and 'step' an integer, not {shown(config, 50)}, {shown(step, 50)}"
        )
    if step is not None and not 0 <= step < 2**53:
        raise ValueError(f"{origin}: 'step' is {shown(step)}, expected a number of updates")
    for key, value in model.items():
        if isinstance(value, Tensor) and not is_plain(value):
            check_tensor(f"{origin}: '{cut(key, 80)}'", value)
    check_finite(model, origin)
    if config is not None:
        _check_config(config, origin)
    if entries.get(CARD) is not None:
        entries[CARD] = check_card(origin, entries[CARD])
    return Checkpoint(layouts.without_prefix(model), config, step, version, entries, path, sha256)


def _check_config(config: Mapping[str, Any], origin: str) -> None:
    if wrong := [key for key in config if not isinstance(key, str)]:
        raise ValueError(f"{origin}: {shown(wrong[0])} is the name of a key of 'config', expected text")
    if config.get("task_specs"):
        with naming(origin):
            read_specs(config["task_specs"])


@contextlib.contextmanager
def naming(origin: str) -> Iterator[None]:
    """Name the file in errors that say what is wrong with its content."""
    try:
        yield
    except ValueError as error:
        if origin in str(error):
            raise
        raise ValueError(f"{origin}: {error}") from error


def formats_of(state: Mapping[str, Any]) -> dict[str, str]:
    """Find the format of each weight matrix, also of target heads: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``qint8``.

    Embedding, biases and LayerNorms do not count: they take no part in matrix products.

    Raises:
        ValueError: unknown layout or number format.
    """
    dtypes = {name: tensor.dtype for name, tensor in layouts.rename(state).items() if _MATRIX.fullmatch(name)}
    if unknown := sorted({str(dtype) for dtype in dtypes.values() if dtype not in _PRECISIONS}):
        raise ValueError(f"Weights stored as {', '.join(unknown)} are not supported")
    return {name: _PRECISIONS[dtype] for name, dtype in dtypes.items()}


def precision_of(state: Mapping[str, Any]) -> str:
    """``fp32``, ``fp16`` or ``bf16``; ``int8`` if all matrices but the encoder's first are; ``mixed`` for all else.

    Raises:
        ValueError: unknown layout or number format.
    """
    formats = {name: "int8" if kind == "qint8" else kind for name, kind in formats_of(state).items()}
    if len(found := set(formats.values())) == 1:
        return found.pop()
    for name in list(formats):  # what sees raw observations may stay in fp16 in an int8 file
        if name == "_encoder.state.0.weight" or name.startswith(layouts.IMAGE_ENCODER):
            del formats[name]
    return "int8" if set(formats.values()) == {"int8"} else "mixed"


# -- describing and converting ----------------------------------------------------------------------------------------


def describe(checkpoint: Checkpoint) -> dict[str, str]:
    """Describe a file in lines for a reader: label -> text.

    Raises:
        ValueError: it does not hold the weights of a model.
    """
    with naming(checkpoint.origin):
        return _describe(checkpoint)


def _describe(checkpoint: Checkpoint) -> dict[str, str]:
    tensors = layouts.rename(checkpoint.model)
    sizes = infer_sizes(checkpoint.model)
    model_size = size_keys(sizes)["model_size"]
    widths = ", ".join(f"{key} {value}" for key, value in sizes.items() if key != "num_tasks")
    names = [spec.name for spec in checkpoint.task_specs]
    total = online = 0
    modules: dict[str, int] = {}
    for name, tensor in tensors.items():
        module = name.split(".")[0]
        modules[module] = modules.get(module, 0) + tensor.numel() * tensor.element_size()
        if not name.endswith(".scale"):
            total += tensor.numel()
            online += tensor.numel() * (module != "_target_Qs")
    has_target = "_target_Qs" in modules
    facts = {
        "layout": f"({layouts.layout_of(checkpoint.model)})",
        "precision": precision_of(checkpoint.model),
        "model size": "not a standard one" if model_size is None else str(model_size),
        "widths": widths,
        "parameters": f"{online:,}" + (f" ({total:,} with target heads)" if has_target else ""),
        "target heads": "yes" if has_target else "no",
        "tasks": f"{len(names)}: {', '.join(names)}" if names else f"{sizes['num_tasks'] or 1}, not named in the file",
        "step": "not stored" if checkpoint.step is None else f"{checkpoint.step:,}",
        "other entries": ", ".join(checkpoint.extra) or "none",
        **{f"bytes of {module}": f"{size:,}" for module, size in modules.items()},
    }
    if checkpoint.path is not None:
        path = hub.local_file(checkpoint.path)
        facts |= {"bytes of the file": f"{path.stat().st_size:,}", "sha256": checkpoint.sha256 or file_sha256(path)}
    return facts


def convert(checkpoint: Checkpoint, layout: str) -> dict[str, Any]:
    """The payload of a file in another layout, all other entries kept.

    Args:
        checkpoint: what is converted.
        layout: ``a`` or ``b``, in float32; or ``safetensors``: layout (a) in the precision of the file.

    Raises:
        ValueError: the weights cannot be converted, or layout (b)'s action masks cannot be told.
    """
    with naming(checkpoint.origin):
        return _convert(checkpoint, layout)


def _convert(checkpoint: Checkpoint, layout: str) -> dict[str, Any]:
    model: dict[str, Any]
    model = layouts.rename(checkpoint.model) if layout == "safetensors" else layouts.to_layout_a(checkpoint.model)
    if layout == "b":
        config = checkpoint.config or {}
        low, high = (config.get(key, getattr(Config, key)) for key in ("log_std_min", "log_std_max"))
        bounds = log_std_bounds(checkpoint.model) or (float(low), float(high) - float(low))
        model = layouts.to_layout_b(model, _action_masks(checkpoint), *bounds)
    extra = {key: value for key, value in checkpoint.extra.items() if key != "recipe" or layout == "safetensors"}
    kept = {"config": checkpoint.config, "step": checkpoint.step, **extra}
    return {"model": model, **{key: value for key, value in kept.items() if value is not None}}


def _action_masks(checkpoint: Checkpoint) -> Tensor | None:
    """[num_tasks, A], 1 for the actions a task has; ``None`` for a single-task model."""
    sizes = infer_sizes(checkpoint.model)
    if not sizes["num_tasks"] or "_action_masks" in checkpoint.model:
        return checkpoint.model.get("_action_masks")
    if not checkpoint.task_specs:
        raise ValueError(f"{checkpoint.origin} does not name its {sizes['num_tasks']} tasks, which layout (b) needs")
    dims = torch.tensor([spec.action_dim for spec in checkpoint.task_specs])
    return (torch.arange(sizes["action_dim"]) < dims[:, None]).float()
