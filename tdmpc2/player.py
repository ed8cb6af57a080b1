"""Acting in one group of environments: the plans that are carried from step to step.

E environments, H horizon, O observation, A action, D latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tdmpc2.acceleration.fast_planner import FastPlanner
from tdmpc2.nn.world_model import TaskContext, WorldModel
from tdmpc2.planner import draw_noise

Array = TypeVar("Array", np.ndarray, Tensor)
TaskLike = int | str | Sequence[int | str] | np.ndarray | Tensor | None


class Player:
    """The plans of one group of environments, and the random numbers drawn for them.

    Made by ``agent.player(num_envs)``. Players of one agent share its weights and nothing else.

    Args:
        model: acts with the settings of its configuration.
        planner: plans with that model.
        generator: of planning and exploration noise, on the model's device.
        num_envs: E, if it is fixed.
        mpc: act by planning; by default as the configuration says.
    """

    def __init__(
        self,
        model: WorldModel,
        planner: FastPlanner,
        generator: torch.Generator,
        num_envs: int | None = None,
        mpc: bool | None = None,
    ) -> None:
        self.num_envs, self.generator = num_envs, generator
        self.mpc = model.cfg.mpc if mpc is None else mpc
        self.plan_mean: Tensor | None = None  # [E, H, A]
        self._model, self._planner = model, planner
        self._ids: Tensor | None = None  # [E]: the tasks that plan_mean is for

    def compile_planner(self, wanted: str, num_plans: int) -> str:
        """Plan in the fastest way, as :meth:`tdmpc2.acceleration.fast_planner.FastPlanner.speed_up` has it.

        For a player with a planner of its own; the others share the agent's.
        """
        return self._planner.speed_up(wanted, num_plans) if self.mpc else ""

    def state(self) -> dict[str, Any]:
        """Copy the plans and the state of the random numbers: all that the next action depends on but the weights."""
        plans = {"plan_mean": self.plan_mean, "ids": self._ids}
        return {"generator": self.generator.get_state(), **{k: v for k, v in plans.items() if v is not None}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`; on another kind of device with other random numbers."""
        device = self._model.bins.device
        plan_mean, ids = state.get("plan_mean"), state.get("ids")
        self.plan_mean = None if plan_mean is None else plan_mean.to(device)
        self._ids = None if ids is None else ids.to(device)
        generator = state["generator"].cpu()
        if generator.shape == self.generator.get_state().shape:
            self.generator.set_state(generator)

    @torch.no_grad()
    def act(
        self, obs: Array, t0: bool | np.ndarray | Tensor = False, *, task: TaskLike = None, eval_mode: bool = True
    ) -> Array:
        """Choose actions by planning, or with the policy prior.

        Args:
            obs: [O] or [E, O], zero-padded to the model's observation size.
            t0: True where an episode starts, one value or [E].
            task: id or name, one or [E]; needed by multi-task models.
            eval_mode: without exploration noise (policy prior: its mean).

        Returns:
            Actions in [-1, 1], [A] or [E, A], of the type of ``obs``.

        Raises:
            ValueError: wrong shapes, unknown task, or a call that would continue the plans of other environments:
                another number of them, or another task, although no episode starts.
        """
        model, cfg, device = self._model, self._model.cfg, self._model.bins.device
        x = torch.as_tensor(obs, dtype=torch.float32, device=device)
        if x.ndim not in (1, 2):
            raise ValueError(f"Observations of shape {list(x.shape)}: pass [{cfg.obs_dim}], or [E, {cfg.obs_dim}]")
        single = x.ndim == 1
        x = x.unsqueeze(0) if single else x  # [E, O]
        if x.shape[-1] != cfg.obs_dim:
            raise ValueError(
                f"Observation of size {x.shape[-1]}, but the model takes {cfg.obs_dim} "
                f"(task={cfg.task}): use make_env(agent.cfg), which pads, or pad with zeros"
            )
        if self.num_envs not in (None, len(x)):
            raise ValueError(f"This player is for {self.num_envs} environments, but got {len(x)} observations")
        ids = self._task_ids(task, len(x))
        context = model.context(ids)
        z = model.encode(x, context)
        if self.mpc:
            starts = torch.as_tensor(t0, device=device).bool()
            if starts.numel() not in (1, len(x)):
                raise ValueError(f"{starts.numel()} values of t0 for {len(x)} environments: pass one, or one for each")
            action = self._plan(z, context, ids, starts.reshape(-1).expand(len(x)), eval_mode)
        elif eval_mode:
            action = model.policy_mean(z, context)
        else:
            eps = torch.randn(len(x), cfg.action_dim, device=device, generator=self.generator)
            action = model.pi(z, context, eps)[0]
        action = action.squeeze(0) if single else action
        return action.cpu().numpy() if isinstance(obs, np.ndarray) else action.to(obs.device)

    def _plan(self, z: Tensor, context: TaskContext, ids: Tensor | None, t0: Tensor, eval_mode: bool) -> Tensor:
        cfg = self._model.cfg
        shape = (len(z), cfg.horizon, cfg.action_dim)
        if self.plan_mean is None:
            self.plan_mean = z.new_zeros(shape)
        elif self.plan_mean.shape != shape:
            if not bool(t0.all()):
                raise ValueError(
                    f"act() was last called with {len(self.plan_mean)} environments and now with {len(z)}: pass "
                    "t0=True at the start of the episodes, or give each group of environments its agent.player()"
                )
            self.plan_mean = z.new_zeros(shape)
        elif ids is not None and self._ids is not None:
            t0 = t0 | self._other_task(ids, self._ids, t0)
        self._ids = None if ids is None else ids.clone()  # the caller may reuse its own tensor
        noise = draw_noise(cfg, len(z), z.device, self.generator)
        prev_mean = torch.where(t0[:, None, None], 0.0, self.plan_mean)
        result = self._planner(z, context, prev_mean, noise, eval_mode=eval_mode)
        self.plan_mean = result.mean
        return result.action

    def _other_task(self, ids: Tensor, before: Tensor, t0: Tensor) -> Tensor:
        """Find the environments whose plan is of another task; an error on the CPU, on a GPU they start anew.

        A GPU would have to be waited for.
        """
        other = ids != before
        if other.device.type == "cpu" and bool((other & ~t0).any()):
            names, row = self._model.cfg.task_names, int((other & ~t0).nonzero()[0])
            raise ValueError(
                f"act() was last called for {names[before[row]]} and now for {names[ids[row]]} (environment {row}) "
                "although no episode starts: pass t0=True, or give each group of environments its agent.player()"
            )
        return other

    def _task_ids(self, task: TaskLike, num_envs: int) -> Tensor | None:
        cfg = self._model.cfg
        names = cfg.task_names
        if not cfg.multitask:
            return None
        if task is None:
            raise ValueError(f"This agent plays {len(names)} tasks: pass task=, a name or an id")
        if isinstance(task, Tensor) and task.device.type != "cpu":
            ids = task  # checking these would wait for the device
        else:
            items = np.asarray(task, dtype=object).reshape(-1).tolist()  # names and ids may be mixed
            ids = torch.tensor([names.index(item) if item in names else item for item in items if _known(item, names)])
        if len(ids := ids.to(self._model.bins.device).long().reshape(-1)) not in (1, num_envs):
            raise ValueError(f"{len(ids)} tasks for {num_envs} environments: pass one, or one for each")
        return ids.expand(num_envs)


def _known(task: Any, names: Sequence[str]) -> bool:
    is_id = isinstance(task, (int, np.integer)) and not isinstance(task, bool)
    if task in names or (is_id and 0 <= task < len(names)):
        return True
    raise ValueError(f"task={task!r} is not one of this agent's {len(names)} tasks ({names[0]}, ..., {names[-1]})")
