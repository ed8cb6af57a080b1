"""Which values a configuration key may have."""

from __future__ import annotations

from typing import Any

_INF = float("inf")
CHOICES = {
    "policy_loss": ("opt", "tdmpc2"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "compile": ("auto", "true", "false"),
    "data_device": ("auto", "cuda", "cpu", "disk"),
    "task_balance": ("episodes", "tasks"),
    "distillation_cache": ("off", "lazy", "full"),
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
