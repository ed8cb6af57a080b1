"""The outputs that a run's curves are sent to besides its files: one row for each value of the key ``tracker``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tdmpc2.config import Config
from tdmpc2.tracking.tensorboard import TensorBoard
from tdmpc2.tracking.wandb import WandbRun


class Writer(Protocol):
    """An output of a run. Whatever fails in it costs one line, and no method but the first and last waits."""

    @property
    def run_id(self) -> str | None:
        """Name of the run there, if it has to be known to continue it."""

    def start(
        self,
        cfg: Config,
        teacher: Config | None,
        step: int,
        run_id: str | None,
        terminal: bool,
        evaluate_again: bool = False,
    ) -> None:
        """Begin, or continue what was written until ``step``.

        Args:
            cfg: of the run.
            teacher: configuration of its teacher, if it has one.
            step: that the run continues from.
            run_id: of W&B, to continue the same run there.
            terminal: the output is a terminal, where lines are drawn again.
            evaluate_again: the evaluation of ``step`` will be written once more.
        """

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Write numbers by name."""

    def table(self, step: int, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Write a table."""

    def video(self, step: int, name: str, path: Path) -> None:
        """Show a video."""

    def artifact(self, path: Path, name: str, kind: str, aliases: Sequence[str]) -> None:
        """Keep a file as it is at this moment."""

    def alert(self, title: str, text: str) -> None:
        """Say something to people who do not watch the console."""

    def finish(self, failed: bool) -> None:
        """Write what is left."""


class _Row(NamedTuple):
    name: str  # of the key's value
    make: Callable[[Callable[[str], None]], Writer]


_WRITERS = (_Row("wandb", WandbRun), _Row("tensorboard", TensorBoard))


def writers_of(cfg: Config, show: Callable[[str], None]) -> tuple[Writer, ...]:
    """Make the writers that a configuration asks for; ``show`` prints a line."""
    return tuple(row.make(show) for row in _WRITERS if row.name in cfg.tracker)
