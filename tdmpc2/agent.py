"""The TD-MPC2 agent, top to bottom: targets, losses, one update, acting (specification ``algorithm.md``, 8 to 11).

H horizon, B batch, E environments, O observation, A action, D latent, K bins, Q heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn.utils import clip_grad_norm_

from tdmpc2 import losses
from tdmpc2.acceleration import layers as fast_layers
from tdmpc2.acceleration.compiled_update import compiled_losses
from tdmpc2.acceleration.fast_planner import FastPlanner
from tdmpc2.acceleration.low_precision import set_precision
from tdmpc2.checkpoints.files import load_file, save_file
from tdmpc2.config import RUN_KEYS, Config
from tdmpc2.distillation import distillation as distill
from tdmpc2.distributed import ProcessGroup
from tdmpc2.nn.world_model import TaskContext, WorldModel
from tdmpc2.noise import UpdateNoise as UpdateNoise
from tdmpc2.noise import draw_update_noise
from tdmpc2.planner import draw_noise
from tdmpc2.support.runtime import can_compile, resolve_device

Array = TypeVar("Array", np.ndarray, Tensor)
#: Rows of batches that a run must have to be worth compiling: 20 000 updates of 256.
_ROWS_WORTH_COMPILING = 5_120_000
TaskLike = int | str | Sequence[int | str] | np.ndarray | Tensor | None


class TDMPC2:
    """A world model, its optimisers and its planner; with a teacher, the distillation loss is added.

    Args:
        cfg: the agent's configuration; ``cfg.seed`` seeds the weights and all later draws.
        teacher: a trained agent of the same tasks. It is never updated.
        group: the processes that train together; the batches of their updates are shares of one batch.

    Raises:
        ValueError: teacher and student have different task sets.
    """

    cfg: Config
    teacher: TDMPC2 | None

    def __init__(self, cfg: Config, teacher: TDMPC2 | None = None, group: ProcessGroup | None = None) -> None:
        if teacher is not None:
            distill.check_teacher(cfg, teacher.cfg)
        self.cfg = cfg
        self.teacher = teacher
        self.group = group or ProcessGroup()
        self.device = resolve_device(cfg.device)
        self.precision = "fp32"
        self.model = WorldModel(cfg, torch.Generator().manual_seed(cfg.seed)).eval()
        if self.device.type != "cpu":
            self.model.to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(cfg.seed)
        self.scale = torch.ones((), device=self.device)  # running range of values, section 7

        encoder, policy = [list(m.parameters()) for m in (self.model._encoder, self.model._pi)]
        others = [
            p
            for name, p in self.model.named_parameters()
            if p.requires_grad and not name.startswith(("_encoder.", "_pi."))
        ]
        self.distillation = distill.Distillation(cfg, teacher, self.device)
        if cfg.update_precision == "bf16":
            for module in filter(None, (self.model, self.distillation.projection)):
                fast_layers.keep_products_only(module)
        self._model_params = [*encoder, *others, *self.distillation.parameters]
        self._policy_params = policy
        groups: list[dict[str, Any]] = [{"params": encoder, "lr": cfg.lr * cfg.enc_lr_scale}, {"params": others}]
        if self.distillation.parameters:
            groups.append({"params": self.distillation.parameters})
        self.optim = torch.optim.Adam(groups, lr=cfg.lr, fused=True)
        self.pi_optim = torch.optim.Adam(policy, lr=cfg.lr, eps=1e-5, fused=True)
        self._rho = cfg.rho ** torch.arange(cfg.horizon + 1, device=self.device)  # [H+1]
        self.planner = FastPlanner(self.model)
        self._plan_mean: Tensor | None = None  # [E, H, A]
        self._model_losses: Callable[..., Any] = losses.model_losses
        self._policy_loss: Callable[..., Any] = losses.policy_loss
        self._update_compiled: bool | None = None  # None: not yet decided

    # -- learning ---------------------------------------------------------------------------------------------------

    def update(self, batch: Any, noise: UpdateNoise | None = None) -> dict[str, Tensor]:
        """One gradient step on every network (section 9).

        Args:
            batch: named tuple, tensordict or dict of time-major slices: obs [H+1, B, O], action [H, B, A],
                reward [H, B, 1], task [B]; entry t of action and reward leads from obs[t] to obs[t+1]. For
                teacher_reward and teacher_value [1 to H, B, 1], of the same steps, the teacher is not asked.
            noise: random numbers to use instead of the agent's own.

        Returns:
            Losses and gradient norms (before clipping) as 0-d tensors on the device.

        Raises:
            ValueError: the agent's weights are below float32, or what is to be distilled is not there.
        """
        self._require_fp32("train")
        cfg = self.cfg
        obs, action, reward, task = (_field(batch, name) for name in ("obs", "action", "reward", "task"))
        ids = task if cfg.multitask else None
        all_ids = None if ids is None else self.group.gather(ids)  # [N B], those of all N processes
        noise = noise or self._draw_update_noise(obs.shape[1])
        discount = self.model.discounts if ids is None else self.model.discounts[ids].unsqueeze(-1)
        taught = self.distillation.ask(batch, obs, action, ids)

        context = self._context(all_ids)
        with self._products():
            given = (obs, action, reward, discount, context, noise, taught)
            loss_of, zs = self._model_losses(self.model, self.distillation, self._rho, *given)
        coefs: dict[str, Any] = {name: getattr(cfg, f"{name}_coef") for name in ("consistency", "reward", "value")}
        if taught is not None:
            coefs |= {distill.metric(name): self.distillation.weight(name) for name in self.distillation.terms}
        total = torch.stack([coefs[name] * loss for name, loss in loss_of.items()]).sum()

        self.optim.zero_grad()
        total.backward()
        stats = {f"{name}_loss": loss.detach() for name, loss in loss_of.items()} | {"total_loss": total.detach()}
        self.group.average([*_gradients(self._model_params), *stats.values()])
        grad_norm = clip_grad_norm_(self._model_params, cfg.grad_clip_norm)
        self.optim.step()
        increment_version(self._model_params)  # which fused Adam does not; the packed networks go by it

        pi_stats = self._update_policy(zs, all_ids, noise, taught)
        self.model.update_target(cfg.tau)
        stats |= {"grad_norm": grad_norm, **pi_stats}
        return stats | self.distillation.count(stats)

    def _update_policy(
        self, zs: Tensor, all_ids: Tensor | None, noise: UpdateNoise, taught: distill.TeacherOutputs | None = None
    ) -> dict[str, Tensor]:
        """One step of the policy prior on constant latents zs [H+1, B, D] (section 9.1)."""
        with torch.no_grad():
            context = self._context(all_ids)  # anew: the embedding has been trained
        with self._products():
            loss, divergence, self.scale = self._policy_loss(
                self.model, self.group, self._rho, zs, context, noise, self.scale, taught
            )
        stats = {"pi_loss": loss.detach()}
        if divergence is not None:
            loss = loss + self.distillation.weight("policy") * divergence
            stats["distillation_policy_loss"] = divergence.detach()

        loss.backward()
        self.group.average([*_gradients(self._policy_params), *stats.values()])
        grad_norm = clip_grad_norm_(self._policy_params, self.cfg.grad_clip_norm)
        self.pi_optim.step()
        increment_version(self._policy_params)
        self.pi_optim.zero_grad()
        return {**stats, "pi_grad_norm": grad_norm, "pi_scale": self.scale}

    def _products(self) -> torch.autocast:
        """Where the update's matrix products are computed in ``update_precision``; all else stays float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.update_precision == "bf16")

    def compile_update(self) -> str:
        """Compile the losses of an update if ``cfg.compile`` says so; ``auto``: if the run is worth what that takes.

        A continued run goes on as it was begun, whatever its ``steps`` are now, since rounding differs.

        Returns:
            One line about it, or nothing.
        """
        cfg = self.cfg
        if self._update_compiled is None:
            self._update_compiled = cfg.steps * cfg.batch_size >= _ROWS_WORTH_COMPILING
        wanted = self._update_compiled if cfg.compile == "auto" else cfg.compile == "true"
        # With several processes one would wait in the other's update for as long as that compiles.
        self._update_compiled = wanted and self.group.world_size == 1 and can_compile(self.device)
        if not self._update_compiled:
            why = "several processes" if self.group.world_size > 1 else f"no compiler for {self.device.type} found"
            return f"Training without compilation: {why}" if wanted else ""
        self._model_losses, self._policy_loss = compiled_losses(self.model, self.device)
        return "Compiling the update in its first step (one or two minutes; compile=false turns it off)"

    @property
    def update_compiled(self) -> bool:
        """Whether the update is compiled."""
        return self._model_losses is not losses.model_losses

    def _draw_update_noise(self, batch_size: int) -> UpdateNoise:
        group, all_rows = self.group, batch_size * self.group.world_size
        noise = draw_update_noise(self.cfg, all_rows, self.device, self.generator)
        return noise if group.world_size == 1 else noise.rows(group.rows(all_rows))

    def _context(self, all_ids: Tensor | None) -> TaskContext:
        """What this process's rows know of their tasks. Looking up rescales the table: in all processes alike."""
        context = self.model.context(all_ids, train=True)
        if all_ids is None or self.group.world_size == 1:
            return context
        return context.rows(self.group.rows(len(all_ids)))

    # -- acting -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(
        self, obs: Array, t0: bool | np.ndarray | Tensor = False, eval_mode: bool = False, task: TaskLike = None
    ) -> Array:
        """Choose actions by planning, or with the policy prior if ``mpc`` is false.

        Args:
            obs: [O] or [E, O], zero-padded to the model's observation size.
            t0: whether an episode starts, one value or [E].
            eval_mode: without exploration noise (policy prior: its mean).
            task: id or name, one or [E]; needed by multi-task models.

        Returns:
            Actions in [-1, 1], [A] or [E, A], of the type of ``obs``.

        Raises:
            ValueError: wrong observation size, unknown task, or a number of environments that differs from the last
                call's although not all episodes start.
        """
        x = torch.as_tensor(obs, dtype=torch.float32, device=self.device)
        single = x.ndim == 1
        x = x.unsqueeze(0) if single else x  # [E, O]
        if x.shape[-1] != self.cfg.obs_dim:
            raise ValueError(
                f"Observation of size {x.shape[-1]}, but the model takes {self.cfg.obs_dim} "
                f"(task={self.cfg.task}): use make_env(agent.cfg), which pads, or pad with zeros"
            )
        ids = self._task_ids(task, len(x))
        context = self.model.context(ids)
        z = self.model.encode(x, context)
        if self.cfg.mpc:
            starts = torch.as_tensor(t0, device=self.device).bool().expand(len(x))
            action = self._plan(z, context, ids, starts, eval_mode)
        elif eval_mode:
            action = self.model.policy_mean(z, context)
        else:
            eps = torch.randn(len(x), self.cfg.action_dim, device=self.device, generator=self.generator)
            action = self.model.pi(z, context, eps)[0]
        action = action.squeeze(0) if single else action
        return action.cpu().numpy() if isinstance(obs, np.ndarray) else action.to(obs.device)

    def _plan(self, z: Tensor, context: TaskContext, ids: Tensor | None, t0: Tensor, eval_mode: bool) -> Tensor:
        cfg, shape = self.cfg, (len(z), self.cfg.horizon, self.cfg.action_dim)
        if self._plan_mean is None or self._plan_mean.shape != shape:
            if self._plan_mean is not None and not bool(t0.all()):
                raise ValueError(
                    f"act() was last called with {len(self._plan_mean)} environments and now with {len(z)}: "
                    "pass t0=True at the start of the episodes"
                )
            self._plan_mean = torch.zeros(shape, device=self.device)
        discount = (
            self.model.discounts[ids].unsqueeze(-1) if ids is not None else self.model.discounts.expand(len(z), 1)
        )
        result = self.planner(
            z,
            context,
            discount,
            torch.where(t0[:, None, None], 0.0, self._plan_mean),
            draw_noise(cfg, len(z), self.device, self.generator),
            eval_mode=eval_mode,
        )
        self._plan_mean = result.mean
        return result.action

    def compile_planner(self, num_plans: int = 1_000_000) -> str:
        """Plan in the fastest way there is, if ``cfg.compile`` says so; ``auto``: if it is worth it for so many plans.

        Returns:
            One line about it, or nothing.
        """
        return self.planner.speed_up(self.cfg.compile, num_plans) if self.cfg.mpc else ""

    def _task_ids(self, task: TaskLike, num_envs: int) -> Tensor | None:
        names = self.cfg.task_names
        if not self.cfg.multitask:
            return None
        if task is None:
            raise ValueError(f"This agent plays {len(names)} tasks: pass task=, a name or an id")
        if isinstance(task, Tensor) and task.device.type != "cpu":
            ids = task  # checking these would wait for the device
        else:
            items = np.asarray(task, dtype=object).reshape(-1).tolist()  # names and ids may be mixed
            ids = torch.tensor([names.index(item) if item in names else item for item in items if self._knows(item)])
        if len(ids := ids.to(self.device).long().reshape(-1)) not in (1, num_envs):
            raise ValueError(f"{len(ids)} tasks for {num_envs} environments: pass one, or one for each")
        return ids.expand(num_envs)

    def _knows(self, task: int | str) -> bool:
        names = self.cfg.task_names
        if task in names or (isinstance(task, (int, np.integer)) and 0 <= task < len(names)):
            return True
        raise ValueError(f"task={task!r} is not one of this agent's {len(names)} tasks ({names[0]}, ..., {names[-1]})")

    # -- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str], *, step: int = 0, overwrite: bool = False) -> None:
        """Write a full-precision checkpoint (layout a with target heads, plus the configuration), atomically.

        Raises:
            ValueError: the file exists and ``overwrite`` is false, or the agent's weights are below float32.
        """
        self._require_fp32("save")
        config = {key: value for key, value in self.cfg.to_dict().items() if key not in RUN_KEYS}
        save_file(path, {"model": self.model.state_dict(), "config": config, "step": step}, overwrite=overwrite)

    def load(self, source: str | PathLike[str] | Mapping[str, Any]) -> None:
        """Load weights of any public layout or precision into this architecture.

        Raises:
            ValueError: unreadable file, or names and shapes that do not fit.
        """
        self.model.load_state_dict(load_file(source).model)

    def training_state(self) -> dict[str, Any]:
        """Everything besides the weights that the next update depends on."""
        return {
            "optim": self.optim.state_dict(),
            "pi_optim": self.pi_optim.state_dict(),
            "scale": self.scale,
            "generator": self.generator.get_state(),
            "distillation": self.distillation.state(),
            "compiled": self._update_compiled,
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`training_state`; on another kind of device with other, but fixed, random draws."""
        self.optim.load_state_dict(state["optim"])
        self.pi_optim.load_state_dict(state["pi_optim"])
        self.scale = state["scale"].to(self.device)
        if "distillation" in state:  # older files have none, and need none
            self.distillation.load_state(state["distillation"])
        self._update_compiled = state.get("compiled", False)  # older runs were not
        generator = state["generator"].cpu()
        if generator.shape == self.generator.get_state().shape:
            self.generator.set_state(generator)
        else:
            self.generator.manual_seed(int.from_bytes(generator.numpy().tobytes()[:7], "little"))

    def set_precision(self, name: str, format_of: Callable[[str], str], compute_dtype: torch.dtype) -> None:
        """Act in lower precision from now on, and train no more; see :class:`~tdmpc2.precision.Execution`."""
        self._require_fp32("change the precision")
        set_precision(self.model, format_of, compute_dtype)
        self.precision = name

    def _require_fp32(self, purpose: str) -> None:
        if self.precision != "fp32":
            raise ValueError(f"This agent was loaded to act in {self.precision}: use precision='fp32' to {purpose}")


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _field(batch: Any, name: str) -> Tensor:
    return getattr(batch, name) if hasattr(batch, name) else batch[name]
