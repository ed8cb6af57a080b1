"""How an update is computed: plainly, with fused layers, or with losses compiled by torch, each as one graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, Literal, NamedTuple

import torch

from tdmpc2.acceleration import layers
from tdmpc2.acceleration.compile_cache import use_private_cache
from tdmpc2.config import Config
from tdmpc2.losses import model_losses, policy_loss
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.support.runtime import can_compile
from tdmpc2.support.text import cut

#: ``fused`` has one operator of the CPU kernels for LayerNorm and Mish, and needs no compiler; ``compiled`` has it too.
UpdatePath = Literal["plain", "fused", "compiled"]

_log = logging.getLogger("tdmpc2")
_ROWS_WORTH_COMPILING = 5_120_000  # 20 000 updates of 256


class Computed(NamedTuple):
    """How an update is computed, the functions that do so, and one line about it, or nothing."""

    path: UpdatePath
    losses: tuple[Callable[..., Any], Callable[..., Any]]
    line: str


def choose(cfg: Config, begun: UpdatePath | None, model: WorldModel, device: torch.device, processes: int) -> Computed:
    """Choose how updates are computed, and give the model the layers for it.

    Args:
        cfg: of the run.
        begun: how the run was begun; None: it is new.
        model: is trained.
        device: where it is.
        processes: that train together.
    """
    path, line, functions = wanted_path(cfg, begun), "", (model_losses, policy_loss)
    if path == "compiled":
        if why_not := obstacle(device, processes):
            path, line = "fused", f"Training without compilation: {why_not}"
        else:
            line = "Compiling the update in its first step (one or two minutes; compile=false turns it off)"
            functions = compiled(model, device)
    if path == "fused" and not fuse(model, device):
        path = "plain"
        if begun == "fused" and not line:
            line = "Training without the fused layers that the run was begun with: no CPU kernels for it here"
    if path == "plain":
        layers.unfuse(model)
    return Computed(path, functions, line)


def wanted_path(cfg: Config, begun: UpdatePath | None) -> UpdatePath:
    """Say how a run's update is to be computed, as ``cfg.compile`` says; ``auto`` compiles if the run is worth it.

    Args:
        cfg: of the run.
        begun: how the run was begun, and goes on; None: it is new.
    """
    if cfg.compile != "auto":
        return "compiled" if cfg.compile == "true" else "plain"
    if begun is not None:
        return begun
    return "compiled" if cfg.num_updates * cfg.batch_size >= _ROWS_WORTH_COMPILING else "fused"


def obstacle(device: torch.device, processes: int) -> str:
    """Say why an update cannot be compiled; nothing if it can."""
    if processes > 1:
        return "several processes"  # one would wait in the other's update for as long as that compiles
    return "" if can_compile(device) else f"no compiler for {device.type} found"


def can_fuse(cfg: Config, device: torch.device) -> bool:
    """True if this device has the operator for LayerNorm and Mish, for layers as wide as these."""
    if device.type != "cpu":
        return False
    from tdmpc2.acceleration.cpu import norm_mish  # registers its operators with torch

    return all(norm_mish.fits(width) for width in (cfg.enc_dim, cfg.mlp_dim))


def fuse(model: WorldModel, device: torch.device) -> bool:
    """Let one operator compute LayerNorm and Mish; False if there is none, see :func:`can_fuse`."""
    if can := can_fuse(model.cfg, device):
        from tdmpc2.acceleration.cpu import norm_mish

        layers.fuse(model, norm_mish.norm_mish)
    return can


def compiled(
    model: WorldModel, device: torch.device, *, cpp_wrapper: bool = True
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Compile :func:`~tdmpc2.losses.model_losses` and :func:`~tdmpc2.losses.policy_loss`, each on its first call.

    The model gets layers that compile well, and fused ones where there are some: the compiler's own code for LayerNorm
    and Mish takes three times as long.

    Args:
        model: whose losses they will be.
        device: where it is.
        cpp_wrapper: on a CPU, call kernels from C++ instead of Python: 3 % of an update, but a profiler sees nothing.
    """
    layers.prepare_for_compiler(model)
    fuse(model, device)
    options = {"cpp_wrapper": cpp_wrapper} if device.type == "cpu" else {}
    return (
        compile_once(model_losses, lambda model, distillation, batch, *_: batch.obs.shape, options),
        compile_once(policy_loss, lambda model, group, zs, *_: zs.shape, options),
    )


def compile_once(
    function: Callable[..., Any], size_of: Callable[..., torch.Size], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Compile a function for the size of its first call; calls of other sizes run uncompiled.

    Args:
        function: of tensors only, as a number would be compiled in.
        size_of: takes the function's arguments, returns the size that tells batches apart.
        options: of the compiler.
    """
    fast = compiled_or_plain(function, "training", fullgraph=True, dynamic=False, options=dict(options))
    sizes: list[torch.Size] = []

    def chosen(*args: Any) -> Any:
        size = size_of(*args)
        if not sizes:
            sizes.append(size)
        return (fast if size == sizes[0] else function)(*args)

    return chosen


def compiled_or_plain(function: Callable[..., Any], what: str, **options: Any) -> Callable[..., Any]:
    """Compile a pure function on its first call; if that fails, say so in one line and go on with it as it is.

    Args:
        function: changes nothing, so that a call that failed can be made again.
        what: goes on without compilation, for the line.
        options: of ``torch.compile``.
    """
    use_private_cache()
    fast: Callable[..., Any] | None = torch.compile(own_copy(function), **options)

    def chosen(*args: Any, **kwargs: Any) -> Any:
        nonlocal fast
        if fast is None:
            return function(*args, **kwargs)
        try:
            return fast(*args, **kwargs)
        except Exception as error:  # compilers fail in many ways; a fault of the function itself comes again below
            result = function(*args, **kwargs)
            fast, reason = None, cut(next(iter(str(error).strip().splitlines()), ""))
            _log.warning("The compiler failed (%s: %s): %s without compilation", type(error).__name__, reason, what)
            return result

    return chosen


def own_copy(function: Callable[..., Any]) -> Callable[..., Any]:
    """Copy a function with its code, so that its compiled variants are its owner's alone.

    torch compiles at most eight variants of one code, whoever asks for them, and a sweep of runs trains more agents
    than that in one process. What is compiled of a copy is freed with it.
    """
    assert isinstance(function, FunctionType)
    copy = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
