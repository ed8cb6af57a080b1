"""The losses of an update, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tdmpc2.acceleration.cpu import norm_mish
from tdmpc2.losses import model_losses, policy_loss
from tdmpc2.nn.world_model import WorldModel

#: Kernels called from C++ instead of Python: 3 % of an update.
_CPU_OPTIONS: dict[str, Any] = {"cpp_wrapper": True}


def compiled(
    model: WorldModel, device: torch.device, options: dict[str, Any] | None = None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Compile :func:`model_losses` and :func:`policy_loss`, each as one graph on its first call.

    The compiler makes Mish of LayerNorm on a CPU three times as slow as need be, so there the model gets an operator.

    Args:
        model: the agent's.
        device: the model's.
        options: of ``torch.compile``; by default the fastest.
    """
    if device.type == "cpu" and all(norm_mish.fits(width) for width in (model.cfg.enc_dim, model.cfg.mlp_dim)):
        model.use_norm_mish(norm_mish.norm_mish)
    torch.compiler.reset()  # a sweep trains many agents, but only eight variants of a function are ever compiled
    if options is None:
        options = _CPU_OPTIONS if device.type == "cpu" else {}
    return (
        _compiled_once(model_losses, lambda model, distillation, batch, *_: batch.obs.shape, options),
        _compiled_once(policy_loss, lambda model, group, zs, *_: zs.shape, options),
    )


def _compiled_once(
    function: Callable[..., Any], size_of: Callable[..., torch.Size], options: dict[str, Any]
) -> Callable[..., Any]:
    """Compile a function for the size of its first batch; batches of other sizes run eagerly."""
    fast = torch.compile(function, fullgraph=True, dynamic=False, options=options)
    sizes: list[torch.Size] = []

    def chosen(*args: Any) -> Any:
        size = size_of(*args)
        if not sizes:
            sizes.append(size)
        return (fast if size == sizes[0] else function)(*args)

    return chosen
