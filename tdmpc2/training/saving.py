"""Saving of a run at a step: its agent, averaged weights, and the parts that were attached to it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.distributed import ProcessGroup
from tdmpc2.tracking.logger import Logger
from tdmpc2.training import run_dir
from tdmpc2.training.averaging import AveragedWeights
from tdmpc2.training.resuming import Resumed, Stateful, load_part


class Saving:
    """The state of a run on disk, and the parts in memory that it is of.

    Args:
        agent: what is trained.
        cfg: of the run.
        group: the processes that train together; the main one writes.
        resumed: where the run stands.

    Attributes:
        step: of the last save.
    """

    def __init__(self, agent: TDMPC2, cfg: Config, group: ProcessGroup, resumed: Resumed) -> None:
        self._agent, self._cfg, self._group, self._resumed = agent, cfg, group, resumed
        self.step = resumed.step
        self._parts: dict[str, Stateful] = {}
        self._averaged = AveragedWeights(agent, cfg) if cfg.ema_decay else None
        if self._averaged is not None:
            self.attach("ema", self._averaged)
            if resumed.step and group.main:  # a kill may have come between the files of the last save
                self._averaged.restore(resumed.step)

    def attach(self, name: str, part: Stateful) -> None:
        """Save and continue a part with the run; one that was saved is brought to where it was.

        All processes give the state of their part, the main one saves its own; all continue from that.

        Raises:
            ValueError: what was saved is not a state of this part.
        """
        if name in self._resumed.parts:
            load_part(self._cfg.run_dir, name, part, self._resumed.parts[name])
        self._parts[name] = part

    def updated(self) -> None:
        """Take an update of the agent into account."""
        if self._averaged is not None:
            self._averaged.update()

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Give the agent the weights that evaluations are made with, for the time of a block."""
        averaged = self._averaged if self._cfg.eval_weights == "ema" else None
        return nullcontext() if averaged is None else averaged.in_place()

    def save(self, step: int, logger: Logger) -> None:
        """Write everything at a step, unless the run saves nothing; the logger's time stands still meanwhile.

        Raises:
            ValueError: the disk refused.
        """
        if not self._cfg.save_agent:
            return
        with logger.pause():
            parts = {name: part.state() for name, part in self._parts.items()}  # together: one may be spread over all
            if self._group.main:
                run_dir.save(
                    self._agent,
                    self._cfg.run_dir,
                    step,
                    logger.run_id,
                    self._cfg.keep_last,
                    wall_seconds=logger.wall_seconds,
                    parts=parts,
                    first=None if self._averaged is None else partial(self._averaged.save, step),
                )
        self.step = step
