"""The one configuration object: flat, frozen, validated. See specification ``algorithm.md``, section 14, for the keys.

``Config`` holds every key that can be set on a command line. What follows from the keys (sizes, tasks, directories)
is a property, so nothing is ever written to a configuration after :func:`parse_cfg`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tdmpc2.config.limits import check_value, distillation_terms, uncached_targets
from tdmpc2.config.values import convert
from tdmpc2.tasks import TASK_SETS, TaskSpec, lookup, nearest, task_names


@dataclass(frozen=True, kw_only=True)
class Config:
    """One agent and what is done with it. Defaults are the 1M MT30 student's.

    Raises:
        ValueError: from construction, naming the key, its value and the remedy.
    """

    # Task
    task: str = "mt30"  # a task set (mt30, mt80), a task of the table, or a Gymnasium id with its module
    obs: str = "state"
    tasks: tuple[str, ...] | None = None  # subset to collect, sample and score; ids and padding stay the set's
    seed: int = 1

    # Files
    checkpoint: str | None = None  # weights to start from, or to evaluate; null: random weights
    data_dir: str = "data/mt30"  # an episode store, or a directory of chunk_*.pt
    exp_name: str | None = None  # null: "default", or the swept overrides in a multirun
    work_dir: str | None = None  # null: logs/<task>/<seed>/<exp_name>

    # Data
    data_device: str = "auto"  # auto | cuda | cpu | disk: where the episodes lie while training
    task_balance: str = "episodes"  # episodes: every episode is equally likely; tasks: every task is
    max_episodes_per_task: int | None = None  # that many of each task, evenly spaced; null: all

    # Offline training
    steps: int = 200_000
    batch_size: int = 256
    reward_coef: float = 0.1
    value_coef: float = 0.1
    consistency_coef: float = 20.0
    rho: float = 0.5
    lr: float = 3e-4
    enc_lr_scale: float = 0.3
    grad_clip_norm: float = 20.0
    tau: float = 0.01
    discount_denom: float = 5.0
    discount_min: float = 0.95
    discount_max: float = 0.995
    buffer_size: int = 1_000_000  # for online training, which is not built yet
    policy_loss: str = "opt"  # opt: TD-MPC-Opt's entropy term; tdmpc2: the current TD-MPC2 one
    entropy_coef: float = 1e-4

    # Distillation
    distillation_targets: tuple[str, ...] = ("reward",)  # "NAME [WEIGHT]", names in tdmpc2/distillation/distillation.py
    distillation_weight: float = 0.45  # coefficient of a target without a weight of its own
    distillation_schedule: str = "constant"  # constant | linear | cosine | gap: a factor on all these weights
    distillation_temperature: float = 2.0  # softmax temperature of reward_logits
    distillation_cache: str = "off"  # off | lazy: keep the teacher's targets as they are used | full: compute all first

    # Planning
    mpc: bool = True  # false: act with the policy prior alone
    iterations: int = 6  # two more are planned where action_dim >= 20
    num_samples: int = 512
    num_elites: int = 64
    num_pi_trajs: int = 24
    horizon: int = 3
    min_std: float = 0.05
    max_std: float = 2.0
    temperature: float = 0.5

    # Policy prior and discrete regression
    log_std_min: float = -10.0
    log_std_max: float = 2.0
    num_bins: int = 101
    vmin: float = -10.0
    vmax: float = 10.0

    # Architecture; model_size sets all widths, null takes them from here
    model_size: int | None = 1
    num_enc_layers: int = 2
    enc_dim: int = 256
    mlp_dim: int = 384
    latent_dim: int = 128
    num_q: int = 2
    task_dim: int = 96
    dropout: float = 0.01
    simnorm_dim: int = 8
    num_channels: int = 32  # of the pixel encoder, which is not built yet

    # Evaluation
    eval_episodes: int = 10
    eval_freq: int = 50_000  # steps between evaluations while training; 0: never
    eval_noise: bool = False  # true: exploration noise on the executed action, as in the published protocol
    eval_seed: int = 100  # episode k is played in an environment built with seed eval_seed + k
    compare: str | None = None  # second checkpoint: report the interval of the difference

    # Collecting
    episodes_per_task: int = 10
    episodes_per_file: int = 100
    mix: tuple[str, ...] | None = None  # "SHARE random|policy|planner [CHECKPOINT] [noise STD]"; null: checkpoint alone

    # Device
    device: str = "auto"
    precision: str = "auto"  # auto | fp32 | bf16 | fp16 | int8: what planning computes in
    update_precision: str = "fp32"  # fp32 | bf16: what the matrix products of an update compute in; weights stay fp32
    compile: str = "auto"  # auto | true | false: the planner and the update; auto: where there is enough to do
    num_threads: int | None = None  # null: OMP_NUM_THREADS, else every core of this process

    # Logging and saving
    log_freq: int = 100
    save_freq: int = 50_000
    save_agent: bool = True
    keep_last: int = 1  # newest checkpoints that are kept; all but model.pt are model_<step>.pt
    save_best: bool = True  # best.pt: the checkpoint with the highest score of the evaluations while training
    resume: str = "auto"  # auto: continue the run if there is one; never: refuse to; must: refuse to start a new one
    dry_run: bool = False  # check everything, estimate time, memory and disk, and stop
    save_csv: bool = True
    save_video: bool = False
    wandb_project: str | None = None  # null: no Weights & Biases
    wandb_entity: str | None = None
    wandb_silent: bool = False
    disable_wandb: bool = False
    teacher_score: float | None = None  # normalised score of the teacher, if known: a flat line beside the student's
    control_score: float | None = None  # that of a student trained for as long without a teacher

    # Derived by parse_cfg; not a key
    task_specs: tuple[TaskSpec, ...] = field(default=(), metadata={"derived": True})

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(Config)
        for name in key_names():
            object.__setattr__(self, name, convert(name, hints[name], getattr(self, name)))
        if not self.task_specs:
            object.__setattr__(self, "task_specs", tuple(lookup(name) for name in task_names(self.task)))
        specs = (spec if isinstance(spec, TaskSpec) else TaskSpec(**spec) for spec in self.task_specs)
        object.__setattr__(self, "task_specs", tuple(specs))
        for name, value in self._sizes().items():
            object.__setattr__(self, name, value)
        self._validate()

    # -- what follows from the keys ---------------------------------------------------------------------------------

    @property
    def multitask(self) -> bool:
        """Whether the model has a task embedding and action masks."""
        return self.task in TASK_SETS

    @property
    def task_names(self) -> tuple[str, ...]:
        """All tasks of the model, in id order."""
        return tuple(spec.name for spec in self.task_specs)

    @property
    def task_ids(self) -> tuple[int, ...]:
        """Ids of the tasks that are collected, sampled and scored (``tasks``; all by default)."""
        return tuple(self.task_names.index(name) for name in self.tasks or self.task_names)

    @property
    def obs_dim(self) -> int:
        """Padded observation size O."""
        return max(spec.obs_dim for spec in self.task_specs)

    @property
    def action_dim(self) -> int:
        """Padded action size A."""
        return max(spec.action_dim for spec in self.task_specs)

    @property
    def discounts(self) -> tuple[float, ...]:
        """Discount per task from its episode length (specification section 8)."""

        def discount(length: int) -> float:
            frac = length / self.discount_denom
            return min(max((frac - 1) / frac, self.discount_min), self.discount_max)

        return tuple(discount(spec.episode_length) for spec in self.task_specs)

    @property
    def bin_size(self) -> float:
        """Spacing of the value and reward bins in symlog space."""
        return (self.vmax - self.vmin) / (self.num_bins - 1)

    @property
    def plan_iterations(self) -> int:
        """MPPI iterations per plan; large action spaces get two more."""
        return self.iterations + 2 * (self.action_dim >= 20)

    @property
    def distillation_terms(self) -> dict[str, float]:
        """What is distilled, and with which weight."""
        return distillation_terms(self.distillation_targets, self.distillation_weight)

    @property
    def run_dir(self) -> Path:
        """Directory of everything a run writes."""
        return Path(self.work_dir or Path("logs") / self.task / str(self.seed) / (self.exp_name or "default"))

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict of strings, numbers, lists and None; ``Config(**d)`` is the inverse."""
        plain = {name: _plain(value) for name, value in dataclasses.asdict(self).items()}
        plain["task_specs"] = [dict(spec) for spec in plain["task_specs"]]
        return plain

    def replace(self, **changes: Any) -> Config:
        """A copy with some keys changed, validated like a new one."""
        check_keys(changes.keys() - {"task_specs"}, "the overrides")
        if "task" in changes:
            changes.setdefault("task_specs", ())
        return dataclasses.replace(self, **changes)

    # -- validation -------------------------------------------------------------------------------------------------

    def _sizes(self) -> dict[str, int]:
        if self.model_size is None:
            return {} if self.multitask else {"task_dim": 0}
        if self.model_size not in MODEL_SIZES:
            raise ValueError(f"model_size={self.model_size} is not one of {', '.join(map(str, MODEL_SIZES))}, null")
        sizes = dict(MODEL_SIZES[self.model_size])
        if self.model_size == 19 and self.task == "mt30":
            sizes["latent_dim"] = 512
        wide_embedding = self.task == "mt80" or self.model_size in (1, 317)
        sizes["task_dim"] = 0 if not self.multitask else 96 if wide_embedding else 64
        return sizes

    def _validate(self) -> None:
        if self.obs != "state":
            raise ValueError(f"obs={self.obs}: only 'state' observations are supported")
        for name in self.tasks or ():
            if name not in self.task_names:
                raise ValueError(f"tasks: '{name}' is not in task set '{self.task}'.{nearest(name, self.task_names)}")
        if self.tasks is not None and (not self.tasks or len(set(self.tasks)) < len(self.tasks)):
            raise ValueError(f"tasks={list(self.tasks)} must name at least one task, each once")
        for name in key_names():
            check_value(name, getattr(self, name))
        if self.num_elites > self.num_samples or self.num_pi_trajs >= self.num_samples:
            raise ValueError(
                f"num_samples={self.num_samples} must be at least num_elites={self.num_elites} "
                f"and more than num_pi_trajs={self.num_pi_trajs}"
            )
        if self.horizon > (length := min(spec.episode_length for spec in self.task_specs)):
            raise ValueError(f"horizon={self.horizon} must be at most {length}, the length of the shortest episode")
        if self.latent_dim % self.simnorm_dim:
            raise ValueError(f"latent_dim={self.latent_dim} must be a multiple of simnorm_dim={self.simnorm_dim}")
        for low_key, high_key in (("vmin", "vmax"), ("log_std_min", "log_std_max"), ("discount_min", "discount_max")):
            if getattr(self, low_key) >= getattr(self, high_key):
                raise ValueError(
                    f"{low_key}={getattr(self, low_key)} must be below {high_key}={getattr(self, high_key)}"
                )
        uncached = uncached_targets(self.distillation_terms)
        if uncached and self.distillation_cache != "off":
            raise ValueError(
                f"distillation_cache={self.distillation_cache} holds rewards and values, not what "
                f"distillation_targets={', '.join(uncached)} needs: use distillation_cache=off"
            )
        if self.min_std > self.max_std:
            raise ValueError(f"min_std={self.min_std} must not exceed max_std={self.max_std}")


#: Widths per model size in million parameters (specification section 1).
MODEL_SIZES: dict[int, dict[str, int]] = {
    size: dict(zip(("enc_dim", "num_enc_layers", "mlp_dim", "latent_dim", "num_q"), widths, strict=True))
    for size, widths in {
        1: (256, 2, 384, 128, 2),
        5: (256, 2, 512, 512, 5),
        19: (1024, 3, 1024, 768, 5),
        48: (1792, 4, 1792, 768, 5),
        317: (4096, 5, 4096, 1376, 8),
    }.items()
}

#: Keys that describe a run rather than the agent: a file's values for these are not taken over when it is loaded.
RUN_KEYS = frozenset(
    """
    checkpoint data_dir exp_name work_dir steps batch_size seed eval_episodes eval_freq eval_noise eval_seed compare
    episodes_per_task episodes_per_file mix data_device task_balance max_episodes_per_task distillation_cache
    device precision compile num_threads log_freq save_freq save_agent save_csv save_video
    keep_last save_best resume dry_run
    wandb_project wandb_entity wandb_silent disable_wandb teacher_score control_score
    """.split()
)


def key_names() -> tuple[str, ...]:
    """Names of all configuration keys, in the order of :class:`Config`."""
    return tuple(f.name for f in dataclasses.fields(Config) if not f.metadata.get("derived"))


def defaults() -> dict[str, Any]:
    """Every key with its default, as plain values."""
    return {f.name: _plain(f.default) for f in dataclasses.fields(Config) if not f.metadata.get("derived")}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_keys(names: Iterable[str], origin: str) -> None:
    """Raise ``ValueError`` for a name that is not a key, naming its origin and the nearest key."""
    for name in names:
        if name not in key_names():
            raise ValueError(f"Unknown key '{name}' in {origin}.{nearest(name, key_names())}")


def parse_cfg(cfg: DictConfig | Mapping[str, Any], origin: str = "the configuration") -> Config:
    """Resolve and validate a composed configuration. Builds no environment for tasks of the table.

    Args:
        cfg: keys of :class:`Config`; missing keys take their defaults.
        origin: where the keys came from, for error messages.

    Raises:
        ValueError: unknown key, wrong type or value out of range.
    """
    resolved = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    plain: dict[str, Any] = {str(name): value for name, value in typing.cast(dict, resolved).items()}
    check_keys((name for name in plain if name != "task_specs"), origin)
    task = str(plain.get("task", Config.task)).strip()
    if task not in TASK_SETS and not plain.get("task_specs"):
        from gymnasium.error import UnregisteredEnv

        from tdmpc2.envs import task_spec

        try:
            plain["task_specs"] = (task_spec(task),)
        except (UnregisteredEnv, ModuleNotFoundError) as error:
            raise ValueError(f"task={task} in {origin}: {error}") from error
    return Config(**{**plain, "task": task})
