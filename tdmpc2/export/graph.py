"""Policy and plan as modules of tensors alone, which exporters can trace: the plain functions, with tasks looked up.

Shapes are static. E environments, H horizon, S samples, P policy samples, I iterations, K elites, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tdmpc2 import planner
from tdmpc2.config import Config
from tdmpc2.nn.pixels import split_observation
from tdmpc2.nn.world_model import TaskContext, WorldModel
from tdmpc2.planner import PlanNoise

#: Of an input: where its values come from. ``given``: from the caller; the others are drawn anew for each call.
GIVEN, NORMAL, GUMBEL, DISTINCT = "given", "normal", "gumbel", "distinct"


class Input(NamedTuple):
    """An input of an exported step."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as numpy and torch know it
    draw: str  # given, normal, gumbel, or distinct: whole numbers below the number of Q heads, all different in a row
    meaning: str

    def zeros(self) -> Tensor:
        """A tensor that has its form."""
        return torch.zeros(self.shape, dtype=getattr(torch, self.dtype))


class Output(NamedTuple):
    """An output of an exported step."""

    name: str
    shape: tuple[int, ...]
    meaning: str


class Step(nn.Module):
    """A world model and the tasks that it is exported for; called with the tensors of :attr:`inputs`, in their order.

    Args:
        model: acts with the settings of its configuration.
        task_ids: of the tasks, in the order in which the exported step counts them; all by default.
        num_envs: E.
    """

    name: ClassVar[str]
    purpose: ClassVar[str]
    embedding: Tensor | None
    action_mask: Tensor | None
    discount: Tensor

    def __init__(self, model: WorldModel, task_ids: Sequence[int] | None = None, num_envs: int = 1) -> None:
        super().__init__()
        self.cfg, self.num_envs = model.cfg, num_envs
        self.task_ids = tuple(model.cfg.task_ids if task_ids is None else task_ids)
        self.model = model
        with torch.no_grad():
            tables = model.context(torch.tensor(self.task_ids) if model.cfg.multitask else None)
        for name, table in tables._asdict().items():
            self.register_buffer(name, table)
        task = Input("task", (num_envs,), "int64", GIVEN, "number of each environment's task, in the order of `tasks`")
        several = [task] if len(self.task_ids) > 1 else []
        self.inputs = (*_observations(self.cfg, num_envs), *self._inputs(), *several)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Outputs of the step, in order."""
        raise NotImplementedError

    def _inputs(self) -> list[Input]:
        raise NotImplementedError

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Inputs by name."""
        return dict(zip((item.name for item in self.inputs), tensors, strict=True))

    def context(self, given: Mapping[str, Tensor]) -> TaskContext:
        """Look up the tasks of the inputs; where there is none, it is the only one."""
        tables = TaskContext(self.embedding, self.action_mask, self.discount)
        if not self.cfg.multitask:
            return tables
        if "task" not in given:
            rows = len(given["obs"])
            return TaskContext(*(table.expand(rows, -1) for table in tables))  # type: ignore[union-attr]
        return TaskContext(*(table.index_select(0, given["task"]) for table in tables))  # type: ignore[union-attr]


class PolicyStep(Step):
    """The policy prior: observation and noise -> its mean action and a sampled one."""

    name, purpose = "policy", "acts by the policy alone"

    def _inputs(self) -> list[Input]:
        shape = (self.num_envs, self.cfg.action_dim)
        return [Input("noise", shape, "float32", NORMAL, "of the sampled action")]

    @property
    def outputs(self) -> tuple[Output, ...]:
        shape = (self.num_envs, self.cfg.action_dim)
        return Output("action", shape, "the policy's mean"), Output("sample", shape, "an action that the noise samples")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Act: [E, A] each, in [-1, 1]."""
        given = self.named(tensors)
        context = self.context(given)
        sample, info = self.model.pi(encoded(self.model, given, context), context, given["noise"])
        return info["mean"], sample


class PlanStep(Step):
    """The whole planner: observation, plan and noise -> action and plan."""

    name, purpose = "plan", "plans"

    def _inputs(self) -> list[Input]:
        cfg, envs = self.cfg, self.num_envs
        iterations, samples, policy = cfg.plan_iterations, cfg.num_samples, cfg.num_pi_trajs
        horizon, size = cfg.horizon, cfg.action_dim
        noise = [
            Input("noise_policy", (horizon, envs, policy, size), "float32", NORMAL, "of the policy's sequences"),
            Input(
                "noise_samples", (iterations, envs, horizon, samples - policy, size), "float32", NORMAL,
                "of the sequences around the plan",
            ),
            Input("noise_value", (iterations, envs, samples, size), "float32", NORMAL, "of the last value's action"),
            Input("noise_heads", (iterations, 2), "int64", DISTINCT, "the two Q heads of each iteration"),
            Input("noise_elite", (envs, cfg.num_elites), "float32", GUMBEL, "of the choice among the best sequences"),
            Input("noise_action", (envs, size), "float32", NORMAL, "for exploration; zeros act without"),
        ]  # fmt: skip
        state = [
            Input("plan", (envs, horizon, size), "float32", GIVEN, "what the last call returned; anything where t0"),
            Input("t0", (envs,), "bool", GIVEN, "true where an episode starts"),
        ]
        unused = {"noise_heads": cfg.num_q <= 2, "noise_elite": cfg.plan_action == "mean"}
        unused |= dict.fromkeys(("plan", "t0"), cfg.plan_start == "policy")
        return [item for item in (*state, *noise) if not unused.get(item.name)]

    @property
    def outputs(self) -> tuple[Output, ...]:
        cfg, envs = self.cfg, self.num_envs
        shape = (envs, cfg.horizon, cfg.action_dim)
        return Output("action", (envs, cfg.action_dim), "to execute"), Output("next_plan", shape, "for the next call")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Plan: action [E, A] in [-1, 1], and the plan that the next call takes [E, H, A]."""
        given = self.named(tensors)
        context = self.context(given)
        noise = PlanNoise(**{name: self._noise(name, given) for name in PlanNoise._fields})
        if self.cfg.plan_start == "policy":
            previous = torch.zeros(self.num_envs, self.cfg.horizon, self.cfg.action_dim)  # which nothing reads
        else:
            previous = torch.where(given["t0"][:, None, None], 0.0, given["plan"])
        result = planner.plan(
            self.model, encoded(self.model, given, context), context, previous, noise, eval_mode=False
        )
        return result.action, result.mean

    def _noise(self, name: str, given: dict[str, Tensor]) -> Any:
        """Random numbers of one kind; of a kind that this budget does not use, some that change nothing."""
        if f"noise_{name}" in given:
            return given[f"noise_{name}"]
        unused = {"heads": (self.cfg.plan_iterations, 2), "elite": (self.num_envs, self.cfg.num_elites)}
        return torch.zeros(unused[name], dtype=torch.int64 if name == "heads" else torch.float32)


STEPS: tuple[type[Step], ...] = (PolicyStep, PlanStep)


def encoded(model: WorldModel, given: Mapping[str, Tensor], context: TaskContext) -> Tensor:
    """Encode the inputs that are observed, [E, D]."""
    if model.cfg.obs == "rgb+state":
        return model.encode_both(given["obs"], given["images"])
    return model.encode(given["obs"], context)


def observed(cfg: Config, obs: Tensor) -> dict[str, Tensor]:
    """Bring observations [E, *obs_shape] to the inputs that are observed."""
    if cfg.obs == "rgb+state":
        state, images = split_observation(obs, cfg.obs_dim, cfg.image_shape)
        return {"obs": state, "images": images}
    return {"obs": obs}


def _observations(cfg: Config, num_envs: int) -> list[Input]:
    """The inputs that are observed: the state, images, or both."""
    images = (num_envs, *cfg.image_shape) if cfg.observes_images else ()
    if cfg.obs == "rgb":
        return [Input("obs", images, "uint8", GIVEN, "the newest images, channel by channel")]
    state = Input("obs", (num_envs, cfg.obs_dim), "float32", GIVEN, "the state, zeros behind a shorter one")
    if cfg.obs == "state":
        return [state]
    return [state, Input("images", images, "uint8", GIVEN, "the newest images, channel by channel")]
