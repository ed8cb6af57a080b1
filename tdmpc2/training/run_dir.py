"""The directory of one run: its checkpoints, what it needs to continue, and its scores.

run.json         the record of the run (run_record.py): configuration, the teacher's checksum, identity of the data
model.pt         newest deployable checkpoint; model_<step>.pt: the newest ``keep_last``, if that is more than one
ema.pt           with ``ema_decay`` the averaged weights of the step of model.pt (averaging.py)
best.pt          the one with the highest score, evaluations.json the score of every evaluation (evaluations.py)
state.pt         the newest weights with optimisers, value scale, random state, step, and the state of everything else
                 the run needs (``parts``): one file, so always consistent
train.csv, speed.csv, eval.csv, ..., train.log: written by the logger
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import save_file
from tdmpc2.checkpoints.reading import read_outline
from tdmpc2.checkpoints.run_state import state_path
from tdmpc2.support import files
from tdmpc2.support.files import replacing
from tdmpc2.training.evaluations import read_scores, write_scores
from tdmpc2.training.state_file import read_state


@contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """Keep other processes out of a run directory, by whatever path they reach it; a lock ends with its process.

    There is a file beside the directory, which may not exist yet, named by where links lead; and the directory itself
    is locked, which also tells of other mounts and of a directory that was renamed.

    Raises:
        ValueError: another process trains there, or the directory cannot be made.
    """
    if run_dir.is_symlink() and not run_dir.exists():
        raise ValueError(f"{run_dir} is a link to {os.readlink(run_dir)}, which is not there: make it, or set work_dir")
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a directory: set work_dir or exp_name")
    real = Path(os.path.realpath(run_dir))
    path = real.with_name(f".{real.name}.lock")
    with files.locked(path, _busy(run_dir), advice="Set work_dir to a directory that can be written"):
        try:
            with hold(real):
                files.delete_leftovers(real)
                yield
        finally:
            if not run_dir.exists():  # refused: nothing to keep others from
                path.unlink(missing_ok=True)


@contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Lock a run directory itself, see :func:`tdmpc2.support.files.directory_locked`.

    Raises:
        ValueError: another process holds it.
    """
    with files.directory_locked(directory, _busy(directory)):
        yield


def _busy(run_dir: Path) -> str:
    return f"Another process is training in {run_dir}: wait for it, or set exp_name"


class Saved(NamedTuple):
    """Contents of ``state.pt`` besides the agent's own state."""

    step: int = 0
    wandb_id: str | None = None
    wall_seconds: float | None = None  # trained until then; None: the file does not say
    parts: Mapping[str, Any] = {}  # states of the run's other parts by name


def save(
    agent: TDMPC2,
    run_dir: Path,
    step: int,
    wandb_id: str | None,
    keep_last: int = 1,
    *,
    wall_seconds: float | None = None,
    parts: Mapping[str, Any] | None = None,
    first: Callable[[], None] | None = None,
) -> None:
    """Write ``state.pt`` and ``model.pt``, replacing the run's own older ones but for the newest ``keep_last``.

    Args:
        agent: what is saved.
        run_dir: where.
        step: number of steps it has trained.
        wandb_id: Weights & Biases run.
        keep_last: newest checkpoints that are kept; all but ``model.pt`` itself only if that is more than one.
        wall_seconds: seconds that the run has trained.
        parts: states of the run's other parts by name: tensors, numbers, strings, lists and dicts.
        first: writes what else there is of the step; after a kill the run makes it again from ``state.pt``.

    Raises:
        ValueError: a weight is not finite, and the older files are unchanged; or the disk refused, and the run goes on
            from the older ``state.pt``.
    """
    for name, tensor in agent.model.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"Training diverged: '{name}' has values that are not finite at step {step:,}. "
                f"What {run_dir} holds is from before; a lower lr or grad_clip_norm may help"
            )
    state = {
        "weights": agent.model.state_dict(),
        "training": agent.training_state(),
        "step": step,
        "wandb_id": wandb_id,
        "wall_seconds": wall_seconds,
        "parts": dict(parts or {}),
    }
    if first is not None:
        first()
    model = run_dir / "model.pt"
    again = step_of(model) == step  # the updates of a step were interrupted: nobody would notice that it is the older
    if again:
        agent.save(model, step=step, overwrite=True)
    save_file(state_path(run_dir), state, overwrite=True, packed=("weights", "training"))  # it is read as a whole
    if not again:
        agent.save(model, step=step, overwrite=True)
    if keep_last > 1:
        _copy(run_dir, step)
    _keep_newest(run_dir, keep_last if keep_last > 1 else 0)


def _copy(run_dir: Path, step: int) -> None:
    """Copy ``model.pt`` under the number of its step."""
    with replacing(run_dir / f"model_{step}.pt") as temporary:
        shutil.copyfile(run_dir / "model.pt", temporary)


def _keep_newest(run_dir: Path, number: int) -> None:
    """Delete all but the newest copies."""
    numbered = {int(path.stem[6:]): path for path in run_dir.glob("model_*.pt") if path.stem[6:].isdigit()}
    for old in sorted(numbered, reverse=True)[number:]:
        numbered[old].unlink()


def restore(agent: TDMPC2, run_dir: Path) -> Saved:
    """Load ``state.pt`` into the agent, and write ``model.pt`` again if it is missing, damaged or of another step.

    A kill may have come between two files of a save: the copy under the step's number may be missing as well, or an
    older one too many.

    Returns:
        The rest of the file; step 0 if there is nothing to continue.

    Raises:
        ValueError: ``state.pt`` cannot be read, or does not fit the agent.
    """
    path, model = state_path(run_dir), run_dir / "model.pt"
    if not path.exists():
        return Saved()
    state = read_state(path, agent)
    state.load_into(agent)
    if step_of(model) != state.step:
        agent.save(model, step=state.step, overwrite=True)
    if agent.cfg.keep_last > 1:
        if step_of(run_dir / f"model_{state.step}.pt") != state.step:
            _copy(run_dir, state.step)
        _keep_newest(run_dir, agent.cfg.keep_last)
    return Saved(state.step, state.wandb_id, state.wall_seconds, state.parts)


def record_score(agent: TDMPC2, run_dir: Path, step: int, score: float, label: str, save_best: bool) -> bool:
    """Add an evaluation to ``evaluations.json``; the weights become ``best.pt`` if no score before was as high.

    Args:
        agent: whose weights they are.
        run_dir: where.
        step: of the evaluation.
        score: its score; one that is not finite is never the best.
        label: name of the score, which tells its scale; scores of another scale are not compared.
        save_best: write ``best.pt``.

    Returns:
        True if it is the best so far.
    """
    earlier = {at: value for at, value in read_scores(run_dir, label).items() if at < step}
    best = math.isfinite(score) and score > max(filter(math.isfinite, earlier.values()), default=-math.inf)
    if best and save_best:
        agent.save(run_dir / "best.pt", step=step, overwrite=True)
    write_scores(run_dir, {**earlier, step: score}, label)
    return best


def step_of(path: Path) -> int | None:
    """Read the step that a checkpoint is of; None if it is missing, damaged or does not say."""
    try:
        content = read_outline(path)
    except ValueError:  # missing or damaged
        return None
    return content.get("step") if isinstance(content, dict) else None
