"""Which values a configuration key may have."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tdmpc2.tasks import nearest

_INF = float("inf")
CHOICES = {
    "policy_loss": ("opt", "tdmpc2"),
    "precision": ("auto", "fp32", "bf16", "fp16", "int8"),
    "update_precision": ("fp32", "bf16"),
    "compile": ("auto", "true", "false"),
    "data_device": ("auto", "cuda", "cpu", "disk"),
    "task_balance": ("episodes", "tasks"),
    "distillation_cache": ("off", "lazy", "full"),
    "distillation_schedule": ("constant", "linear", "cosine", "gap"),
    "resume": ("auto", "never", "must"),
}
_AT_LEAST_ONE = (
    "steps batch_size iterations num_samples num_elites num_pi_trajs horizon num_enc_layers enc_dim mlp_dim "
    "latent_dim simnorm_dim num_channels eval_episodes episodes_per_task episodes_per_file max_episodes_per_task "
    "num_threads log_freq save_freq keep_last buffer_size"
)
_AT_LEAST_ZERO = (
    "eval_freq reward_coef value_coef consistency_coef distillation_weight entropy_coef task_dim lr "
    "enc_lr_scale min_std max_std temperature"
)
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_AT_LEAST_ONE.split(), (1, _INF)),
    **dict.fromkeys(_AT_LEAST_ZERO.split(), (0, _INF)),
    **dict.fromkeys(("seed", "eval_seed"), (0, 2**31 - 1)),  # simulators take 32 bits
    "num_bins": (2, _INF),
    "num_q": (2, _INF),
    "rho": (0, 1),
    "tau": (0, 1),
    "dropout": (0, 0.999),
    "discount_min": (0, 1),
    "discount_max": (0, 1),
    "discount_denom": (1e-6, _INF),
    "grad_clip_norm": (1e-6, _INF),
    "distillation_temperature": (1e-6, _INF),
}


def check_value(name: str, value: Any) -> None:
    """Raise ``ValueError`` if a key's value is not one of its choices or out of its range; None always passes."""
    if name in CHOICES and value not in CHOICES[name]:
        raise ValueError(f"{name}={value} is not one of {', '.join(CHOICES[name])}")
    if name in RANGES and value is not None:
        low, high = RANGES[name]
        if not low <= value <= high:
            limits = f"at least {low}" if high == _INF else f"between {low} and {high}"
            raise ValueError(f"{name}={value} must be {limits}")


def uncached_targets(names: Iterable[str]) -> list[str]:
    """List the targets that a cache of the teacher's outputs cannot serve."""
    from tdmpc2.distillation.targets import TARGETS

    return [name for name in names if TARGETS[name].cached_as is None]


def distillation_terms(entries: Iterable[str], default_weight: float) -> dict[str, float]:
    """Target -> weight of the entries ``NAME`` and ``NAME WEIGHT`` of the key ``distillation_targets``, in their order.

    Raises:
        ValueError: an unknown name, one that is there twice, or a weight that is not a number of at least zero.
    """
    from tdmpc2.distillation.targets import TARGETS  # here, so that listing the keys does not load torch

    terms: dict[str, float] = {}
    for entry in entries:
        name, *rest = entry.split() or [""]
        where = f"distillation_targets: '{entry}'"
        if name not in TARGETS:
            raise ValueError(f"{where}: '{name}' is not one of {', '.join(TARGETS)}.{nearest(name, TARGETS)}")
        if name in terms:
            raise ValueError(f"{where}: '{name}' is there twice")
        try:
            (weight,) = (float(item) for item in rest) if rest else (default_weight,)
        except ValueError:
            raise ValueError(f"{where} is not 'NAME' or 'NAME WEIGHT', for example 'value 0.1'") from None
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{where}: the weight {weight} must be at least 0")
        terms[name] = weight
    if not terms:
        raise ValueError("distillation_targets must name at least one target; teacher_config=null trains without")
    return terms
