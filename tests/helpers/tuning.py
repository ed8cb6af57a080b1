"""Files of many toy tasks, and tiny runs that fine-tune them to one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import WIDTHS, Config, parse_cfg
from tdmpc2.tasks import TaskSpec
from tdmpc2.training.tuning import keys_from_checkpoint
from tests.helpers.online import SMALL
from tests.helpers.toy_envs import STANDS, STANDS_FOR

STANDS_SPEC = TaskSpec(STANDS, 4, 2, STANDS_FOR)
OTHERS = (TaskSpec("Other-v0", 6, 3, 9), TaskSpec("Another-v0", 5, 1, 8))
WIDE: dict[str, Any] = {"latent_dim": 24, "num_q": 3, "task_dim": 6}
BASE = {name: value for name, value in SMALL.items() if name not in ("model_size", *WIDTHS)}


def file_of_many(
    directory: Path, specs: tuple[TaskSpec, ...] = (OTHERS[0], STANDS_SPEC, OTHERS[1]), **sizes: int
) -> Path:
    """Save a model of some tasks whose rewards, values and policy depend on all their inputs."""
    directory.mkdir(parents=True, exist_ok=True)
    agent = TDMPC2(Config(**{**SMALL, **WIDE, **sizes, "seed_steps": None}, task="mt30", task_specs=specs, seed=5))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for last in (agent.model._reward[-1].weight, agent.model._pi[-1].weight):  # type: ignore[union-attr]
            last.normal_(0, 0.3, generator=generator)
        agent.model._task_emb.weight.normal_(0, 0.5, generator=generator)
    agent.save(directory / "many.pt")
    return directory / "many.pt"


def tuned(directory: Path, start: Path, task: str = STANDS, **keys: Any) -> Config:
    """Train the run that a command line with these keys makes."""
    typed = {**BASE, "task": task, "checkpoint": str(start), "work_dir": str(directory / "run"), **keys}
    return parse_cfg(keys_from_checkpoint(typed, typed.keys()))
