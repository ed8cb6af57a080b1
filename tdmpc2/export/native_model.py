"""The model file of the planner without Python: safetensors, with a card in its metadata.

tdmpc2/native/model.cpp reads it. Layers are called ``encoder.0``, ``dynamics.0``, ``reward.0``, ``pi.0``, ``Q.0.0``
(head, layer) and, of episodic tasks, ``termination.0``, each with ``weight`` [out, in], ``bias``, ``scale`` of an int8
weight, and ``gain`` and ``shift`` of its LayerNorm. Everything that follows from a task (its embedding, mask and
discount) is a row of a table.

A model has the oldest format that can say how it plans, so that older libraries take it if they can:

======  ==================================================================================================
format  also says
======  ==================================================================================================
1
2       ``start_at_policy``: plans start at the policy's own actions
3       ``episodic``: behind the Q heads is a termination head; nothing counts after a predicted end
======  ==================================================================================================
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tdmpc2.acceleration.cpu.networks import Affine, encoder_of, layers_of, planned, product_format, unsupported
from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import Checkpoint, load_file
from tdmpc2.config import Config
from tdmpc2.export.card import card_of
from tdmpc2.export.request import Request
from tdmpc2.loading import load_agent
from tdmpc2.nn.layers import QEnsemble
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.support.files import json_text, replacing

CARD = "tdmpc2"
LARGEST_HEADER = 1 << 20  # bytes that the reader takes
#: Largest values of keys that the reader takes (model.cpp).
LARGEST = {
    "num_q": 256, "num_enc_layers": 64, "obs_dim": 1 << 16, "action_dim": 1 << 15, "latent_dim": 1 << 16,
    "task_dim": 1 << 16, "enc_dim": 1 << 16, "mlp_dim": 1 << 16, "num_bins": 1 << 16, "num_samples": 1 << 20,
    "plan_iterations": 4095, "horizon": 1024,
}  # fmt: skip
_PRODUCTS = ("fp32", "bf16", "int8", "int12")  # by Format of kernels.h
_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8"}


class NativeSource(NamedTuple):
    """The agent that is written, as it acts here."""

    file: Checkpoint
    agent: TDMPC2
    precision: str

    @property
    def cfg(self) -> Config:
        """Its configuration, with the planner's settings asked for."""
        return self.agent.cfg


def read_source(request: Request) -> NativeSource:
    """Load what is asked for, in the precision asked for.

    Raises:
        ValueError: unreadable file, a task it does not have, or a model that the kernels cannot compute.
    """
    file = load_file(request.checkpoint, identify=True)
    keys: dict[str, Any] = {**(request.overrides or {})}
    keys |= {"task": request.task} if request.task is not None else {}
    keys |= {"tasks": request.tasks} if request.tasks else {}
    agent = load_agent(file, device="cpu", precision=request.precision, quiet=True, **keys)
    if agent.cfg.obs != "state":
        raise ValueError(f"obs={agent.cfg.obs}: --to native writes models of states; --to onnx writes those of images")
    if why := unsupported(agent.cfg):
        raise ValueError(f"--to native has no planner for this model: {why.replace('plan without them', '--to onnx')}")
    for key, most in LARGEST.items():
        if (value := getattr(agent.cfg, key)) > most:
            raise ValueError(f"{key.removeprefix('plan_')}={value}: --to native writes models with at most {most:,}")
    return NativeSource(file, agent, request.precision)


def write_model(path: Path, source: NativeSource, *, overwrite: bool = False) -> None:
    """Write the model file, under a temporary name first.

    Raises:
        ValueError: it exists, its card is too large, or the disk refused.
    """
    model, cfg = source.agent.model, source.cfg
    layers = dict(layers_by_name(model))
    tensors = {name: tensor for key, layer in layers.items() for name, tensor in _tensors(key, layer)}
    tensors |= _tables(model, cfg)
    card = card_of(cfg, source.file, cfg.task_ids, source.precision) | {"networks": _sizes(cfg, layers)}
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(safetensors(tensors, {CARD: json_text(card)}))


def read_card(path: Path) -> dict[str, Any]:
    """Read the card of a model file."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        return dict(json.loads(json.loads(file.read(size))["__metadata__"][CARD]))


def safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Lay tensors out as a safetensors file; the package of that name is not needed for so little.

    Raises:
        ValueError: more header than a reader takes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at, data = 0, []
    for name, tensor in tensors.items():
        content = tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
        end = at + len(content)
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        data.append(content)
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LARGEST_HEADER:
        raise ValueError(f"The card would have {len(text):,} bytes, at most {LARGEST_HEADER:,}: export fewer tasks")
    return struct.pack("<Q", len(text)) + text + b"".join(data)


def layers_by_name(model: WorldModel) -> Iterator[tuple[str, Affine]]:
    """Layers in the order of the kernels, by their names in the file."""
    for index, layer in enumerate(layers_of(encoder_of(model))):
        yield f"encoder.{index}", layer
    for network in planned(model):
        heads = isinstance(network.module, QEnsemble)
        for index, layer in enumerate(layers_of(network)):
            yield f"Q.{index // 3}.{index % 3}" if heads else f"{network.name.removeprefix('_')}.{index}", layer


def _tensors(name: str, layer: Affine) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", _smallest(layer.weight)
    if layer.scale is not None:
        yield f"{name}.scale", layer.scale[:, 0].float()
    yield f"{name}.bias", layer.bias.float()
    if layer.norm is not None:
        yield f"{name}.gain", layer.norm[0].float()
        yield f"{name}.shift", layer.norm[1].float()


def _smallest(weight: Tensor) -> Tensor:
    """The same numbers in fp16 if that holds them exactly, as those of a file in fp16."""
    half = weight.half() if weight.dtype == torch.float32 else weight
    return half if half.dtype != torch.float16 or torch.equal(half.float(), weight) else weight


@torch.no_grad()
def _tables(model: WorldModel, cfg: Config) -> dict[str, Tensor]:
    ids = torch.tensor(cfg.task_ids)
    context = model.context(ids if cfg.multitask else None)
    settings = (cfg.temperature, cfg.min_std, cfg.max_std, cfg.log_std_min, cfg.log_std_max)
    tables = {"settings": torch.tensor(settings), "bins": model.bins, "discounts": context.discount.reshape(-1)}
    if context.embedding is not None and context.action_mask is not None:
        tables |= {"task_embeddings": context.embedding, "action_masks": context.action_mask}
    return {name: table.float() for name, table in tables.items()}


def _sizes(cfg: Config, layers: Mapping[str, Affine]) -> dict[str, Any]:
    int8 = any(layer.compute_dtype == torch.int8 for name, layer in layers.items() if not name.startswith("encoder."))
    products = [
        _PRODUCTS[product_format(layer, int8 and not name.startswith("encoder."))] for name, layer in layers.items()
    ]
    additions = {"start_at_policy": cfg.plan_start == "policy", "episodic": cfg.episodic}  # of format 2, 3, ...
    version = max((number for number, said in enumerate(additions.values(), 2) if said), default=1)
    return {
        "format": version,
        "obs_dim": cfg.obs_dim,
        "action_dim": cfg.action_dim,
        "latent_dim": cfg.latent_dim,
        "task_dim": cfg.task_dim if cfg.multitask else 0,
        "num_q": cfg.num_q,
        "num_bins": cfg.num_bins,
        "simnorm_dim": cfg.simnorm_dim,
        "encoder_layers": sum(name.startswith("encoder.") for name in layers),
        "multitask": int(cfg.multitask),
        "mean_action": int(cfg.plan_action == "mean"),
        **{name: int(said) for name, said in list(additions.items())[: version - 1]},
        "products": products,
    }
