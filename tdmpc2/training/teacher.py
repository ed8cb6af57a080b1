"""The teacher of a run: alive, or as targets that were computed once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoint import file_sha256
from tdmpc2.config import Config
from tdmpc2.data.dataset import SliceSampler
from tdmpc2.data.placement import Data
from tdmpc2.data.targets import LazyTargets, compute_all, open_targets
from tdmpc2.loading import load_agent


@dataclass(frozen=True)
class Teacher:
    """A teacher's file; :meth:`load` makes it a frozen agent.

    Attributes:
        path: the file.
        sha256: its checksum.
        cfg: the configuration that names it.
    """

    path: Path
    sha256: str
    cfg: Config

    @classmethod
    def of(cls, cfg: Config | None) -> Teacher | None:
        """The teacher that a configuration names, if it names one.

        Raises:
            ValueError: the file cannot be read.
        """
        if cfg is None or cfg.checkpoint is None:
            return None
        path = Path(cfg.checkpoint)
        return cls(path, file_sha256(path), cfg)

    def load(self, device: str | torch.device) -> TDMPC2:
        """The agent, in fp32 and without gradients.

        Raises:
            ValueError: unreadable file.
        """
        task = {} if self.cfg.multitask else {"task": self.cfg.task}  # files of other code bases do not name it
        agent = load_agent(self.path, device=str(device), precision="fp32", **task)
        agent.model.requires_grad_(False)
        return agent


def add_targets(data: Data, teacher: Teacher, mode: str, device: torch.device) -> tuple[Data, LazyTargets | None]:
    """Give the data the teacher's rewards, so that no update asks the teacher.

    Args:
        data: data in a store.
        teacher: whose rewards; it is loaded only if some are missing.
        mode: ``full``: all that are missing are computed now; ``lazy``: they are when they are needed.
        device: where the teacher computes.

    Returns:
        The data with a column of rewards; or the data as it was and what fills its batches.

    Raises:
        ValueError: a teacher of other tasks, or no room on the disk.
    """
    assert data.store is not None
    targets = open_targets(data.store, teacher.sha256, teacher.path.name)
    if not targets.complete(data.episodes):
        agent = teacher.load(device)
        if mode == "lazy":
            return data, LazyTargets(targets, agent, None if data.place == "disk" else data.episodes)
        compute_all(targets, agent, data.episodes)
    dataset = data.sampler.dataset
    column = targets.values if data.place == "disk" else targets.column(data.episodes, dataset.rows.device)
    dataset = replace(dataset, targets={"teacher_reward": column})
    return data._replace(sampler=SliceSampler(dataset, *data.sampler.selection)), None
