"""Who computes a cache of teachers' outputs: each teacher, and the tasks of a store that it answers for.

N tasks of the store, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.distillation.teachers import check_task_teachers, resized
from tdmpc2.nn.world_model import TaskContext


@dataclass(frozen=True)
class Share:
    """A teacher, and the tasks of a store that it teaches.

    Attributes:
        teacher: the agent.
        ids: its own id of each task of the store, [N] int64 on its device; 0 for those it does not teach.
        teaches: which tasks of the store it teaches, [N] bool in main memory.
    """

    teacher: TDMPC2
    ids: Tensor
    teaches: Tensor

    def episodes(self, store: EpisodeStore, among: Tensor) -> Tensor:
        """Select the episodes of its tasks from those of ``among`` [n], in the same order."""
        return among[self.teaches[store.task[among]]]

    @cached_property
    def _context(self) -> TaskContext:
        """All tasks of the store, for the teacher.

        A look-up rescales an embedding whose norm is above 1, if only by rounding. One look-up serves all episodes, so
        that all of them see the same embedding.
        """
        return self.teacher.model.context(self.ids if self.teacher.cfg.multitask else None)

    def context(self, store: EpisodeStore, episodes: Tensor) -> TaskContext:
        """Look up the tasks of episodes [n], for the teacher."""
        if not self.teacher.cfg.multitask:
            return self._context
        return self._context.for_rows(store.task[episodes].to(self.ids.device))

    def observations(self, obs: Tensor) -> Tensor:
        """Bring observations [..., O] of the store to the teacher's size and device."""
        return resized(obs, self.teacher.cfg.obs_dim).to(self.teacher.device).float()

    def actions(self, action: Tensor) -> Tensor:
        """Bring actions [..., A] of the store to the teacher's size and device."""
        return resized(action, self.teacher.cfg.action_dim).to(self.teacher.device).float()

    def of_store(self, name: str, output: Tensor, store: EpisodeStore) -> Tensor:
        """Bring an output [..., W] of the teacher to the padding of the store's actions."""
        size = store.meta.layout.action_dim
        if name == "policy":
            return torch.cat([resized(half, size) for half in output.chunk(2, -1)], -1)
        return resized(output, size) if name == "plan" else output


def shares(teacher: TDMPC2 | Mapping[str, TDMPC2], store: EpisodeStore) -> list[Share]:
    """Share out the tasks of a store.

    Args:
        teacher: of all tasks, or the teacher of each task; an agent may stand behind several.
        store: the episodes.

    Raises:
        ValueError: a teacher of other tasks, or one that knows its task with other sizes.
    """
    specs = store.meta.tasks
    if not isinstance(teacher, Mapping):
        if teacher.cfg.task_specs != specs:
            raise ValueError(
                f"{store.path} holds task={store.meta.task} ({len(specs)} tasks), but the teacher plays "
                f"task={teacher.cfg.task} ({len(teacher.cfg.task_specs)} tasks). Use a teacher of the data's task set"
            )
        if teacher.cfg.observes_images:
            raise ValueError(
                f"the teacher observes images (obs={teacher.cfg.obs}), which {store.path} does not hold: use one that "
                "observes states"
            )
        everything = torch.arange(len(specs), device=teacher.device)
        return [Share(teacher, everything, torch.ones(len(specs), dtype=torch.bool))]
    student = Config(task=store.meta.task, task_specs=specs)
    check_task_teachers(student, {task: agent.cfg for task, agent in teacher.items()})
    found = []
    for agent in {id(agent): agent for agent in teacher.values()}.values():
        names = [spec.name if teacher.get(spec.name) is agent else None for spec in specs]
        ids = [agent.cfg.task_names.index(name) if name else 0 for name in names]
        teaches = torch.tensor([name is not None for name in names])
        found.append(Share(agent, torch.tensor(ids, device=agent.device), teaches))
    return found


def untaught(of_tasks: list[Share], store: EpisodeStore, among: Tensor) -> Tensor:
    """Select the episodes of tasks that nobody teaches from those of ``among`` [n]."""
    taught = torch.stack([share.teaches for share in of_tasks]).any(0)
    return among[~taught[store.task[among]]]
