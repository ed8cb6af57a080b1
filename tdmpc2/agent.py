"""The TD-MPC2 agent, top to bottom: one update, acting, files (docs/algorithm.md).

H horizon, B batch, E environments, O observation, A action, D latent, K bins, Q heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdmpc2 import losses
from tdmpc2.acceleration import compiled_update
from tdmpc2.acceleration import layers as fast_layers
from tdmpc2.acceleration.compiled_update import UpdatePath
from tdmpc2.acceleration.fast_planner import FastPlanner
from tdmpc2.acceleration.low_precision import set_precision
from tdmpc2.checkpoints import hub
from tdmpc2.checkpoints.files import load_file, naming, save_file
from tdmpc2.checkpoints.publishing import Push, push
from tdmpc2.config import PARTS, PLANNER_KEYS, RUN_KEYS, Config, check_bins, check_memory, model_parts, plan_parts
from tdmpc2.data.batch import Batch
from tdmpc2.distillation.distillation import Distillation
from tdmpc2.distillation.outputs import check_teacher
from tdmpc2.distillation.targets import TeacherOutputs, loss_name
from tdmpc2.distillation.teachers import TaskTeachers
from tdmpc2.distributed import ProcessGroup
from tdmpc2.nn.inputs import TaskLike
from tdmpc2.nn.layers import num_parameters
from tdmpc2.nn.optimisers import (
    clip_gradients,
    gradients,
    load_moments,
    model_optimiser,
    rate_factor,
    split_parameters,
    take_step,
)
from tdmpc2.nn.world_model import TaskContext, WorldModel
from tdmpc2.noise import UpdateNoise, check_shares, draw_update_noise
from tdmpc2.player import Array, Player
from tdmpc2.support.draws import continue_generator
from tdmpc2.support.runtime import available_memory, resolve_device
from tdmpc2.support.text import shown


class TDMPC2:
    """A world model, its optimisers and its planner; with a teacher, the distillation loss is added.

    Args:
        cfg: the agent's configuration; ``cfg.seed`` seeds the weights and all later draws.
        teacher: a trained agent of the same tasks, or agents by the names of the tasks that they teach. It is never
            updated.
        group: the processes that train together; the batches of their updates are shares of one batch.

    Raises:
        ValueError: a teacher does not fit the student, such as one of another task set.
    """

    cfg: Config
    model: WorldModel
    teacher: TDMPC2 | None  # of all tasks; those of single tasks are the distillation's alone

    def __init__(
        self, cfg: Config, teacher: TDMPC2 | Mapping[str, TDMPC2] | None = None, group: ProcessGroup | None = None
    ) -> None:
        self.cfg = cfg
        given = list(teacher.values()) if isinstance(teacher, Mapping) else [teacher]
        if strange := [one for one in given if not isinstance(one, TDMPC2 | None)]:
            raise ValueError(f"teacher={shown(strange[0])} is no agent: pass load_agent(PATH)")
        self.teacher = None if isinstance(teacher, Mapping) else teacher
        if self.teacher is not None:
            check_teacher(cfg, self.teacher.cfg)
        self.group = group or ProcessGroup()
        self.device = resolve_device(cfg.device)
        asked: WorldModel | TaskTeachers | None = None if self.teacher is None else self.teacher.model
        if isinstance(teacher, Mapping) and not teacher:
            raise ValueError("teacher={} names no teacher: None trains without one")
        if isinstance(teacher, Mapping):
            asked = TaskTeachers(cfg, {task: agent.model for task, agent in teacher.items()}, self.device)
        check_bins(cfg.vmin, cfg.vmax)
        check_memory(cfg, [*model_parts(cfg), *(plan_parts(cfg) if cfg.mpc else [])], available_memory(self.device))
        self.precision = "fp32"
        self.model = WorldModel(cfg, torch.Generator().manual_seed(cfg.seed)).eval()
        if self.device.type != "cpu":
            self.model.to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(cfg.seed)
        #: Running range of values, 0-d or [tasks]: docs/algorithm.md, "Value scale".
        ranges = (len(cfg.task_specs),) if cfg.value_scale == "per_task" else ()
        self.scale = torch.ones(ranges, dtype=torch.float32, device=self.device)
        encoder, others, policy = split_parameters(self.model)
        self.distillation = Distillation(cfg, asked, self.device)
        check_shares(self.distillation.compares_sequences, cfg.batch_size, self.group.world_size)
        if cfg.update_precision == "bf16":
            for module in filter(None, (self.model, self.distillation.projection)):
                fast_layers.keep_products_only(module)
        more = self.distillation.parameters
        self._model_params, self._policy_params = [*encoder, *others, *more], policy
        self.optim = model_optimiser(encoder, others, more, lr=cfg.lr, enc_lr_scale=cfg.enc_lr_scale)
        self.pi_optim = torch.optim.Adam(policy, lr=cfg.lr, eps=1e-5, fused=True)
        for name in (module for part in cfg.freeze for module in PARTS[part]):
            self.model.get_submodule(name).requires_grad_(False)  # without a gradient Adam leaves them alone
        self.planner = FastPlanner(self.model)
        self._player = Player(self.model, self.planner, self.generator)
        self._num_players = 1  # the agent's own is the first
        self._model_losses: Callable[..., tuple[losses.ModelLosses, Tensor]] = losses.model_losses
        self._policy_loss: Callable[..., losses.PolicyLoss] = losses.policy_loss
        self._update_path: UpdatePath | None = None  # None: not yet decided

    def __getstate__(self) -> dict[str, Any]:
        # The player has the generator too, and keeps it as multiprocessing can send it; compiled code stays here.
        state = {name: value for name, value in vars(self).items() if name != "generator"}
        if self.update_compiled:
            state |= {"_model_losses": None, "_policy_loss": None}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.generator = self._player.generator
        if not compiled_update.can_fuse(self.cfg, self.device):  # where it came from there may have been kernels
            fast_layers.unfuse(self.model)
        if self._model_losses is None:
            self._model_losses, self._policy_loss = compiled_update.compiled(self.model, self.device)

    def __repr__(self) -> str:
        cfg, parameters = self.cfg, num_parameters(self.model)
        tasks = f"{len(cfg.task_specs)} tasks of {cfg.task}" if cfg.multitask else f"task {cfg.task}"
        acts = f"planning ({self.planner.kind})" if cfg.mpc else "the policy prior"
        taught = self.teacher is not None or self.distillation.task_teachers is not None
        teacher = ", with a teacher" if taught else ""
        weights = f"{parameters:,} trainable parameters, {self.precision} on {self.device}"
        return f"TDMPC2({tasks}, {weights}, acts by {acts}{teacher})"

    # -- learning ---------------------------------------------------------------------------------------------------

    def update(self, batch: Any, noise: UpdateNoise | None = None) -> dict[str, Tensor]:
        """Train every network for one step (docs/algorithm.md, "Update").

        Its random numbers are of the generator that the agent's own :meth:`act` draws from as well: play with a
        :meth:`player` where training is to be the same whether or not anybody plays.

        The model and the Q heads take a gradient step on ``consistency_coef * consistency + reward_coef * reward +
        value_coef * value + weighted distillation losses`` (and the termination loss of an episodic model), the policy
        prior one on its own loss, and the target heads move towards the Q heads by ``tau``.

        Args:
            batch: named tuple, tensordict or dict of time-major slices: obs [H+1, B, O] (``obs=rgb``: uint8
                [H+1, B, 9, 64, 64]), action [H, B, A], reward [H, B, 1], task [B]; entry t of action and reward leads
                from obs[t] to obs[t+1]. If ``episodic`` also terminated [H, B, 1], 0 or 1. Outputs of the teacher that
                the batch has already (teacher_reward, teacher_value, teacher_policy, teacher_plan), of the first step
                or of all H, are not computed again.
            noise: random numbers to use instead of the agent's own.

        Returns:
            Losses and gradient norms (before clipping) as 0-d tensors on the device.

        Raises:
            ValueError: the agent's weights are of fewer than 32 bits, the batch has wrong shapes or types, or outputs
                of the teacher are needed that neither the batch nor a teacher has.
        """
        self._require_fp32("train")
        self._player.check_process()
        cfg, batch = self.cfg, Batch.from_any(batch)
        batch.check(cfg, self.model.bins)
        noise = noise or self.draw_noise(batch.action.shape[1])
        ids = batch.task if cfg.multitask else None
        # [N B], those of all N processes: looking up an embedding rescales it, in each process alike.
        all_ids = None if ids is None else self.group.gather(ids)
        teacher = self.distillation.teacher_outputs(batch, ids, noise.offsets)

        task = self._context(all_ids)
        with self.autocast():
            terms, zs = self._model_losses(self.model, self.distillation, batch, task, noise, teacher)
        total = terms.total(cfg, self.distillation.weighted(terms.distilled))

        self.optim.zero_grad()
        if total.requires_grad:  # else every part of the model is frozen, and there is nothing to step
            total.backward()
        stats = {name: value.detach() for name, value in (*terms.named().items(), ("total_loss", total))}
        self.group.average([*gradients(self._model_params), *stats.values()])  # in place, over all processes
        stats["grad_norm"] = clip_gradients(self._model_params, cfg.grad_clip_norm)
        take_step(self.optim, self._model_params, self._rate_factor())

        stats |= self._update_policy(zs, all_ids, noise, teacher, batch)
        if "Q" not in cfg.freeze:
            self.model.update_target(cfg.tau)
        return stats | self.distillation.advance(stats)

    def _update_policy(
        self,
        zs: Tensor,
        all_ids: Tensor | None,
        noise: UpdateNoise,
        teacher: TeacherOutputs | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """Take one step of the policy prior on constant latents zs [H+1, B, D] (docs/algorithm.md, "Policy prior")."""
        with torch.no_grad():
            task = self._context(all_ids)  # anew: the embedding has been trained
        with self.autocast():
            loss, self.scale, first_step, cloning = self._policy_loss(
                self.model, self.group, zs, task, noise, self.scale, batch
            )
        distilled = self.distillation.losses(first_step, teacher, self.model)
        stats = {"pi_loss": loss.detach()}
        if cloning is not None:
            stats["bc_loss"] = cloning.detach()
        stats |= {f"{loss_name(target)}_loss": value.detach() for target, value in distilled.items()}

        if "policy" not in self.cfg.freeze:
            (loss + self.distillation.weighted(distilled)).backward()
        self.group.average([*gradients(self._policy_params), *stats.values()])
        stats["pi_grad_norm"] = clip_gradients(self._policy_params, self.cfg.grad_clip_norm)
        take_step(self.pi_optim, self._policy_params, self._rate_factor())
        self.pi_optim.zero_grad()
        return stats | {"pi_scale": self.scale.mean()}

    def _rate_factor(self) -> float:
        return rate_factor(self.cfg.lr_schedule, self.cfg.lr_end, self.distillation.done)

    def autocast(self) -> torch.autocast:
        """Compute the update's matrix products in ``update_precision``; everything else stays float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.update_precision == "bf16")

    def compile_update(self, processes: int | None = None) -> str:
        """Compile the losses of an update if ``cfg.compile`` says so; ``auto``: if the run is worth what that takes.

        Without the compiler a CPU still has fused layers, unless ``compile=false``. With ``auto`` a continued run goes
        on as it was begun, whatever its ``steps`` are now, since rounding differs.

        Args:
            processes: that will train together; None: those of the agent's group.

        Returns:
            One line about it, or nothing.
        """
        computed = compiled_update.choose(
            self.cfg, self._update_path, self.model, self.device, processes or self.group.world_size
        )
        self._update_path, self._model_losses, self._policy_loss = computed.path, *computed.losses
        return computed.line

    @property
    def update_path(self) -> UpdatePath:
        """How updates are to be computed; :meth:`compile_update` sees to it."""
        return self._update_path or "plain"

    @property
    def update_compiled(self) -> bool:
        """True if the update is compiled."""
        return self._model_losses is not losses.model_losses

    def draw_noise(self, batch_size: int) -> UpdateNoise:
        """Draw the random numbers of the next update of so many slices; with several processes, of this one's rows."""
        group, all_rows = self.group, batch_size * self.group.world_size
        ranking = self.distillation.compares_sequences
        noise = draw_update_noise(self.cfg, all_rows, self.device, self.generator, ranking=ranking)
        return noise if group.world_size == 1 else noise.for_rows(group.rows(all_rows))

    def _context(self, all_ids: Tensor | None) -> TaskContext:
        """Look up the tasks of this process's rows. Looking up rescales the table: in all processes alike."""
        context = self.model.context(all_ids, train="task_embedding" not in self.cfg.freeze)
        if all_ids is None or self.group.world_size == 1:
            return context
        return context.for_rows(self.group.rows(len(all_ids)))

    # -- acting -----------------------------------------------------------------------------------------------------

    def act(self, obs: Array, t0: Any = False, eval_mode: bool = False, task: TaskLike = None) -> Array:
        """Choose actions by planning, or with the policy prior if ``mpc`` is false.

        The agent keeps one :class:`Player` for these calls. Several groups of environments, such as a collector's and
        an evaluation's, need a :meth:`player` each.

        Args:
            obs: [O] or [E, O], zero-padded to the model's observation size; ``obs=rgb``: uint8, [9, 64, 64] or
                [E, 9, 64, 64].
            t0: True where an episode starts, one value or [E].
            eval_mode: without exploration noise (policy prior: its mean). The default is with it, unlike that of
                :meth:`Player.act`.
            task: id or name, one or [E]; needed by multi-task models.

        Returns:
            Actions in [-1, 1], [A] or [E, A], of the type of ``obs``.

        Raises:
            ValueError: see :meth:`Player.act`.
        """
        return self._player.act(obs, t0, task=task, eval_mode=eval_mode)

    def player(
        self,
        num_envs: int | None = None,
        seed: int | None = None,
        mpc: bool | None = None,
        among: tuple[slice, int] | None = None,
        **budget: Any,
    ) -> Player:
        """Make a player: the plans of one group of environments and their random numbers.

        Args:
            num_envs: every call must then be for so many environments; None: the first call says.
            seed: of its exploration and planning noise; by default each player of the agent has one of its own, which
                follows from ``cfg.seed`` and the number of players made before.
            mpc: act by planning, or with the policy prior; by default as the configuration says.
            among: rows of its environments among those of several processes, and the number of these.
            budget: planning keys in place of the configuration's, such as ``num_samples=64`` or ``planner="fast"``; it
                then plans with a planner of its own, in the way that the agent's does.

        Raises:
            ValueError: a key of the budget is none of the planner's, or its value is not allowed.
        """
        if seed is None:
            seed = (self.cfg.seed + self._num_players * 0x9E3779B9) % 2**32  # far from the seeds that people choose
            self._num_players += 1
        if not isinstance(seed, (int, np.integer)):
            raise ValueError(f"seed={shown(seed)} must be a whole number")
        generator = torch.Generator(self.device).manual_seed(seed)
        model, planner, cfg = self.model, self.planner, self.cfg
        if strange := sorted(budget.keys() - {*PLANNER_KEYS, "planner"}):
            raise ValueError(f"{strange[0]} is no key of a player's planner: {', '.join((*PLANNER_KEYS, 'planner'))}")
        if budget:
            cfg = cfg.replace(**budget)
            model = model.with_settings(cfg)
            planner = planner.for_model(model)
        return Player(model, planner, generator, num_envs, cfg.mpc if mpc is None else mpc, among)

    def compile_planner(self, num_plans: int = 1_000_000) -> str:
        """Plan in the fastest way there is, if ``cfg.compile`` says so; ``auto``: if it is worth it for so many plans.

        Returns:
            One line about it, or nothing.
        """
        if self.cfg.mpc:
            return self.planner.speed_up(self.cfg.compile, num_plans)
        self.planner.use_kernels(self.cfg.compile)
        return ""

    # -- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str], *, step: int = 0, overwrite: bool = False) -> None:
        """Write a full-precision checkpoint (layout a with target heads, plus the configuration), atomically.

        Raises:
            ValueError: the file exists and ``overwrite`` is false, or the agent's weights are below float32.
        """
        self._require_fp32("save")
        save_file(path, self._payload(step), overwrite=overwrite)

    def push_to_hub(
        self, name: str, *, private: bool = False, message: str = "", license: str | None = None, step: int = 0
    ) -> str:
        """Publish the agent: a card, ``config.json`` and ``model.safetensors``, in one commit.

        Args:
            name: ``user/name`` on the hub, or ``hf://user/name@revision``; a repository is made if there is none.
            private: a new repository is for its owner alone.
            message: of the commit; a fixed one by default.
            license: of the weights, as the hub spells it; None: the page says nothing of it.
            step: updates that the weights have seen.

        Returns:
            Where it is, in a line.

        Raises:
            ValueError: the hub cannot be reached or refuses, or the agent's weights are below float32.
        """
        self._require_fp32("push")
        how = Push(private, message or Push().message, license)
        target = name if hub.is_hub_name(name) else f"{hub.PREFIX}{name}"
        return push(load_file(self._payload(step)), target, how)

    def _payload(self, step: int) -> dict[str, Any]:
        config = {key: value for key, value in self.cfg.to_dict().items() if key not in RUN_KEYS}
        return {"model": self.model.state_dict(), "config": config, "step": step}

    def load(self, source: str | PathLike[str] | Mapping[str, Any]) -> None:
        """Load weights of any public layout or precision into this architecture.

        Raises:
            ValueError: unreadable file, names and shapes that do not fit, or the agent's own weights are below float32.
        """
        self._require_fp32("load weights")
        file = load_file(source)
        with naming(file.origin):
            self.model.load_state_dict(file.model)

    def training_state(self) -> dict[str, Any]:
        """Everything besides the weights that the next update depends on."""
        return {
            "optim": self.optim.state_dict(),
            "pi_optim": self.pi_optim.state_dict(),
            "scale": self.scale,
            "generator": self.generator.get_state(),
            "distillation": self.distillation.state(),
            "update_path": self._update_path,
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`training_state`; on another kind of device with other, but fixed, random draws."""
        load_moments(self.optim, state["optim"])
        load_moments(self.pi_optim, state["pi_optim"])
        self.scale = state["scale"].to(self.device)
        if "distillation" in state:  # older files have none, and need none
            self.distillation.load_state(state["distillation"])
        older: dict[bool | None, UpdatePath | None] = {True: "compiled", False: "plain", None: None}
        self._update_path = state.get("update_path", older[state.get("compiled", False)])
        continue_generator(self.generator, state["generator"])

    def set_precision(self, name: str, format_of: Callable[[str], str], compute_dtype: torch.dtype) -> None:
        """Act in lower precision from now on, and train no more; see :class:`~tdmpc2.precision.Execution`."""
        self._require_fp32("change the precision")
        set_precision(self.model, format_of, compute_dtype)
        self.precision = name

    def _require_fp32(self, purpose: str) -> None:
        if self.precision != "fp32":
            raise ValueError(f"This agent was loaded to act in {self.precision}: use precision='fp32' to {purpose}")
