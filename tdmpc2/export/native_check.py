"""Compare a library built from an exported folder with this program, on observations and the same random numbers.

Both use the same kernels, so that actions have to be the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from rich import get_console
from torch import Tensor

from tdmpc2.acceleration.cpu import library
from tdmpc2.acceleration.cpu.networks import PackedNetworks
from tdmpc2.agent import TDMPC2
from tdmpc2.export.check import stored_observations
from tdmpc2.export.native_library import NativeAgent, NativeLibrary, build
from tdmpc2.export.native_model import NativeSource
from tdmpc2.export.request import Request
from tdmpc2.nn.world_model import TaskContext
from tdmpc2.planner import PlanNoise, draw_noise
from tdmpc2.support.tables import Cells, terminal_table
from tdmpc2.tracking.progress import progress

_SEED = 1


class Difference(NamedTuple):
    """Largest differences of actions between a native model and the agent it came from, on one task's observations."""

    task: str
    observations: int
    plan: float
    policy: float

    @property
    def right(self) -> bool:
        """True if there is none."""
        return self.plan == 0 == self.policy


def check(request: Request, source: NativeSource, folder: Path) -> bool:
    """Build the folder, compare actions on observations of every task, and print a table.

    The observations are random numbers unless the request names data.

    Returns:
        True if they are the same.

    Raises:
        ValueError: it cannot be built or loaded here, there are no kernels to compare with, or the data cannot be read.
    """
    if reason := library.reason():
        raise ValueError(f"--check compares with the CPU kernels, which are not here: {reason}")
    inputs = [_inputs(request, source, task_id) for task_id in source.cfg.task_ids]  # first: they are what can be wrong
    path = build(folder) / "libtdmpc2.so"
    try:
        native = NativeLibrary(path).open(folder / "model.safetensors")
    except OSError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error
    rows = []
    for number, task_id in enumerate(progress(source.cfg.task_ids, "Comparing", unit="tasks")):
        rows.append(compare(source.agent, native, task_id, number, inputs[number]))
    native.close()
    cells = [
        (row.task, str(row.observations), f"{row.plan:.1e}", f"{row.policy:.1e}", "same" if row.right else "DIFFERENT")
        for row in rows
    ]
    title = "largest differences between the actions of the library and of this program"
    get_console().print(terminal_table(Cells(title, ("task", "observations", "planned", "policy", ""), cells)))
    return all(row.right for row in rows)


def _inputs(request: Request, source: NativeSource, task_id: int) -> Tensor:
    if request.data is None:
        return observations(source.agent, task_id, request.steps)
    return stored_observations(request.data, source.cfg, task_id, (request.steps, 1))


def observations(agent: TDMPC2, task_id: int, steps: int) -> Tensor:
    """Draw observations [steps, 1, O] of a task, zero where it has none."""
    obs = torch.randn(steps, 1, agent.cfg.obs_dim, generator=torch.Generator().manual_seed(_SEED))
    obs[..., agent.cfg.task_specs[task_id].obs_dim :] = 0
    return obs


@torch.no_grad()
def compare(agent: TDMPC2, native: NativeAgent, task_id: int, number: int, obs: Tensor) -> Difference:
    """Act on observations [N, E, O] of a task, one after the other, each plan beginning with the one before.

    Args:
        agent: plans with the CPU kernels.
        native: the same model, with E environments.
        task_id: of the task in the agent.
        number: of the task in the native model.
        obs: the observations.
    """
    plans, policies = [], []
    plan, policy = planning(agent, task_id, obs.shape[1]), PackedNetworks(agent.model)
    generator, ids = torch.Generator().manual_seed(_SEED), [number] * obs.shape[1]
    native.reset()
    for x in obs:
        noise = draw_noise(agent.cfg, len(x), x.device, generator)
        plans.append(_difference(native.plan(x.numpy(), ids, noise), plan(x, noise)))
        context = _context(agent, task_id, len(x))
        policies.append(_difference(native.policy(x.numpy(), ids), policy.policy(x, context, None)))
    return Difference(agent.cfg.task_names[task_id], obs.shape[0] * obs.shape[1], max(plans), max(policies))


def planning(agent: TDMPC2, task_id: int, num_envs: int) -> Callable[[Tensor, PlanNoise], Tensor]:
    """Plan an episode of a task with given random numbers: observations [E, O] -> actions [E, A], call by call."""
    mean = torch.zeros(num_envs, agent.cfg.horizon, agent.cfg.action_dim)

    def act(obs: Tensor, noise: PlanNoise) -> Tensor:
        nonlocal mean
        context = _context(agent, task_id, num_envs)
        plan = agent.planner(agent.planner.encode(obs, context), context, mean, noise, eval_mode=True)
        mean = plan.mean
        return plan.action

    return act


def _context(agent: TDMPC2, task_id: int, num_envs: int) -> TaskContext:
    return agent.model.context(torch.full((num_envs,), task_id) if agent.cfg.multitask else None)


def _difference(got: object, expected: Tensor) -> float:
    return float((torch.as_tensor(got) - expected).abs().nan_to_num(nan=torch.inf).max())
