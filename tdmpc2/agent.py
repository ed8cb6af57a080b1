"""The TD-MPC2 agent, top to bottom: targets, losses, one update, acting (specification ``algorithm.md``, 8 to 11).

H horizon, B batch, E environments, O observation, A action, D latent, K bins, Q heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from tdmpc2 import distill, planner
from tdmpc2.checkpoint import load_file, save_file
from tdmpc2.config import RUN_KEYS, Config
from tdmpc2.nn.math import soft_cross_entropy, updated_scale
from tdmpc2.nn.world_model import TaskContext, WorldModel, draw_heads
from tdmpc2.runtime import can_compile, resolve_device

Array = TypeVar("Array", np.ndarray, Tensor)
TaskLike = int | str | Sequence[int | str] | np.ndarray | Tensor | None


class UpdateNoise(NamedTuple):
    """All random numbers of one update."""

    target_eps: Tensor  # [H, B, A] standard normal
    target_heads: Tensor  # [2]
    policy_eps: Tensor  # [H+1, B, A] standard normal
    policy_heads: Tensor  # [2]
    value_dropout: Tensor | None  # [Q, H, B, M] factors
    policy_dropout: Tensor | None  # [2, H+1, B, M] factors


class TDMPC2:
    """A world model, its optimisers and its planner; with a teacher, the distillation loss is added.

    Args:
        cfg: the agent's configuration; ``cfg.seed`` seeds the weights and all later draws.
        teacher: a trained agent of the same tasks. It is never updated.

    Raises:
        ValueError: teacher and student have different task sets.
    """

    cfg: Config
    teacher: TDMPC2 | None

    def __init__(self, cfg: Config, teacher: TDMPC2 | None = None) -> None:
        if teacher is not None:
            distill.check_teacher(cfg, teacher.cfg)
        self.cfg = cfg
        self.teacher = teacher
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
        self._model_params = [*encoder, *others]
        self._policy_params = policy
        groups: list[dict[str, Any]] = [{"params": encoder, "lr": cfg.lr * cfg.enc_lr_scale}, {"params": others}]
        self.optim = torch.optim.Adam(groups, lr=cfg.lr, fused=True)
        self.pi_optim = torch.optim.Adam(policy, lr=cfg.lr, eps=1e-5, fused=True)
        self._rho = cfg.rho ** torch.arange(cfg.horizon + 1, device=self.device)  # [H+1]
        self._plan_mean: Tensor | None = None  # [E, H, A]
        self._compiled: dict[str, Any] = {}

    # -- learning ---------------------------------------------------------------------------------------------------

    def update(self, batch: Any, noise: UpdateNoise | None = None) -> dict[str, Tensor]:
        """One gradient step on every network (section 9).

        Args:
            batch: named tuple, tensordict or dict of time-major slices: obs [H+1, B, O], action [H, B, A],
                reward [H, B, 1], task [B]; entry t of action and reward leads from obs[t] to obs[t+1]. With
                teacher_reward [1 to H, B, 1], the teacher's for the same steps, the teacher is not asked.
            noise: random numbers to use instead of the agent's own.

        Returns:
            Losses and gradient norms (before clipping) as 0-d tensors on the device.

        Raises:
            ValueError: the agent's weights are below float32.
        """
        self._require_fp32("train")
        cfg, model = self.cfg, self.model
        obs, action, reward, task = (_field(batch, name) for name in ("obs", "action", "reward", "task"))
        ids = task if cfg.multitask else None
        noise = noise or self._draw_update_noise(obs.shape[1])
        horizon, rho = cfg.horizon, self._rho

        with torch.no_grad():
            context = model.context(ids)
            next_z = model.encode(obs[1:], context)  # [H, B, D]
            discount = model.discounts[ids].unsqueeze(-1) if ids is not None else model.discounts
            td_target = self._td_target(next_z, reward, discount, context, noise)
            teacher_reward = distill.reward_target(batch, self.teacher, obs[0], action[0], ids)

        context = model.context(ids)
        z = [model.encode(obs[0], context)]
        for t in range(horizon):
            z.append(model.next(z[t], action[t], context))
        zs = torch.stack(z)  # [H+1, B, D]
        reward_logits = model.reward(zs[:-1], action, context)  # [H, B, K]
        q_logits = model.Q(zs[:-1], action, context, "all", dropout_mask=noise.value_dropout)  # [Q, H, B, K]

        losses = {
            "consistency": (rho[:-1] * (zs[1:] - next_z).square().mean((1, 2))).mean(),
            "reward": (rho[:-1] * soft_cross_entropy(reward_logits, reward, model.bins).mean((1, 2))).mean(),
            "value": (rho[:-1] * soft_cross_entropy(q_logits, td_target, model.bins).mean((2, 3))).mean(),
        }
        coefs = {"consistency": cfg.consistency_coef, "reward": cfg.reward_coef, "value": cfg.value_coef}
        if teacher_reward is not None:
            losses["distillation"] = distill.reward_distillation_loss(reward_logits[0], teacher_reward, model.bins)
            coefs["distillation"] = cfg.distillation_weight
        total = torch.stack([coefs[name] * loss for name, loss in losses.items()]).sum()

        self.optim.zero_grad()
        total.backward()
        grad_norm = clip_grad_norm_(self._model_params, cfg.grad_clip_norm)
        self.optim.step()

        pi_stats = self._update_policy(zs.detach(), ids, noise)
        model.update_target(cfg.tau)
        return {
            **{f"{name}_loss": loss.detach() for name, loss in losses.items()},
            "total_loss": total.detach(),
            "grad_norm": grad_norm,
            **pi_stats,
        }

    def _td_target(
        self, next_z: Tensor, reward: Tensor, discount: Tensor, context: TaskContext, noise: UpdateNoise
    ) -> Tensor:
        """``r + discount * min of two target heads`` at the policy's action, [H, B, 1] (section 8)."""
        action, _ = self.model.pi(next_z, context, noise.target_eps)
        value = self.model.Q(next_z, action, context, "min", target=True, heads=noise.target_heads)
        return reward + discount * value

    def _update_policy(self, zs: Tensor, task: Tensor | None, noise: UpdateNoise) -> dict[str, Tensor]:
        """One step of the policy prior on constant latents zs [H+1, B, D] (section 9.1).

        The Q weights and the task embedding are constants here, so no gradient is left in them for the next update.
        """
        cfg, model = self.cfg, self.model
        with torch.no_grad():
            context = model.context(task)
        action, info = model.pi(zs, context, noise.policy_eps)
        value = model.Q(
            zs, action, context, "avg", heads=noise.policy_heads, dropout_mask=noise.policy_dropout, detach=True
        )  # [H+1, B, 1]
        self.scale = updated_scale(self.scale, value[0].detach(), cfg.tau)
        entropy = -info["log_prob"] if cfg.policy_loss == "opt" else info["scaled_entropy"]
        loss = -(self._rho * (cfg.entropy_coef * entropy + value / self.scale).mean((1, 2))).mean()

        loss.backward()
        grad_norm = clip_grad_norm_(self._policy_params, cfg.grad_clip_norm)
        self.pi_optim.step()
        self.pi_optim.zero_grad()
        return {"pi_loss": loss.detach(), "pi_grad_norm": grad_norm, "pi_scale": self.scale}

    def _draw_update_noise(self, batch_size: int) -> UpdateNoise:
        cfg, device, generator = self.cfg, self.device, self.generator

        def normal(steps: int) -> Tensor:
            return torch.randn(steps, batch_size, cfg.action_dim, device=device, generator=generator)

        def dropout(heads: int, steps: int) -> Tensor | None:
            if cfg.dropout == 0:
                return None
            uniform = torch.rand(heads, steps, batch_size, cfg.mlp_dim, device=device, generator=generator)
            return (uniform >= cfg.dropout) / (1 - cfg.dropout)

        return UpdateNoise(
            target_eps=normal(cfg.horizon),
            target_heads=draw_heads(cfg.num_q, device, generator),
            policy_eps=normal(cfg.horizon + 1),
            policy_heads=draw_heads(cfg.num_q, device, generator),
            value_dropout=dropout(cfg.num_q, cfg.horizon),
            policy_dropout=dropout(2, cfg.horizon + 1),
        )

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
        else:
            eps = torch.randn(len(x), self.cfg.action_dim, device=self.device, generator=self.generator)
            sample, info = self.model.pi(z, context, eps)
            action = info["mean"] if eval_mode else sample
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
        result = planner.plan(
            self.model,
            z,
            context,
            discount,
            torch.where(t0[:, None, None], 0.0, self._plan_mean),
            planner.draw_noise(cfg, len(z), self.device, self.generator),
            eval_mode=eval_mode,
            **self._compiled,
        )
        self._plan_mean = result.mean
        return result.action

    def compile_planner(self, num_plans: int) -> str:
        """Compile the planner if ``cfg.compile`` says so; ``auto``: if so many plans are worth the minute it takes.

        Returns:
            One line about it, or nothing.
        """
        wanted = self.cfg.compile
        if not self.cfg.mpc or wanted == "false" or (wanted == "auto" and num_plans < 1000):
            return ""
        if not can_compile(self.device):
            return f"Planning without compilation: no compiler for {self.device.type} found (for a CPU, install g++)"
        self._compiled = planner.compiled()
        return "Compiling the planner on its first call (about a minute; compile=false turns it off)"

    @property
    def compiled(self) -> bool:
        """Whether the planner is compiled."""
        return bool(self._compiled)

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
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`training_state`; on another kind of device with other, but fixed, random draws."""
        self.optim.load_state_dict(state["optim"])
        self.pi_optim.load_state_dict(state["pi_optim"])
        self.scale = state["scale"].to(self.device)
        generator = state["generator"].cpu()
        if generator.shape == self.generator.get_state().shape:
            self.generator.set_state(generator)
        else:
            self.generator.manual_seed(int.from_bytes(generator.numpy().tobytes()[:7], "little"))

    def _require_fp32(self, purpose: str) -> None:
        if self.precision != "fp32":
            raise ValueError(f"This agent was loaded to act in {self.precision}: use precision='fp32' to {purpose}")


def _field(batch: Any, name: str) -> Tensor:
    return getattr(batch, name) if hasattr(batch, name) else batch[name]
