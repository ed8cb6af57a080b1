"""The first line of a run: what learns from what, with whom and where."""

from __future__ import annotations

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.hub import as_typed
from tdmpc2.nn.layers import num_parameters
from tdmpc2.training.teacher import Teacher, Teachers


def headline(agent: TDMPC2, teacher: Teacher | Teachers | None, source: str, threads: int, step: int) -> str:
    """Describe a run in one line.

    Args:
        agent: what is trained, in one process or in several.
        teacher: its teacher's file or files, if it has any.
        source: what it learns from.
        threads: CPU threads.
        step: where it continues; 0 at its beginning.
    """
    cfg, group = agent.cfg, agent.group
    frozen = f" that learn, beside {', '.join(cfg.freeze)}" if cfg.freeze else ""
    parts = [
        f"{num_parameters(agent.model):,} parameters{frozen}",
        source,
        f"teacher {as_typed(teacher.path)}" if teacher else "no teacher",
        f"{f'{group.world_size} processes on ' if group.world_size > 1 else ''}{agent.device}",
        f"{threads} threads",
        *([f"continuing at step {step:,}"] if step else []),
    ]
    return f"{cfg.run_dir}: {', '.join(parts)}"
