"""The one configuration object: flat, frozen, validated.

:class:`Config` is the table of keys, converted and checked. What follows from the keys (sizes, tasks, directories) is a
property, so nothing is ever written to a configuration once it is made.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tdmpc2.config.distillation_keys import beforehand, distillation_terms, uncached_targets
from tdmpc2.config.keys import Keys
from tdmpc2.config.observing import check_observations, stacked_shape
from tdmpc2.config.parts import check_parts
from tdmpc2.config.presets import PRESETS, with_preset
from tdmpc2.config.run_directory import holds_run, run_directory
from tdmpc2.config.sharing import check_sharing, stored_for
from tdmpc2.config.sizes import budget, check_widths, model_widths
from tdmpc2.config.tables import KEYS, WIDTHS, check_keys, plain
from tdmpc2.config.values import check_value, convert, is_nothing
from tdmpc2.tasks import (
    TASK_SETS,
    TaskSpec,
    defaults_of,
    elsewhere,
    listed,
    lookup,
    matching,
    nearest,
    padded_sizes,
    read_specs,
    task_names,
)


@dataclass(frozen=True, kw_only=True)
class Config(Keys):
    """One agent and what is done with it. Keys that follow others are resolved: no attribute is left at ``auto``.

    Raises:
        ValueError: from construction, naming the key, its value and the remedy.
    """

    task_specs: tuple[TaskSpec, ...] = field(default=())  # of task, by parse_cfg; not a key

    def __new__(cls, *_: Any, **values: Any) -> Config:
        """Refuse unknown keys as a command line does, and not as Python does for arguments."""
        check_keys(values.keys() - {"task_specs"}, "Config(...)")
        self = super().__new__(cls)
        if values.get("planner") is not None:
            self.__dict__["_typed"] = values.keys()  # which win over the preset, also where they are the defaults
        return self

    def __post_init__(self) -> None:
        hints = _hints()
        for name, key in KEYS.items():
            object.__setattr__(self, name, convert(key, hints[name], getattr(self, name)))
        typed = self.__dict__.pop("_typed", ())
        for name, value in PRESETS.get(self.planner or "", {}).items():  # the preset is resolved, like "auto"
            object.__setattr__(self, "planner", None)
            if name not in typed:
                object.__setattr__(self, name, value)
        if not self.task_specs:
            object.__setattr__(self, "task_specs", tuple(lookup(name) for name in task_names(self.task)))
        object.__setattr__(self, "task_specs", read_specs(self.task_specs))
        if self.tasks:
            object.__setattr__(self, "tasks", matching(self.tasks, self.task_names, f"task set '{self.task}'"))
        for name, key in KEYS.items():
            check_value(key, getattr(self, name))
        for name, value in self._following().items():
            if KEYS[name].unset(getattr(self, name)):
                object.__setattr__(self, name, value)
        self._validate()
        if not self.multitask:
            object.__setattr__(self, "task_dim", 0)  # there is no task to embed

    # -- what follows from the keys ---------------------------------------------------------------------------------

    @property
    def multitask(self) -> bool:
        """True if the model has a task embedding and action masks."""
        return self.task in TASK_SETS or len(self.task_specs) > 1

    @cached_property
    def task_names(self) -> tuple[str, ...]:
        """All tasks of the model, in id order."""
        return tuple(spec.name for spec in self.task_specs)

    @property
    def task_ids(self) -> tuple[int, ...]:
        """Ids of the tasks that are collected, sampled and scored (``tasks``; all by default)."""
        return tuple(self.task_names.index(name) for name in self.tasks or self.task_names)

    @cached_property
    def obs_dim(self) -> int:
        """Padded observation size O."""
        return padded_sizes(self.task_specs)[0]

    @property
    def observes_images(self) -> bool:
        """True if observations have images, alone (``rgb``) or beside the state (``rgb+state``)."""
        return self.obs != "state"

    @property
    def observes_state(self) -> bool:
        """True if observations have the state, alone (``state``) or beside images (``rgb+state``)."""
        return self.obs != "rgb"

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of the newest images side by side, (9, 64, 64) where the environment draws them."""
        return stacked_shape(self.task_specs[0])

    @cached_property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of an observation: [O], the newest images side by side, or the bytes of state and images."""
        if self.obs == "rgb+state":
            return (4 * self.obs_dim + math.prod(self.image_shape),)
        return self.image_shape if self.obs == "rgb" else (self.obs_dim,)

    @cached_property
    def action_dim(self) -> int:
        """Padded action size A."""
        return padded_sizes(self.task_specs)[1]

    @property
    def discounts(self) -> tuple[float, ...]:
        """Discount per task, from its episode length."""

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
    def envs(self) -> tuple[int, ...]:
        """Task id of each environment that is played while learning online, task by task."""
        return tuple(task_id for task_id in self.task_ids for _ in range(self.num_envs))

    @property
    def stored_for(self) -> dict[int, tuple[int, ...]]:
        """Task id -> ids of the tasks that its episodes are stored for, its own first; others with ``share_body``."""
        return stored_for({task_id: self.task_names[task_id] for task_id in self.task_ids}, self.share_body)

    @property
    def tuned_task(self) -> str | None:
        """The one task that a model of many is fine-tuned to by acting; None in all other runs."""
        tuned = self.mode == "online" and self.multitask and self.checkpoint is not None
        return self.tasks[0] if tuned and self.tasks is not None and len(self.tasks) == 1 else None

    @property
    def run_task(self) -> str:
        """The task that a run is named after."""
        return self.tuned_task or self.task

    @property
    def num_updates(self) -> int:
        """Updates of a run of ``steps``."""
        return self.steps if self.mode == "offline" else max(int(self.utd * self.steps), 1)

    @property
    def distillation_terms(self) -> dict[str, float]:
        """Weight of each distillation target."""
        return distillation_terms(self.distillation_targets, self.distillation_weight)

    @property
    def run_dir(self) -> Path:
        """Directory of everything a run writes; a run of one task of a set that is older stays where it began."""
        if self.work_dir:
            return Path(self.work_dir)
        own = run_directory(self.run_task, self.seed, self.exp_name)
        if self.tuned_task is None or (own / "run.json").exists():
            return own
        older = run_directory(self.task, self.seed, self.exp_name)  # which were named after the set
        is_this = holds_run(older, mode=self.mode, tasks=[self.tuned_task], checkpoint=self.checkpoint)
        return older if is_this else own

    # -- copies -----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict of strings, numbers, lists and None; ``Config(**d)`` is the inverse."""
        values = {name: plain(value) for name, value in dataclasses.asdict(self).items()}
        values["task_specs"] = [spec.plain() for spec in self.task_specs]
        return values

    def replace(self, **changes: Any) -> Config:
        """Copy with some keys changed, validated like a new one.

        Unless they are given as well, widths follow a new ``model_size``, and elites and policy trajectories a new
        ``num_samples`` in the proportion they have here; other keys keep their values, also those that followed from a
        changed one (``rho`` from ``episodic``). A preset, ``planner``, is the keys that it stands for.
        """
        check_keys(changes.keys() - {"task_specs"}, "the overrides")
        changes = with_preset(changes)
        if "task" in changes:
            changes.setdefault("task_specs", ())
        return dataclasses.replace(self, **{**self._following_again(changes), **changes})

    def following(self) -> frozenset[str]:
        """The keys whose value is the one that follows from others."""
        usual = self._following()
        usual["mode"] = "offline" if self.multitask or self.data_dir != usual["data_dir"] else "online"
        return frozenset(name for name, value in usual.items() if getattr(self, name) == value)

    # -- following and validation -----------------------------------------------------------------------------------

    def _following(self) -> dict[str, Any]:
        """The value of every key that follows another one, if it is not typed."""
        lengths = [spec.episode_length for spec in self.task_specs if not self.tasks or spec.name in self.tasks] or [0]
        offline = self.multitask or self.data_dir is not None
        mode = ("offline" if offline else "online") if KEYS["mode"].unset(self.mode) else self.mode
        # Environments step together until the longest episode has ended; offline, where nothing is stepped, the value
        # is that of older records.
        turns = len(lengths) * max(lengths) if mode == "online" else sum(lengths)
        return {
            "mode": mode,
            "data_dir": "data/mt30",
            "policy_loss": "tdmpc2" if mode == "online" else "opt",
            "rho": 0.7 if self.episodic else 0.5,
            "discount_max": 0.99 if self.episodic else 0.995,
            **defaults_of(self.task_names),
            "task_balance": "tasks" if mode == "online" and len(lengths) > 1 else "episodes",
            "seed_steps": max(1000, 5 * max(lengths), self.num_envs * turns),
            **budget(self.num_samples),
            **model_widths(self.model_size, self.task, self.multitask),
        }

    def _following_again(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        again: dict[str, Any] = {}
        task = str(changes.get("task", self.task))
        if not is_nothing(changes.get("model_size", self.model_size)):
            if changes.keys() & {"model_size", "task"}:
                again |= dict.fromkeys(WIDTHS)
        elif (task in TASK_SETS or len(changes.get("task_specs", self.task_specs)) > 1) != self.multitask:
            again["task_dim"] = None
        if "num_samples" in changes:
            num_samples = convert(KEYS["num_samples"], int, changes["num_samples"])
            check_value(KEYS["num_samples"], num_samples)
            again |= budget(num_samples, (self.num_samples, self.num_elites, self.num_pi_trajs))
        return again

    def _validate(self) -> None:
        if self.mode == "online" and self.distillation_cache != "off":
            raise ValueError(
                f"distillation_cache={self.distillation_cache} belongs to stored episodes, and mode=online has none: "
                "use distillation_cache=off"
            )
        check_observations(self)
        if self.demonstrations is not None:
            self._check_demonstrations(self.demonstrations)
        elif self.bc_coef:
            raise ValueError(f"bc_coef={self.bc_coef:g} imitates demonstrations: name them as demonstrations=DIR")
        for name in self.tasks or ():
            if name not in self.task_names:
                raise ValueError(
                    f"tasks: '{name}' is not in task set '{self.task}' ({listed(self.task_names)})."
                    f"{elsewhere(name) or nearest(name, self.task_names)}"
                )
        if self.tasks is not None and (not self.tasks or len(set(self.tasks)) < len(self.tasks)):
            raise ValueError(f"tasks={list(self.tasks)} must name at least one task, each once")
        if self.share_body:
            check_sharing(self, self.stored_for)
        check_widths({name: getattr(self, name) for name in WIDTHS}, self.model_size, self.task, self.multitask)
        absent = ["termination"] * (not self.episodic) + ["task_embedding"] * (not self.multitask)
        check_parts(self.freeze, self.reset, absent, self.checkpoint)
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
        live = uncached_targets(self.distillation_terms)  # the first look at them: it checks their names and weights
        if live and self.distillation_cache == "lazy":
            raise ValueError(
                "distillation_cache=lazy holds rewards, values and policies, not what "
                f"distillation_targets={', '.join(live)} needs: use full, which asks the teacher for that, or off"
            )
        if self.distillation_cache == "lazy" and (slow := beforehand(self.distillation_terms)):
            raise ValueError(
                f"distillation_cache=lazy computes as it trains, and distillation_targets={', '.join(slow)} takes too "
                "long for that: use distillation_cache=full"
            )
        if self.teachers and self.distillation_cache == "lazy":
            raise ValueError("distillation_cache=lazy asks one teacher: with teachers use full or off")
        if stranger := next((entry.task for entry in self.teachers or () if entry.task not in self.task_names), None):
            raise ValueError(
                f"teachers: '{stranger}' is not a task of '{self.task}'.{nearest(stranger, self.task_names)}"
            )
        taught = {entry.task for entry in self.teachers or ()}
        if taught and taught.isdisjoint(learned := [self.task_names[task_id] for task_id in self.task_ids]):
            raise ValueError(f"teachers: the run learns {', '.join(learned)}, and none of {', '.join(sorted(taught))}")
        if self.value_scale == "per_task" and not self.multitask:
            raise ValueError(f"value_scale=per_task tells tasks apart, and task={self.task} is one: leave it out")
        if self.eval_weights == "ema" and not self.ema_decay:
            raise ValueError("eval_weights=ema plays averaged weights, and ema_decay=0 keeps none: set ema_decay=0.999")
        if self.collect_policy and not self.mpc:
            raise ValueError(
                f"collect_policy={self.collect_policy:g} is the share of steps without a plan, and mpc=false plans "
                "for none: leave one out"
            )
        for name in ("collect_num_samples", "collect_iterations"):
            if getattr(self, name) is not None and not self.mpc:
                raise ValueError(f"{name}={getattr(self, name)} is of plans, and mpc=false makes none: leave one out")
        if self.collect_precision != "fp32" and not self.mpc:
            raise ValueError(
                f"collect_precision={self.collect_precision} is that of plans, and mpc=false makes none: leave one out"
            )
        if self.augment_eval and self.obs == "state" and self.checkpoint is None:  # a file says what it observes
            raise ValueError("augment_eval=true shifts images, and obs=state has none: leave it out, or set obs=rgb")
        if self.min_std > self.max_std:
            raise ValueError(f"min_std={self.min_std} must not exceed max_std={self.max_std}")

    def _check_demonstrations(self, directory: str) -> None:
        if self.mode == "offline":
            raise ValueError(
                f"demonstrations={directory} are shown to a run that learns online: to learn from stored episodes "
                f"alone, name them as data_dir={directory}"
            )
        if self.observes_images:
            raise ValueError(
                f"obs={self.obs}: demonstrations={directory} hold states, no images. Leave out one of them"
            )
        if self.batch_size < 2:
            raise ValueError(f"batch_size={self.batch_size} leaves no half of a batch for demonstrations={directory}")


@cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(Keys)
