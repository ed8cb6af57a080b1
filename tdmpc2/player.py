"""Acting in one group of environments: the plans that are carried from step to step.

E environments, H horizon, O observation, A action, D latent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tdmpc2.acceleration.fast_planner import FastPlanner
from tdmpc2.config import Config
from tdmpc2.nn.inputs import TaskLike, observations, starts, task_ids
from tdmpc2.nn.pixels import random_shift, split_observation
from tdmpc2.nn.world_model import TaskContext, WorldModel
from tdmpc2.planner import Iteration, Plan, PlanNoise, draw_noise, predicted_return
from tdmpc2.support.draws import continue_generator
from tdmpc2.support.text import shown

Array = TypeVar("Array", np.ndarray, Tensor)
_LARGEST = torch.finfo(torch.float32).max
_OVERFLOW = "so the weights are damaged or too large for this observation"


class Asked(NamedTuple):
    """The checked inputs of one call of :meth:`Player.act`, for E environments."""

    obs: Tensor  # [E, O] or images, where they came from
    ids: Tensor | None  # of their tasks, [E]; None: the model has one
    starts: Tensor  # where episodes start, bool [E]


class _LookedUp(NamedTuple):
    """The tasks that were looked up last, and what that depended on."""

    ids: Tensor  # [E]
    version: tuple[int, ...]  # of discounts and action masks
    rows: Tensor  # of the embedding, [E, task_dim]: not every write to weights is counted
    context: TaskContext


class NotFinite(ValueError):
    """An observation, the values of a plan, or an action that is not finite.

    Attributes:
        message: without the environment.
        env: number of the environment it was for, from 0.
        task: name of its task.
    """

    def __init__(self, message: str, env: int, task: str) -> None:
        super().__init__(f"Environment {env} ({task}): {message}")
        self.message, self.env, self.task = message, env, task

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.env, self.task)


class Player:
    """The plans of one group of environments, and the random numbers drawn for them.

    Made by ``agent.player(num_envs)``. Players of one agent share its weights and nothing else. A player can be copied
    and sent to another process; one that a fork has copied refuses to compute with several threads, which would wait
    for ever for threads that the fork has not copied.

    Args:
        model: acts with the settings of its configuration.
        planner: plans with that model.
        generator: of planning and exploration noise, on the model's device.
        num_envs: E, if it is fixed.
        mpc: act by planning; by default as the configuration says.
        among: (rows, total), where processes share `total` environments: the rows that are this player's. It draws
            noise for all of them and keeps its rows, so that sharing changes no random number.
    """

    def __init__(
        self,
        model: WorldModel,
        planner: FastPlanner,
        generator: torch.Generator,
        num_envs: int | None = None,
        mpc: bool | None = None,
        among: tuple[slice, int] | None = None,
    ) -> None:
        self._among = among
        self.num_envs, self.generator = num_envs, generator
        self.mpc = model.cfg.mpc if mpc is None else mpc
        self.plan_mean: Tensor | None = None  # [E, H, A]
        self._model, self._planner = model, planner
        self._ids: Tensor | None = None  # [E]: the tasks that plan_mean is for
        self._looked_up: _LookedUp | None = None
        self._last: Iteration | None = None  # of the last plan
        self._process = os.getpid()

    @property
    def cfg(self) -> Config:
        """The settings it acts with."""
        return self._model.cfg

    def __getstate__(self) -> dict[str, Any]:
        # multiprocessing cannot send the state of a generator to a process that it spawns.
        state = self.generator.get_state().cpu().numpy().tobytes()
        return {**vars(self), "_last": None, "_looked_up": None, "generator": (str(self.generator.device), state)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        device, numbers = state["generator"]
        vars(self).update(state, _process=os.getpid())
        self.generator = torch.Generator(device)
        self.generator.set_state(torch.frombuffer(bytearray(numbers), dtype=torch.uint8))

    @property
    def plans_by(self) -> str:
        """How its plans are computed: :attr:`tdmpc2.acceleration.fast_planner.FastPlanner.kind`."""
        return self._planner.kind

    def compile_planner(self, wanted: str, num_plans: int, products: torch.dtype | None = None) -> str:
        """Plan in the fastest way, as :meth:`tdmpc2.acceleration.fast_planner.FastPlanner.speed_up` has it.

        For a player with a planner of its own; the others share the agent's. A policy alone stays as it is: where
        weights change from step to step, packing them for the kernels takes longer than its action.
        """
        return self._planner.speed_up(wanted, num_plans, products) if self.mpc else ""

    def state(self) -> dict[str, Any]:
        """Copy the plans and the state of the random numbers: all that the next action depends on but the weights."""
        plans = {"plan_mean": self.plan_mean, "ids": self._ids}
        return {"generator": self.generator.get_state(), **{k: v for k, v in plans.items() if v is not None}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned; on another kind of device the random numbers are other ones."""
        device = self._model.bins.device
        plan_mean, ids = state.get("plan_mean"), state.get("ids")
        own = self.cfg.horizon, self.cfg.action_dim
        if plan_mean is not None and plan_mean.shape[1:] != own:
            raise ValueError(f"The state's plans are of steps and actions {list(plan_mean.shape[1:])}, not {list(own)}")
        self.plan_mean = None if plan_mean is None else plan_mean.to(device)
        self._last = None
        self._ids = None if ids is None else ids.to(device)
        continue_generator(self.generator, state["generator"])

    @torch.no_grad()
    def act(
        self, obs: Array, t0: bool | np.ndarray | Tensor = False, *, task: TaskLike = None, eval_mode: bool = True
    ) -> Array:
        """Choose actions by planning, or with the policy prior.

        Observations in main memory, and what is computed from them, have to be finite. A tensor on an accelerator is
        not looked at, since that would wait for the device.

        Args:
            obs: [O] or [E, O], zero-padded to the model's observation size; ``obs=rgb``: uint8, [9, 64, 64] or
                [E, 9, 64, 64]; ``obs=rgb+state``: the bytes of both, as ``make_env`` gives them.
            t0: True where an episode starts, one truth value or [E].
            task: id or name, one or [E]; needed by multi-task models.
            eval_mode: without exploration noise (policy prior: its mean), which is the default here; that of
                :meth:`TDMPC2.act <tdmpc2.agent.TDMPC2.act>` is with it, as TD-MPC2 has it.

        Returns:
            Actions in [-1, 1], [A] or [E, A], of the type of ``obs``.

        Raises:
            ValueError: wrong shapes or types, unknown task, or a call that would continue the plans of other
                environments: another number of them, or another task, although no episode starts.
            NotFinite: an observation, all values of a plan, or the action, with the number of the environment. The
                plans are then as before.
        """
        if not isinstance(eval_mode, (bool, np.bool_)):
            raise ValueError(f"eval_mode={shown(eval_mode)} must be True or False")
        cfg, device = self._model.cfg, self._model.bins.device
        asked = self.asked(obs, t0, task)
        context = self._context(asked.ids)
        shift = self._shift(len(asked.obs))
        if self.mpc:
            z = self._planner.encode(asked.obs.to(device), context, shift)
            prev_mean, noise = self.plan_inputs(asked)
            plan = self._planner(z, context, prev_mean, noise, eval_mode=eval_mode)
            if asked.obs.device.type == "cpu":
                self._check_values(z, context, asked.ids, plan.last)
            action = self.keep(asked, plan)
        else:
            self.plan_mean = self._ids = self._last = None  # a plan from before is not gone on from later
            rows, count = self._among or (slice(None), len(asked.obs))
            eps = None
            if not eval_mode:
                shape = count, cfg.action_dim
                eps = torch.randn(shape, device=device, dtype=torch.float32, generator=self.generator)[rows]
            action = self._checked(self._planner.policy(asked.obs.to(device), context, eps, shift), asked)
        action = action.squeeze(0) if obs.ndim == len(cfg.obs_shape) else action
        return action.cpu().numpy() if isinstance(obs, np.ndarray) else action.to(obs.device)

    def _context(self, ids: Tensor | None) -> TaskContext:
        """Look the tasks up, or return what was looked up last, which saves a tenth of the time of a policy action."""
        if ids is None or ids.device.type != "cpu" or (table := self._model._task_emb.weight).is_inference():
            return self._model.context(ids)
        last, version = self._looked_up, (self._model.discounts._version, self._model.action_masks._version)
        if last and last.version == version and torch.equal(last.ids, ids) and torch.equal(last.rows, table[ids]):
            return last.context
        context = self._model.context(ids)
        self._looked_up = _LookedUp(ids.clone(), version, table[ids].detach().clone(), context)
        return context

    def _shift(self, num_envs: int) -> Tensor | None:
        """Draw by how much each environment's image is shifted; None unless ``augment_eval`` shifts images."""
        if not (self.cfg.augment_eval and self.cfg.observes_images):
            return None
        rows, count = self._among or (slice(None), num_envs)
        return random_shift((count,), self._model.bins.device, self.generator)[rows]

    @torch.no_grad()
    def expected_return(self, obs: Array, task: TaskLike = None) -> NDArray[np.float32]:
        """Tell the discounted return that the last action was chosen for, [E].

        Planning: the mean of the elites' values, weighted as the plan weights them. Without planning: the value of the
        policy's action at ``obs``.

        Args:
            obs: those of the last call of :meth:`act`.
            task: as there.

        Raises:
            ValueError: there was no such call yet, or see there.
        """
        if self.mpc:
            if self._last is None:
                raise ValueError("expected_return() tells of the last plan, and there is none: call act() first")
            return (self._last.score * self._last.elite_value).sum(-1).cpu().numpy()
        asked = self.asked(obs, False, task)
        context = self._model.context(asked.ids)
        z = self._model.encode(asked.obs.to(self._model.bins.device), context)
        heads = torch.arange(2, device=z.device) % self._model.cfg.num_q
        value = self._model.Q(z, self._model.policy_mean(z, context), context, "avg", heads=heads)
        return value.squeeze(-1).float().cpu().numpy()

    def check_process(self) -> None:
        """Raise ``ValueError`` in a process that a fork has made of the player's own, if it computes with threads."""
        if os.getpid() != self._process and torch.get_num_threads() > 1:
            raise ValueError(
                "This agent was copied by a fork and would wait for ever for threads that were not: start the process "
                'with multiprocessing.get_context("spawn"), or call torch.set_num_threads(1) in it'
            )

    def _check_values(self, z: Tensor, context: TaskContext, ids: Tensor | None, last: Iteration) -> None:
        """Require of every environment an elite whose value is finite."""
        finite = has_finite_value(self._model, z, context, last)
        if not finite.all():
            self._require_finite(np.where(finite, 0.0, np.nan), ids, f"no value of its plan is finite, {_OVERFLOW}")

    def _require_finite(self, rows: NDArray[np.floating[Any]], ids: Tensor | None, text: str) -> None:
        """Raise :class:`NotFinite` unless all rows [E, ...] are finite."""
        if not (finite := np.isfinite(rows)).all():
            env = int(np.argmin(finite.reshape(len(rows), -1).all(-1)))
            names = self._model.cfg.task_names
            task = names[0] if ids is None else names[int(ids[env])]
            raise NotFinite(text, env, task)

    def asked(self, obs: np.ndarray | Tensor, t0: Any, task: TaskLike) -> Asked:
        """Check what :meth:`act` is asked.

        Raises:
            ValueError: see there.
        """
        self.check_process()
        x = observations(obs, self._model.cfg)
        if self.num_envs not in (None, len(x)):
            raise ValueError(f"This player is for {self.num_envs} environments, but got {len(x)} observations")
        ids = task_ids(task, len(x), self._model.cfg, self._model.bins.device)
        asked = Asked(x, ids, starts(t0, len(x), self._model.bins.device))
        if x.device.type == "cpu":
            cfg = self._model.cfg
            numbers = split_observation(x, cfg.obs_dim, cfg.image_shape)[0] if cfg.obs == "rgb+state" else x
            self._require_finite(numbers.numpy(), ids, "the observation has values that are not finite")
        return asked

    def plan_inputs(self, asked: Asked) -> tuple[Tensor, PlanNoise]:
        """Tell where the plans go on from, [E, H, A], and draw the random numbers of the next."""
        cfg, ids, t0, device = self._model.cfg, asked.ids, asked.starts, self._model.bins.device
        num_envs = len(asked.obs)
        shape, before = (num_envs, cfg.horizon, cfg.action_dim), self.plan_mean
        if before is None:
            before = torch.zeros(shape, dtype=torch.float32, device=device)
        elif before.shape != shape:
            if not bool(t0.all()):
                raise ValueError(
                    f"act() was last called with {len(before)} environments and now with {num_envs}: pass "
                    "t0=True at the start of the episodes, or give each group of environments its agent.player()"
                )
            before = torch.zeros(shape, dtype=torch.float32, device=device)
        elif ids is not None and self._ids is not None:
            t0 = t0 | self._other_task(ids, self._ids, t0)
        rows, count = self._among or (None, num_envs)
        noise = draw_noise(cfg, count, device, self.generator)
        return torch.where(t0[:, None, None], 0.0, before), noise if rows is None else noise.for_envs(rows)

    def keep(self, asked: Asked, plan: Plan) -> Tensor:
        """Keep a plan that is finite, from which the next goes on; returns its action where observations came from."""
        if asked.obs.device.type == "cpu":
            self._require_finite(plan.mean.cpu().numpy(), asked.ids, f"the plan is not finite, {_OVERFLOW}")
        action = self._checked(plan.action, asked)
        ids = None if asked.ids is None else asked.ids.clone()  # the caller may reuse its own tensor
        self.plan_mean, self._last, self._ids = plan.mean, plan.last, ids
        return action

    def _checked(self, action: Tensor, asked: Asked) -> Tensor:
        """Require finite actions in main memory, if that is where observations came from."""
        if asked.obs.device.type != "cpu":
            return action
        action = action.cpu()
        self._require_finite(action.numpy(), asked.ids, f"the action is not finite, {_OVERFLOW}")
        return action

    def _other_task(self, ids: Tensor, before: Tensor, t0: Tensor) -> Tensor:
        """Find the environments whose plan is of another task.

        On a CPU that is an error. On a GPU, where raising one would mean waiting for it, their plans start anew.
        """
        other = ids != before
        if other.device.type == "cpu" and bool((other & ~t0).any()):
            names, row = self._model.cfg.task_names, int((other & ~t0).nonzero()[0])
            raise ValueError(
                f"act() was last called for {names[before[row]]} and now for {names[ids[row]]} (environment {row}) "
                "although no episode starts: pass t0=True, or give each group of environments its agent.player()"
            )
        return other


def has_finite_value(model: WorldModel, z: Tensor, context: TaskContext, last: Iteration) -> NDArray[np.bool_]:
    """Tell which plans have an elite whose value is finite, [E].

    The planner replaces values that are not finite by zero or the largest numbers. Values are computed again only where
    all elites have such a number, so that a plan without a fault costs nothing more.

    Args:
        model: plans.
        z: encoded observations, [E, D].
        context: of each environment's task.
        last: the last iteration of each plan.
    """
    found = np.abs(last.elite_value.cpu().numpy())
    suspects = ((found == 0) | (found >= _LARGEST)).all(-1)
    if not suspects.any():
        return ~suspects
    actions = last.elite_actions
    eps, heads = torch.zeros_like(actions[:, 0]), torch.arange(2, device=z.device)
    value = predicted_return(model, z, context.unsqueeze(1), actions, eps, heads % model.cfg.num_q)
    return value.isfinite().any(-1).cpu().numpy() | ~suspects
