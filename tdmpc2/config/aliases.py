"""Names that other programs use for a configuration key: an unknown key is answered with ours."""

from __future__ import annotations

from collections.abc import Iterable

from tdmpc2.tasks import nearest

#: Key -> what it is called elsewhere.
ALIASES: dict[str, tuple[str, ...]] = {
    "batch_size": ("batchsize", "bs", "minibatch_size", "per_device_train_batch_size", "train_batch_size"),
    "checkpoint": ("checkpoint_path", "ckpt", "ckpt_path", "init_from", "model_path", "pretrained", "weights"),
    "compile": ("jit", "torch_compile"),
    "data_dir": ("data", "data_path", "data_root", "dataset", "dataset_dir", "dataset_path"),
    "device": ("accelerator", "cuda", "gpu", "use_cuda"),
    "discount_max": ("discount", "gamma"),
    "distillation_weight": ("alpha", "distill_coef", "distill_weight", "distillation_coef", "kd_weight"),
    "eval_episodes": ("n_eval_episodes", "num_eval_episodes"),
    "eval_freq": ("eval_every", "eval_interval", "eval_steps", "evaluate_every", "test_freq"),
    "exp_name": ("exp", "experiment", "experiment_name", "name", "run_name"),
    "freeze": ("freeze_layers", "freeze_modules", "freeze_parts", "frozen"),
    "grad_clip_norm": ("clip_grad_norm", "grad_clip", "gradient_clip_val", "max_grad_norm"),
    "horizon": ("plan_horizon", "planning_horizon"),
    "log_freq": ("log_every", "log_interval", "logging_steps"),
    "lr": ("learning_rate", "learningrate", "step_size"),
    "model_size": ("model", "size"),
    "num_elites": ("elites", "n_elites", "num_topk"),
    "num_pi_trajs": ("num_policy_trajectories", "policy_trajectories"),
    "num_samples": ("population_size", "samples"),
    "num_threads": ("cpu_threads", "n_threads", "threads"),
    "precision": ("amp", "dtype", "mixed_precision"),
    "rho": ("lambda", "lambda_"),
    "save_freq": ("checkpoint_freq", "checkpoint_interval", "save_every", "save_interval", "save_steps"),
    "save_video": ("capture_video", "record_video", "render", "video"),
    "seed": ("random_seed", "random_state"),
    "steps": (
        "iters", "max_iters", "max_steps", "n_steps", "num_iterations", "num_steps", "num_train_steps",
        "num_updates", "total_steps", "total_timesteps", "train_steps", "training_steps",
    ),
    "task": ("domain", "env", "env_id", "env_name", "environment"),
    "ema_decay": ("ema", "ema_rate", "polyak_decay", "swa_decay", "weight_averaging"),
    "tau": ("polyak", "soft_update_rate", "target_update_rate"),
    "teacher_config.checkpoint": ("teacher", "teacher_checkpoint", "teacher_path"),
    "teachers": ("task_teachers", "teacher_files", "teacher_per_task"),
    "wandb_entity": ("entity",),
    "wandb_project": ("project", "use_wandb", "wandb"),
    "work_dir": ("log_dir", "logdir", "out_dir", "output", "output_dir", "run_dir", "save_dir", "workdir"),
}  # fmt: skip
_KEYS = {alias: key for key, aliases in ALIASES.items() for alias in aliases}


def key_hint(name: str, names: Iterable[str]) -> str:
    """A hint for the error about an unknown key: `` Did you mean 'lr'?`` or an empty string.

    Args:
        name: what was typed.
        names: keys that would have been accepted.
    """
    accepted = list(names)
    group, dot, last = name.rpartition(".")
    known = _KEYS.get(last.lower().replace("-", "_"), "")
    for key in (f"{group}{dot}{known}", known):
        if known and key in accepted:
            return f" Did you mean '{key}'?"
    return nearest(name, accepted)
