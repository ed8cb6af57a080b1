"""Compare exported files with the model they came from, on observations, in the runtime they are for.

The policy is compared number by number with what float64 gives for the same weights, since networks make the rounding
of their inputs larger: the plain float32 policy of the published student is up to 7e-5 away from it. Where that is
more than the limit of 1e-5, for the observations that are compared or ones beside them, the exported one may be a few
times as far away.

Plans cannot be compared number by number: a sum that differs in its last bit can make another sequence one of the
best, or draw another of these for the action (docs/algorithm.md, "Planning"). So they are compared with the plain
model's by their means, and by their regret: the value that is lost by them, as the float32 model sees it, in standard
deviations of the values of its first sequences. See :mod:`tdmpc2.quantization.regret`. Rounded weights have a regret
of their own, which is the format's and not the export's: the plain model's plans with the same weights tell it. Of
tasks that may terminate regret alone counts: whatever a sequence does behind a predicted end is worth the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich import get_console
from torch import Tensor

from tdmpc2 import planner
from tdmpc2.acceleration.low_precision import LowPrecisionLinear
from tdmpc2.config import Config
from tdmpc2.export.graph import PlanStep, PolicyStep, Step, encoded, observed
from tdmpc2.export.request import Request, Source
from tdmpc2.planner import Iteration, PlanNoise
from tdmpc2.play.rollout import Job, play
from tdmpc2.quantization.calibration import policy_actor, stored_inputs
from tdmpc2.quantization.regret import values_of_means
from tdmpc2.support.tables import Cells, terminal_table
from tdmpc2.tracking.progress import progress

NETWORKS = 1e-5  # largest error of an action of the policy,
ROUNDING = 4  # or so many times the plain model's own, if that is more
PLANS = 1e-3  # difference of a plan's mean, of the middle one of all plans: where an elite is another one it is more
REGRET = 0.05  # regret of a plan beyond that of the plain model's with the same weights, in standard deviations
SAME = 1e-3  # actions that differ by less are the same one
_SEED = 1
_COPIES, _SPREAD = 32, 1e-3  # of observations nearby, and their relative distance
_Numbers = NDArray[Any]


class Parity(NamedTuple):
    """Differences between an exported model and the plain one on the observations of one task."""

    task: str
    observations: int
    policy: float  # largest error of an action, of the mean or sampled, against float64
    plain: float  # the same of the plain model in float32, on observations nearby as well
    plan: float  # difference of a plan's mean, the median over the plans
    largest: float  # and the largest
    same: float  # share of executed actions that are the same
    regret: float  # largest of a plan
    rounding: float  # largest regret of the plain model's plans with the same weights; 0 in float32
    beyond: float  # largest amount by which a plan's regret is more than the plain model's for the same observation
    ties: bool = False  # sequences can be worth exactly the same, so that only the regret of plans tells

    @property
    def right(self) -> bool:
        """True if every difference is within its limit."""
        policy = max(NETWORKS, ROUNDING * self.plain)
        return self.policy <= policy and (self.ties or self.plan <= PLANS) and self.beyond <= REGRET


class Runtime:
    """One exported file in ONNX Runtime, called with tensors.

    Args:
        path: the file.
        threads: that it computes with; by default as many as PyTorch.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [item.name for item in self.session.get_inputs()]

    def __call__(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Run the step on its inputs by name; those that it does not take are left out."""
        arrays = {name: tensors[name].numpy() for name in self.names}
        return [torch.from_numpy(array) for array in self.session.run(None, arrays)]


def check(rows: Sequence[Parity]) -> bool:
    """Print the differences as a table.

    Returns:
        True if all of them are within their limits.
    """
    get_console().print(terminal_table(table(rows)))
    wrong = [row.task for row in rows if not row.right]
    limits = (
        f"policy {NETWORKS:g} or {ROUNDING} times the plain float32 model's error, plan {PLANS:g}, "
        f"regret {REGRET:g} beyond the plain model's"
    )
    print(f"outside of the limits ({limits}): {', '.join(wrong)}" if wrong else f"all within the limits: {limits}")
    return not wrong


def compare(request: Request, source: Source, steps: Sequence[Step], runtimes: Mapping[str, Any]) -> list[Parity]:
    """Compare exported files with the plain model on the observations of each task.

    Args:
        request: names the observations.
        source: the model.
        steps: what was exported.
        runtimes: the file of each step by its name, opened: functions of tensors by name.

    Raises:
        ValueError: a task cannot be played here, and there are no data.
    """
    policy = next(step for step in steps if isinstance(step, PolicyStep))
    plan = next(step for step in steps if isinstance(step, PlanStep))
    rows = []
    for number, task_id in enumerate(progress(plan.task_ids, "Comparing", unit="tasks")):
        rows.append(parity(source, policy, plan, runtimes, number, observations_of(request, source, task_id)))
    return rows


@torch.no_grad()
def parity(
    source: Source,
    policy: PolicyStep,
    plan: PlanStep,
    runtimes: Mapping[str, Any],
    number: int,
    observations: _Numbers,
) -> Parity:
    """Compare on observations of one task, one after the other, each plan beginning with the one before.

    Args:
        source: the plain model.
        policy: the step that acts by the policy.
        plan: the step that plans.
        runtimes: both exported, by their names: functions of tensors by name.
        number: of the task among those of the step.
        observations: [T, E, *obs_shape].
    """
    cfg, generator = source.cfg, torch.Generator().manual_seed(_SEED)
    task = torch.full((plan.num_envs,), number)
    previous = torch.zeros(plan.num_envs, cfg.horizon, cfg.action_dim)
    exact = in_float64(policy)
    policy_errors: list[Tensor] = []
    plain_errors: list[Tensor] = []
    plan_errors, same, regrets = [], [], []
    for t, obs in enumerate(observations):
        noise = planner.draw_noise(cfg, plan.num_envs, previous.device, generator)
        given = {
            **observed(cfg, torch.from_numpy(obs)),
            "task": task,
            "t0": torch.full((plan.num_envs,), t == 0),
            "plan": previous,
            "noise": noise.action,
            **{f"noise_{name}": value for name, value in noise._asdict().items()},
            "noise_action": torch.zeros_like(noise.action),
        }
        policy_errors += map(_difference, runtimes[policy.name](given), _exactly(exact, given))
        beside = _nearby(given, generator)
        plain_errors += map(_difference, _plain(policy, beside), _exactly(exact, beside))
        (action, mean), (action_got, mean_got) = _plain(plan, given), runtimes[plan.name](given)
        plan_errors.append(_difference(mean_got, mean))
        same.append(((action_got - action).abs().amax(-1) < SAME).double().mean())
        regrets.append(_regrets(source, plan, given, noise, torch.stack([mean_got, mean], 2)))
        previous = mean
    spec = cfg.task_specs[plan.task_ids[number]]
    regret, rounding = torch.cat(regrets).unbind(-1)
    return Parity(
        spec.name,
        observations.shape[0] * observations.shape[1],
        policy=float(torch.stack(policy_errors).max()),
        plain=float(torch.stack(plain_errors).max()),
        plan=float(torch.stack(plan_errors).median()),
        largest=float(torch.stack(plan_errors).max()),
        same=float(torch.stack(same).mean()),
        regret=float(regret.max()),
        rounding=float(rounding.max()),
        beyond=float((regret - rounding).max()),
        ties=cfg.episodic,
    )


def observations_of(request: Request, source: Source, task_id: int) -> _Numbers:
    """Observations of one task, [T, E, *obs_shape]: of data, or of episodes that the policy plays."""
    cfg = source.cfg
    if request.data is not None:
        return stored_observations(request.data, cfg, task_id, (request.steps, request.envs)).numpy()
    jobs = [Job(task_id, _SEED + number) for number in range(request.envs)]
    episodes = play(cfg, policy_actor(source.reference), jobs, max_steps=request.steps)
    length = min(len(episode.obs) for episode in episodes)
    return np.stack([episode.obs[:length] for episode in episodes], 1)[: request.steps]


def stored_observations(data: str, cfg: Config, task_id: int, size: tuple[int, int]) -> Tensor:
    """Draw observations [T, E, *obs_shape] of a task from stored episodes.

    Args:
        data: directory of an episode store or of chunk files.
        cfg: configuration of the model.
        task_id: of the task.
        size: T and E.

    Raises:
        ValueError: no data, damaged data, data of another task set, or no episode of the task.
    """
    own = cfg.replace(tasks=(cfg.task_specs[task_id].name,)) if cfg.multitask else cfg
    return stored_inputs(own, data, size[0] * size[1]).obs.unflatten(0, size)


def in_float64(policy: PolicyStep) -> PolicyStep:
    """Copy a step that acts by the policy, to compute in float64 also with int8 weights, which ``double()`` leaves."""
    exact = copy.deepcopy(policy).double()
    for layer in (layer for layer in exact.modules() if isinstance(layer, LowPrecisionLinear)):
        layer.compute_dtype = torch.float64
    return exact


def table(rows: Sequence[Parity]) -> Cells:
    """Arrange differences for a reader."""
    headings = (
        "task",
        "observations",
        "policy",
        "(plain)",
        "plan",
        "(largest)",
        "same action",
        "regret",
        "(plain)",
        "",
    )
    cells = [
        (
            row.task, str(row.observations), f"{row.policy:.1e}", f"{row.plain:.1e}", f"{row.plan:.1e}",
            f"{row.largest:.1e}", f"{row.same:.0%}", f"{row.regret:.4f}", f"{row.rounding:.4f}",
            "good" if row.right else "WRONG",
        )
        for row in rows
    ]  # fmt: skip
    return Cells(
        "differences of the exported files: policies from float64, plans from those of the plain model",
        headings,
        cells,
    )


def _plain(step: Step, given: Mapping[str, Tensor]) -> Any:
    return step(*(given[item.name] for item in step.inputs))


def _exactly(step: Step, given: Mapping[str, Tensor]) -> Any:
    return _plain(step, {name: x.double() if x.is_floating_point() else x for name, x in given.items()})


def _nearby(given: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Copies of the policy's inputs, all but one of them a little changed: each has rounding errors of its own."""
    names = [name for name in ("obs", "images", "noise", "task") if name in given]
    many = {name: given[name].repeat(_COPIES, *[1] * (given[name].ndim - 1)) for name in names}
    if many["obs"].is_floating_point():
        spread = torch.randn(many["obs"].shape, generator=generator)
        spread[: len(given["obs"])] = 0
        many["obs"] = many["obs"] * (1 + _SPREAD * spread)
    return many


def _difference(got: Tensor, expected: Tensor) -> Tensor:
    """The largest difference; infinite if there is a NaN."""
    return (got - expected).abs().nan_to_num(nan=torch.inf).max()


def _regrets(source: Source, plan: PlanStep, given: Mapping[str, Tensor], noise: PlanNoise, means: Tensor) -> Tensor:
    """Compute the regrets [E, N] of N plans [E, H, N, A] for each environment."""
    model, values = source.reference, []

    def noting(*args: Any) -> Iteration:
        result = planner.iteration(*args)
        values.append(result.value)
        return result

    context = model.context(torch.tensor(plan.task_ids)[given["task"]] if model.cfg.multitask else None)
    z = encoded(model, given, context)
    previous = torch.where(given["t0"][:, None, None], 0.0, given["plan"])
    own = planner.plan(model, z, context, previous, noise, eval_mode=True, iteration_fn=noting).mean
    value = values_of_means(model, z, context, torch.cat([own[:, :, None], means], 2))  # [E, 1 + N]
    spread = values[0].std(-1, keepdim=True).clamp(min=torch.finfo(value.dtype).tiny)
    return (value[:, :1] - value[:, 1:]) / spread
