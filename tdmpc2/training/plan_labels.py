"""Plans of frozen teachers for stored observations, made once: the distillation target ``plan`` imitates them.

The label of a row is the first action of the mean of a plan for its observation. Each plan starts cold, as at the
beginning of an episode: none goes on from that of the step before, so a label depends on the observation alone, and the
rows of an episode are planned for side by side. Random numbers follow from the episode's content, so that its labels
are the same in every store that holds it. `tdmpc2 targets DIR TEACHER.pt columns=plan` makes them.

E plans side by side, H horizon, L steps of an episode, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.config import PLANNER_KEYS, Config
from tdmpc2.data.store.same_episodes import fingerprint_of
from tdmpc2.data.store.teacher_columns import TeacherTargets, one_process
from tdmpc2.nn.world_model import TaskContext, draw_heads
from tdmpc2.planner import PlanNoise, draw_noise
from tdmpc2.player import has_finite_value
from tdmpc2.tracking.progress import Progress
from tdmpc2.training.cache_shares import Share, shares
from tdmpc2.training.teacher_cache import fill_untaught, require_writable, rows_of, write

#: Plans side by side where nothing is said: enough for the device to be busy.
AT_ONCE = {"cpu": 16}
_AT_ONCE = 256
_HEADS_SEED = 2**60  # far from the seeds of rows


def settings(teacher: TDMPC2 | Mapping[str, TDMPC2], at_once: int) -> dict[str, Any]:
    """List all that labels depend on beside the teachers' files, as plain values: a column of plans records it.

    Where teachers of single tasks differ in something, it is listed by task.
    """
    agents = {"": teacher} if isinstance(teacher, TDMPC2) else dict(teacher)
    found: dict[str, Any] = {"precision": {task: agent.precision for task, agent in agents.items()}}
    for key in PLANNER_KEYS:
        if key != "plan_action":  # a label is the mean, whatever is executed
            found[key] = {task: getattr(agent.cfg, key) for task, agent in agents.items()}
    of_all = {key: next(iter(values.values())) for key, values in found.items() if len(set(values.values())) == 1}
    return {"at_once": at_once, "random_numbers": "by episode", **found, **of_all}


def plans_at_once(device: torch.device) -> int:
    """Choose how many plans are made side by side on a device."""
    return AT_ONCE.get(device.type, _AT_ONCE)


def compute_plans(
    column: TeacherTargets,
    teacher: TDMPC2 | Mapping[str, TDMPC2],
    episodes: Tensor | None = None,
    at_once: int | None = None,
) -> None:
    """Make the plans that are missing in a column. It may be interrupted at any moment, and goes on from there.

    The rows of an episode are planned for in groups of ``at_once``, each of which depends on nothing but its rows.

    Args:
        column: of plans.
        teacher: the agent that plans, with the settings of its configuration; or the teacher of each task.
        episodes: [n] int64, ascending; all by default.
        at_once: plans side by side.

    Raises:
        ValueError: a teacher of other tasks, a plan that is not finite, or a file that cannot be written.
    """
    store, length = column.store, column.values.shape[1] - 1
    of_tasks = shares(teacher, store)
    if column.complete(episodes):
        return
    require_writable([column])
    size = at_once or plans_at_once(of_tasks[0].teacher.device)
    episodes = torch.arange(len(store.task)) if episodes is None else episodes.cpu()
    with one_process(column.path):
        fill_untaught([column], of_tasks, episodes)
        verify = store.verifier()
        todo = [(share, own[column.missing(own)]) for share in of_tasks if len(own := share.episodes(store, episodes))]
        with Progress(sum(len(own) for _, own in todo) * length, "Teacher's plans", unit="plans") as bar:
            for share, own in todo:
                if line := share.teacher.planner.speed_up(share.teacher.cfg.compile, len(own) * length):
                    print(line, flush=True)
                for episode in own.tolist():
                    verify(torch.tensor([episode]))  # plans for damaged rows would stay after the rows are repaired
                    _plan_episode(column, share, episode, size, bar)
        column.flush()


def _plan_episode(column: TeacherTargets, share: Share, episode: int, at_once: int, bar: Progress) -> None:
    """Make the plans of an episode, group by group; groups that are complete are left as they are."""
    store, length = column.store, column.values.shape[1] - 1
    (rows,) = rows_of(torch.tensor([episode]), length)  # [L]
    content = store.read(episode, 1)  # [1, L+1, W]
    obs = share.observations(store.meta.row_format.split(content[0])[0])  # [L+1, O]
    seed = episode_seed(fingerprint_of(content, int(store.task[episode])))
    context = share.context(store, torch.tensor([episode]))
    for group in rows.split(at_once):
        if not column.take(group).isnan().any():
            bar.shorten(len(group))
            continue
        before = group - rows[0]  # the label of the step that leads to a row is a plan for the observation before it
        seeds = (seed + before).tolist()
        if share.teacher.planner.fixed_size:  # a shorter group would be compiled for on its own
            missing = min(at_once, length) - len(before)
            before = torch.cat([before, before[-1:].expand(missing)])
            seeds += seeds[-1:] * missing
        plans = planned_actions(share.teacher, obs[before.to(obs.device)], context, seeds, seed)[: len(group)]
        write(column, group, share.of_store("plan", plans, store).cpu())
        bar.update(len(group))


@torch.no_grad()
def planned_actions(agent: TDMPC2, obs: Tensor, context: TaskContext, seeds: list[int], heads_seed: int) -> Tensor:
    """Plan from a cold start: the first action of each plan's mean, [E, A]; NaN where no value of a plan is finite.

    Args:
        agent: plans.
        obs: [E, O].
        context: of the one task, of one row or of none.
        seeds: of the rows, [E]; the random numbers of a plan follow from it.
        heads_seed: of their episode, from which the choice of Q heads follows that plans side by side share.
    """
    cfg = agent.cfg
    context = TaskContext(*(None if x is None else x.expand(len(obs), -1) for x in context))  # type: ignore[arg-type]
    z = agent.planner.encode(obs, context)
    cold = z.new_zeros(len(obs), cfg.horizon, cfg.action_dim)
    noise = row_noise(cfg, seeds, heads_seed, agent.device)
    plan = agent.planner(z, context, cold, noise, eval_mode=True)
    finite = torch.from_numpy(has_finite_value(agent.model, z, context, plan.last)).to(z.device)
    return plan.mean[:, 0].masked_fill(~finite[:, None], torch.nan)


def episode_seed(fingerprint: bytes) -> int:
    """Take a seed below 2^48 from an episode's fingerprint; its rows have the next ones."""
    return int.from_bytes(fingerprint[:6], "little")


def row_noise(cfg: Config, seeds: list[int], heads_seed: int, device: torch.device) -> PlanNoise:
    """Draw the random numbers of plans side by side, those of each plan for itself."""
    generator = torch.Generator(device)

    def of_row(seed: int) -> PlanNoise:
        return draw_noise(cfg, 1, device, generator.manual_seed(seed))

    each = [of_row(seed) for seed in seeds]
    generator.manual_seed(_HEADS_SEED + heads_seed)
    axes = {"policy": 1, "samples": 1, "value": 1, "elite": 0, "action": 0}
    joined = {name: torch.cat([getattr(noise, name) for noise in each], axis) for name, axis in axes.items()}
    heads = torch.stack([draw_heads(cfg.num_q, device, generator) for _ in range(cfg.plan_iterations)])
    return PlanNoise(heads=heads, **joined)
