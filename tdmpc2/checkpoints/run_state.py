"""The training state of a run, ``state.pt``: where it lies, how messages name its parts, what to do if it is of no use.

What it holds is written and read by :mod:`tdmpc2.training`; the parts of a run, wherever they are, check their own.
"""

from __future__ import annotations

from pathlib import Path

#: Ends a message about a run that cannot go on.
START_NEW = "set exp_name to start a new run"
#: Remedy where the state or a part of it is damaged, or another run's.
NEW_RUN = f"The run cannot be continued from it: {START_NEW}"


def state_path(run_dir: Path) -> Path:
    """Name the file."""
    return run_dir / "state.pt"


def part_of(run_dir: Path, part: str) -> str:
    """Name a part of it, such as the replay buffer, as the origin of a message."""
    return f"{state_path(run_dir)}: {part}"
