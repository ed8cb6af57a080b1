"""States of every checkpoint layout, built name by name."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tdmpc2.config import MODEL_SIZES

HEADS = ("_Qs", "_target_Qs")
PARTS = ("weight", "bias", "ln.weight", "ln.bias")


def shapes_a(
    *, enc=8, enc_layers=2, mlp=16, latent=8, num_q=2, tasks=30, emb=4, obs=5, action=3, bins=11
) -> dict[str, tuple[int, ...]]:
    """List the names and shapes of layout (a), written down independently of the package."""
    emb = emb if tasks else 0
    nets = {
        "_encoder.state": ([obs + emb, *[enc] * (enc_layers - 1), latent], True),
        "_dynamics": ([latent + emb + action, mlp, mlp, latent], True),
        "_reward": ([latent + emb + action, mlp, mlp, bins], False),
        "_pi": ([latent + emb, mlp, mlp, 2 * action], False),
    }
    shapes: dict[str, tuple[int, ...]] = {"_task_emb.weight": (tasks, emb)} if tasks else {}
    for net, (dims, last_norm) in nets.items():
        for i, (n_in, n_out) in enumerate(zip(dims, dims[1:], strict=False)):
            shapes |= {f"{net}.{i}.weight": (n_out, n_in), f"{net}.{i}.bias": (n_out,)}
            if i < len(dims) - 2 or last_norm:
                shapes |= {f"{net}.{i}.ln.weight": (n_out,), f"{net}.{i}.ln.bias": (n_out,)}
    joint = latent + emb + action
    head = [(mlp, joint), *[(mlp,)] * 3, (mlp, mlp), *[(mlp,)] * 3, (bins, mlp), (bins,)]
    return shapes | {f"{h}.params.{k}": (num_q, *shape) for h in HEADS for k, shape in enumerate(head)}


def state_a(seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=gen) for name, shape in shapes_a(**sizes).items()}


def meta_a(size: int, task: str) -> dict[str, Tensor]:
    """Make a state of a published size on the meta device, without memory."""
    widths = MODEL_SIZES[size]
    emb = 96 if task == "mt80" or size in (1, 317) else 64
    dims = {"mt30": (30, 24, 6), "mt80": (80, 39, 6), "walker-walk": (0, 24, 6)}[task]
    shapes = shapes_a(
        enc=widths["enc_dim"],
        enc_layers=widths["num_enc_layers"],
        mlp=widths["mlp_dim"],
        latent=512 if (size, task) == (19, "mt30") else widths["latent_dim"],
        num_q=widths["num_q"],
        tasks=dims[0],
        emb=emb,
        obs=dims[1],
        action=dims[2],
        bins=101,
    )
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def state_c(a: dict[str, Tensor], encoder_layers: int) -> dict[str, Tensor]:
    """Convert a state of layout (a) to layout (c), pair by pair."""
    pairs = {"_dynamics.0.0": "_dynamics.0", "_dynamics.0.3": "_dynamics.1", "_dynamics.0.6": "_dynamics.2"}
    pairs |= {"_dynamics.0.1": "_dynamics.0.ln", "_dynamics.0.4": "_dynamics.1.ln", "_dynamics.1": "_dynamics.2.ln"}
    for net in ("_reward", "_pi"):
        pairs |= {f"{net}.0": f"{net}.0", f"{net}.3": f"{net}.1", f"{net}.6": f"{net}.2"}
        pairs |= {f"{net}.1": f"{net}.0.ln", f"{net}.4": f"{net}.1.ln"}
    for i in range(encoder_layers):
        pairs[f"_encoder.state.{3 * i + 1}"] = f"_encoder.state.{i}"
        pairs[f"_encoder.state.{3 * i + 2}"] = f"_encoder.state.{i}.ln"
    c = {f"{new}.{end}": a[f"{old}.{end}"] for new, old in pairs.items() for end in ("weight", "bias")}
    return c | {name: a[name] for name in a if name.startswith((*HEADS, "_task_emb"))}


def quantised(a: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make this project's int8 form: matrices in int8 with scales, the rest in half precision, no target heads."""
    state: dict[str, Tensor] = {}
    for name, tensor in a.items():
        if name.startswith("_target_Qs"):
            continue
        is_matrix = tensor.ndim == 3 or (tensor.ndim == 2 and not name.startswith(("_Qs", "_task_emb")))
        if is_matrix:
            scale = tensor.abs().amax(-1, keepdim=True) / 127
            state |= {name: (tensor / scale).round().to(torch.int8), f"{name}.scale": scale}
        else:
            state[name] = tensor.half()
    return state


def assert_same_tensors(have: dict[str, Any], want: dict[str, Any]) -> None:
    assert have.keys() == want.keys()
    for name, tensor in want.items():
        if isinstance(tensor, Tensor):
            assert have[name].dtype == tensor.dtype, name
            assert torch.equal(have[name], tensor), name
        else:
            assert have[name] == tensor, name


sizes_drawn = st.fixed_dictionaries(
    {
        "enc": st.integers(1, 12),
        "enc_layers": st.integers(2, 5),
        "mlp": st.integers(1, 12),
        "latent": st.integers(1, 12),
        "num_q": st.sampled_from([1, 2, 5, 8]),
        "tasks": st.sampled_from([0, 1, 3, 30, 80]),
        "emb": st.integers(1, 6),
        "obs": st.integers(1, 9),
        "action": st.integers(1, 7),
        "bins": st.integers(2, 12),
    }
)
