"""Several runs that are saved as one: after a kill in the middle, all of them go on from the save before."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tdmpc2.checkpoints.run_state import state_path
from tdmpc2.support.files import replacing

_BEFORE = "state.before.pt"  # beside state.pt while runs are saved; empty where nothing had been


@contextlib.contextmanager
def saved_together(run_dirs: Sequence[Path]) -> Iterator[None]:
    """Keep the former state of every run until all have saved theirs in the block.

    If every run has a former state beside its own, the process was killed inside the block, and all are restored. If
    one has none, it was killed before or after the block, and the states belong together as they are.
    """
    for run_dir in run_dirs:
        _keep(state_path(run_dir), run_dir / _BEFORE)
    yield
    for run_dir in run_dirs:
        (run_dir / _BEFORE).unlink()


def undo_half_saved(run_dirs: Sequence[Path]) -> bool:
    """Bring runs that were killed in :func:`saved_together` to the save before, all of them; true if there were any."""
    kept = [run_dir / _BEFORE for run_dir in run_dirs]
    half = all(path.exists() for path in kept)
    # One that has been brought back keeps its copy until all have been, in case this is killed as well.
    for run_dir, path in zip(run_dirs, kept, strict=True):
        if half and path.stat().st_size:
            with replacing(state_path(run_dir)) as temporary:
                shutil.copyfile(path, temporary)
        elif half:
            for saved in (state_path(run_dir), run_dir / "model.pt"):  # the run begins anew
                saved.unlink(missing_ok=True)
    for path in kept:
        path.unlink(missing_ok=True)
    return half


def forget_former(run_dir: Path) -> None:
    """Delete the former state of a run that goes on alone, so that restoring the others does not restore it as well."""
    (run_dir / _BEFORE).unlink(missing_ok=True)


def _keep(state: Path, before: Path) -> None:
    """Give a file a second name, or copy it where the disk knows no second names."""
    before.unlink(missing_ok=True)
    if not state.exists():
        before.touch()
        return
    try:
        os.link(state, before)
    except OSError:
        with replacing(before) as temporary:
            shutil.copyfile(state, temporary)
