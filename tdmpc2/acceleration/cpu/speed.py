"""Speed of the CPU kernels in each number format on this machine.

The CPU's flags do not tell which format is fastest: on a CPU with AMX, for example, torch is faster in bf16 than in
float32, and the kernels are slower. So the kernels are timed once, on a small model, and the times are kept in the
user's cache. Processor time is measured, since the choice is kept for good and the machine may be busy just then: by
the clock on the wall, int8 kernels that need two thirds of the time had once been as slow as float32.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from tdmpc2.acceleration.cpu import library
from tdmpc2.acceleration.cpu.networks import PackedNetworks
from tdmpc2.acceleration.low_precision import set_precision
from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.support.files import replacing
from tdmpc2.support.places import cache_dir
from tdmpc2.support.reading import load_json
from tdmpc2.support.runtime import processor_name

_FORMATS = ("fp32", "bf16", "int8")
_TURNS = 7
_CLEARLY = 0.9  # of two formats as fast as each other, the more exact one is taken, whatever disturbs the timing


@functools.cache
def kernel_seconds() -> dict[str, float]:
    """Processor seconds for the samples of one iteration, by number format; empty where there are no kernels."""
    if library.reason():
        return {}
    processor = hashlib.sha256(processor_name().encode()).hexdigest()[:8]  # homes are shared between machines
    try:
        times = cache_dir() / f"kernel-times-{library.identity()}-{processor}.json"
    except RuntimeError:  # no home
        return _measure()
    return _read(times) or _write(times, _measure())


def fastest(candidates: tuple[str, ...], seconds: Mapping[str, float]) -> str:
    """Choose the first of some number formats, the most exact one, unless another is clearly faster."""
    first, best = candidates[0], min(candidates, key=seconds.__getitem__)
    return best if seconds[best] < _CLEARLY * seconds[first] else first


@torch.no_grad()
def _measure() -> dict[str, float]:
    """Time one iteration's samples of a 1M model in turns; the shortest time of each is the least disturbed."""
    cfg = Config(task="walker-walk", model_size=1, device="cpu")
    plain = WorldModel(cfg, torch.Generator().manual_seed(0))
    networks = {name: PackedNetworks(set_precision(copy.deepcopy(plain), name, torch.bfloat16)) for name in _FORMATS}
    task = plain.context(None)
    z = torch.full((1, cfg.latent_dim), 1 / cfg.simnorm_dim, dtype=torch.float32)
    actions = torch.zeros(1, cfg.horizon, cfg.num_samples, cfg.action_dim, dtype=torch.float32)
    heads = torch.arange(2)
    seconds = dict.fromkeys(_FORMATS, float("inf"))
    for _ in range(_TURNS):
        for name, network in networks.items():
            start = time.process_time()
            network.estimate_value(z, task, actions, actions[:, 0], heads)
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


def _read(path: Path) -> dict[str, float] | None:
    """Times measured before, if they are all there."""
    try:
        seconds = {name: float(load_json(path)[name]) for name in _FORMATS}
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return seconds if all(0 < value < math.inf for value in seconds.values()) else None


def _write(path: Path, seconds: dict[str, float]) -> dict[str, float]:
    """Keep the times, unless the disk refuses: then they are measured again in the next process."""
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(seconds))
    except (OSError, ValueError):
        pass
    return seconds
