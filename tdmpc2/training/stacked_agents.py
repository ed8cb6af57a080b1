"""N agents that learn and plan together: one update and one plan for all, each with its own random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from tdmpc2 import losses
from tdmpc2.acceleration.cuda_graph import GraphedPlan
from tdmpc2.acceleration.stacked import Facts, StackedModels, clip_each, context_of, pad_stack, plan
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.nn.optimisers import gradients, model_optimiser, rate_factor, split_parameters, take_step
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.noise import UpdateNoise
from tdmpc2.planner import Iteration, Plan, PlanNoise
from tdmpc2.player import Asked, Player
from tdmpc2.support.text import shown

#: Keys that agents of a stack may differ in. Those of steps count for a run, and are compared where runs are.
_OWN = frozenset(
    {"task", "tasks", "task_specs", "seed", "work_dir", "exp_name", "checkpoint", "demonstrations", "steps",
     "seed_steps"}
)  # fmt: skip


class StackedAgents:
    """Agents whose weights and moments are views of stacked ones: each acts, saves and is evaluated as any other.

    An update of all equals, to rounding, the updates of each. They are not to be updated alone any more: the count of
    steps of their optimisers is one.

    Args:
        agents: with configurations that differ in tasks, seed and directory only, and equally many updates made.

    Raises:
        ValueError: they differ in more, or learn in a way that is not stacked.
    """

    def __init__(self, agents: Sequence[TDMPC2]) -> None:
        self.agents, self.cfg = list(agents), agents[0].cfg
        for agent in agents:
            check_stackable(agent.cfg, self.cfg)
            if agent.distillation.has_teacher:
                raise ValueError(f"a teacher is not stacked: train {agent.cfg.task} on its own")
        self.models = StackedModels([agent.model for agent in agents])
        encoder, others, policy = split_parameters(self.models)
        self._model_params, self._policy_params = [*encoder, *others], policy
        self.optim = model_optimiser(encoder, others, [], lr=self.cfg.lr, enc_lr_scale=self.cfg.enc_lr_scale)
        self.pi_optim = torch.optim.Adam(policy, lr=self.cfg.lr, eps=1e-5, fused=True)
        self._optimisers = [
            (self.optim, [agent.optim for agent in agents]),
            (self.pi_optim, [agent.pi_optim for agent in agents]),
        ]
        for stacked, own in self._optimisers:
            _join_moments(stacked, own)
        self._planners: dict[Config, tuple[StackedModels, Callable[..., Plan]]] = {}  # by their settings

    # -- learning -----------------------------------------------------------------------------------------------------

    def update(self, batches: Sequence[Any], noise: Sequence[UpdateNoise] | None = None) -> list[dict[str, Tensor]]:
        """Take one gradient step of every agent, as :meth:`tdmpc2.agent.TDMPC2.update` does of one.

        Args:
            batches: one for each agent, of equally many slices.
            noise: random numbers for each, to use instead of the agents' own.

        Returns:
            Losses and gradient norms of each agent, 0-d.

        Raises:
            ValueError: a batch has wrong shapes or types.
        """
        cfg, own = self.cfg, [Batch.from_any(batch) for batch in batches]
        for agent, one in zip(self.agents, own, strict=True):
            one.check(agent.cfg, agent.model.bins)
        rows = own[0].action.shape[1]
        numbers = _fields(noise or [agent.draw_noise(rows) for agent in self.agents])
        batch, ids = _fields(own), torch.stack([one.task for one in own]) if cfg.multitask else None

        facts = self.models.facts(ids, rows, train=True)
        with self.agents[0].autocast():
            total, stats, zs = self.models.map(self._model_losses, batch, numbers, facts)
        self.optim.zero_grad()
        total.sum().backward()
        stats = {name: value.detach() for name, value in (*stats.items(), ("total_loss", total))}
        stats["grad_norm"] = clip_each(gradients(self._model_params), cfg.grad_clip_norm)
        factor = rate_factor(cfg.lr_schedule, cfg.lr_end, self.agents[0].distillation.done)
        take_step(self.optim, self._model_params, factor)

        with torch.no_grad():
            facts = self.models.facts(ids, rows, train=True)  # anew: the embedding has been trained
        scale = torch.stack([agent.scale for agent in self.agents])
        with self.agents[0].autocast():
            loss, scale, more = self.models.map(self._policy_loss, zs, numbers, facts, scale, batch)
        loss.sum().backward()
        stats |= {"pi_loss": loss.detach(), **{name: value.detach() for name, value in more.items()}}
        stats["pi_grad_norm"] = clip_each(gradients(self._policy_params), cfg.grad_clip_norm)
        take_step(self.pi_optim, self._policy_params, factor)
        self.pi_optim.zero_grad()
        self.models.update_target(cfg.tau)
        return self._hand_out({**stats, "pi_scale": scale})  # 0-d of each agent, or [tasks]

    def _model_losses(self, model: WorldModel, batch: Mapping[str, Tensor], noise: Any, facts: Facts) -> Any:
        loss, zs = losses.model_losses(
            model, self.agents[0].distillation, Batch(**batch), context_of(facts), _noise(noise), None
        )
        return loss.total(self.cfg), loss.named(), zs

    def _policy_loss(
        self, model: WorldModel, zs: Tensor, noise: Any, facts: Facts, scale: Tensor, batch: Mapping[str, Tensor]
    ) -> Any:
        found = losses.policy_loss(
            model, self.agents[0].group, zs, context_of(facts), _noise(noise), scale, Batch(**batch)
        )
        return found.loss, found.scale, {} if found.cloning is None else {"bc_loss": found.cloning}

    def _hand_out(self, stats: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Give every agent what is its own of an update: statistics, scale, moments; and count its weights as new."""
        rows = zip(*(value.unbind() for value in stats.values()), strict=True)
        found = [dict(zip(stats, row, strict=True)) for row in rows]
        for agent, own in zip(self.agents, found, strict=True):
            agent.scale = own["pi_scale"]
            own["pi_scale"] = agent.scale.mean()
            own |= agent.distillation.advance(own)
            increment_version(agent.model.parameters())  # packed networks go by it
        if not self.agents[0].optim.state:
            for stacked, optimisers in self._optimisers:
                _share_moments(stacked, optimisers)
        return found

    # -- acting -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def plan(self, players: Sequence[Player], asked: Sequence[Asked], *, eval_mode: bool) -> list[Plan]:
        """Plan for E environments of every agent at once.

        Args:
            players: one of each agent, whose plans go on and whose random numbers are drawn; all with one budget.
            asked: what each of them was asked, of equally many environments.
            eval_mode: without exploration noise.

        Returns:
            The plan of each agent, which its player keeps.

        Raises:
            ValueError: their plans take unequal numbers of iterations, as with few actions and with 20 or more.
        """
        if len(iterations := {player.cfg.plan_iterations for player in players}) > 1:
            raise ValueError(
                f"plans of {min(iterations)} and of {max(iterations)} iterations are not made together: let each "
                "player act on its own"
            )
        device, count = self.agents[0].device, len(asked[0].obs)
        obs = pad_stack([one.obs.to(device) for one in asked])  # [N, E, O]
        ids = torch.stack([one.ids for one in asked if one.ids is not None]) if self.cfg.multitask else None
        facts = self.models.facts(ids, count)
        z = self.models.map(lambda model, x, own: model.encode(x, context_of(own)), obs, facts)
        before = [player.plan_inputs(one) for player, one in zip(players, asked, strict=True)]
        noise = PlanNoise(*(pad_stack(parts) for parts in zip(*(drawn for _, drawn in before), strict=True)))
        mean = pad_stack([mean for mean, _ in before])
        models, plan_all = self._planner(players[0].cfg)
        together = plan_all(models, z, context_of(facts), mean, noise, eval_mode=eval_mode)
        found = [_own_plan(together, i, agent.cfg.action_dim) for i, agent in enumerate(self.agents)]
        for player, one, own in zip(players, asked, found, strict=True):
            player.keep(one, own)
        return found

    def _planner(self, cfg: Config) -> tuple[StackedModels, Callable[..., Plan]]:
        """Find what plans with the settings of players, whose budget need not be the agents' own."""
        if cfg not in self._planners:
            fast = GraphedPlan(plan) if self.agents[0].device.type == "cuda" else plan
            self._planners[cfg] = self.models.with_settings(cfg), fast
        return self._planners[cfg]


def check_stackable(cfg: Config, first: Config) -> None:
    """Raise ``ValueError``, saying what to do, where an agent cannot learn in a stack with another."""
    values, others = cfg.to_dict(), first.to_dict()
    differing = [name for name in values.keys() - _OWN if values[name] != others[name]]
    if (cfg.demonstrations is None) != (first.demonstrations is None):
        differing.append("demonstrations")  # of its own task, but all have some or none
    if cfg.multitask != first.multitask:
        raise ValueError(f"{cfg.task} and {first.task} cannot be stacked: one of them is a model of many tasks")
    if cfg.multitask and cfg.task_specs != first.task_specs:
        raise ValueError(f"{cfg.task} and {first.task} cannot be stacked: they are models of different tasks")
    if differing:
        name = min(differing)
        raise ValueError(
            f"{name}={shown(values[name])} of {cfg.task} is {shown(others[name])} for {first.task}: agents of a stack "
            "differ in tasks, seed and directory only"
        )
    if cfg.lr_schedule != "constant" and cfg.steps != first.steps:
        raise ValueError(
            f"steps={cfg.steps} of {cfg.task} is {first.steps} for {first.task}: agents of a stack have one "
            f"lr_schedule={cfg.lr_schedule}"
        )
    for name, unfit in (
        ("obs", cfg.obs != "state"), ("freeze", bool(cfg.freeze)), ("reset", bool(cfg.reset)),
        ("teachers", bool(cfg.teachers)), ("collect_policy", cfg.collect_policy > 0),
    ):  # fmt: skip
        if unfit:
            raise ValueError(f"{name}={shown(values[name])} is not stacked: train {cfg.task} on its own, by train.py")


class _Entry(NamedTuple):
    """One parameter: stacked, and that of every agent."""

    stacked: Tensor
    own: list[Tensor]


def _entries(stacked: torch.optim.Optimizer, own: Sequence[torch.optim.Optimizer]) -> list[_Entry]:
    lists = [[p for group in optimiser.param_groups for p in group["params"]] for optimiser in (stacked, *own)]
    return [_Entry(first, list(rest)) for first, *rest in zip(*lists, strict=True)]


def _join_moments(stacked: torch.optim.Optimizer, own: Sequence[torch.optim.Optimizer]) -> None:
    """Take over the moments of the agents' optimisers, and make theirs views of the stacked ones."""
    for entry in _entries(stacked, own):
        states = [optimiser.state.get(p) for optimiser, p in zip(own, entry.own, strict=True)]
        steps = {0.0 if state is None else float(state["step"]) for state in states}
        if len(steps) > 1:
            raise ValueError(f"The agents have made {min(steps):g} to {max(steps):g} updates: stack equally old ones")
        if steps != {0.0}:
            known = [state for state in states if state is not None]
            stacked.state[entry.stacked] = {"step": known[0]["step"].clone()} | {
                name: pad_stack([state[name] for state in known]) for name in ("exp_avg", "exp_avg_sq")
            }
    _share_moments(stacked, own)


def _share_moments(stacked: torch.optim.Optimizer, own: Sequence[torch.optim.Optimizer]) -> None:
    """Let the agents' optimisers see the stacked moments as theirs."""
    for entry in _entries(stacked, own):
        if state := stacked.state.get(entry.stacked):
            for i, (optimiser, p) in enumerate(zip(own, entry.own, strict=True)):
                part = i, *map(slice, p.shape)
                moments = {name: state[name][part] for name in ("exp_avg", "exp_avg_sq")}
                optimiser.state[p] = {"step": state["step"], **moments}


def _fields(rows: Sequence[Any]) -> dict[str, Tensor]:
    """Stack the fields of named tuples that are there, padded to the largest."""
    return {
        name: pad_stack([getattr(row, name) for row in rows])
        for name in rows[0]._fields
        if getattr(rows[0], name) is not None
    }


def _noise(fields: Mapping[str, Tensor]) -> UpdateNoise:
    return UpdateNoise(**{**dict.fromkeys(UpdateNoise._fields), **fields})  # type: ignore[arg-type]


def _own_plan(together: Plan, i: int, action_dim: int) -> Plan:
    """Cut one agent's plan out of that of all; actions are the last axis where there are any."""
    action, mean, last = together
    own = {name: getattr(last, name)[i] for name in Iteration._fields}
    for name in ("mean", "std", "elite_actions"):
        own[name] = own[name][..., :action_dim]
    return Plan(action[i, ..., :action_dim], mean[i, ..., :action_dim], Iteration(**own))
