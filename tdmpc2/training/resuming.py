"""State of a run when it is opened: its cadences, its parts, its step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.run_state import NEW_RUN, part_of
from tdmpc2.config import Config
from tdmpc2.distributed import ProcessGroup
from tdmpc2.envs.registry import score_label
from tdmpc2.support.memory import is_out_of_memory
from tdmpc2.support.text import cut
from tdmpc2.tracking.curves import wall_seconds
from tdmpc2.training import run_record
from tdmpc2.training.evaluations import read_scores, rename_score
from tdmpc2.training.preflight import check_disk
from tdmpc2.training.run_dir import restore


@dataclass(frozen=True)
class Every:
    """A cadence: due at each multiple of ``freq`` steps, never if that is 0.

    Attributes:
        freq: steps between two times.
        stride: steps that the loop takes at a time; a multiple that is passed on the way counts.
        first: due before the first step as well.
    """

    freq: int
    stride: int = 1
    first: bool = False

    def due(self, step: int) -> bool:
        """Tell whether it is time, ``step`` steps having been taken."""
        if step == 0:
            return self.first and self.freq > 0
        return self.freq > 0 and step > 0 and step // self.freq > max(step - self.stride, 0) // self.freq


class Stateful(Protocol):
    """A part of a run that is saved and continued with it, such as a replay buffer."""

    def state(self) -> Mapping[str, Any]:
        """Return what ``state.pt`` is to hold: tensors, numbers, strings, lists and dicts.

        A part that is too large for that first writes what is new to files of its own, to which it only appends, and
        returns how much of them counts.
        """

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a former :meth:`state`; later content of its own files is dropped: those steps are repeated."""


class Resumed(NamedTuple):
    """State of a run when it is opened; a new one is at step 0."""

    record: dict[str, Any]  # what run.json is to hold
    note: str = ""  # settings that differ from those so far, in one line
    step: int = 0  # steps that have been taken and saved
    wandb_id: str | None = None  # Weights & Biases run to continue
    evaluation_due: bool = False  # the run ended before or while it evaluated this step
    wall_seconds: float = 0.0  # time it has trained
    parts: Mapping[str, Any] = {}  # states of its parts by name


def resume(
    agent: TDMPC2, cfg: Config, teacher_sha256: str | None, data: Mapping[str, str] | None, evaluate: Every
) -> Resumed:
    """Bring the agent to where the run's directory says it is.

    Args:
        agent: takes the weights and the state of the optimisers.
        cfg: the run's configuration.
        teacher_sha256: checksum of the teacher's file.
        data: identity of the stored data it learns from.
        evaluate: when the agent is evaluated.

    Raises:
        ValueError: the directory belongs to another run, a file is damaged, or the disk has no room for the run.
    """
    check_disk(agent, cfg)
    record, note = run_record.check(cfg, teacher_sha256, data)
    saved = restore(agent, cfg.run_dir)
    label = score_label(cfg.task_specs[task_id] for task_id in cfg.task_ids)
    rename_score(cfg.run_dir, label)
    # A run that is killed before it saves begins anew, with its evaluation.
    scored = math.isfinite(read_scores(cfg.run_dir, label).get(saved.step, math.nan))  # not where an environment failed
    due = evaluate.due(saved.step) and (saved.step == 0 or not scored)
    seconds = saved.wall_seconds
    if seconds is None:  # nothing saved yet, or by a version that did not count
        seconds = wall_seconds(cfg.run_dir, saved.step)
    return Resumed(record, note, saved.step, saved.wandb_id, due, seconds, saved.parts)


def resume_together(
    group: ProcessGroup,
    agent: TDMPC2,
    cfg: Config,
    teacher_sha256: str | None,
    data: Mapping[str, str] | None,
    evaluate: Every,
) -> Resumed:
    """Do as :func:`resume` in the main process, and bring the agents of all others to the same place.

    Args:
        group: the processes that train together.
        agent, cfg, teacher_sha256, data, evaluate: as of :func:`resume`.

    Raises:
        ValueError: as :func:`resume`, in every process.
    """
    found = group.from_main(lambda: resume(agent, cfg, teacher_sha256, data, evaluate)._asdict())
    weights, state = group.from_main(lambda: (agent.model.state_dict(), agent.training_state()))
    if not group.main:
        agent.model.load_state_dict(weights)
        agent.load_training_state(state)
    return Resumed(**found)


def load_part(run_dir: Path, name: str, part: Stateful, state: Mapping[str, Any]) -> None:
    """Bring a part of a run to where it was.

    Raises:
        ValueError: what was saved is not a state of this part.
    """
    try:
        part.load_state(state)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{part_of(run_dir, name)} is damaged [{type(error).__name__}: {cut(str(error))}]. {NEW_RUN}"
        ) from error
