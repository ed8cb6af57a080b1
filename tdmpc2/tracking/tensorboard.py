"""Curves of a run in TensorBoard: event files in ``<run_dir>/tensorboard``, written by a thread of their own.

A start that continues a run writes a further file, which hides the steps after the one that it continues from: they are
taken again. Where that step's evaluation is made again, the file hides this step as well and repeats its other curves.
Tables are in the CSV files, checkpoints and videos are files of the run directory; none of them is copied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tdmpc2.config import Config
from tdmpc2.support.extras import install_hint, missing_packages
from tdmpc2.tracking.sender import METRICS, Sender, reason

#: Seconds that the end of a run waits for a slow disk.
_FINISH_SECONDS = 30.0
#: Seconds after which the library's own thread writes; each row is written by ours before.
_NEVER = 1e7


class TensorBoard:
    """A TensorBoard log that may be absent: methods then do nothing, and failures are one line each.

    Args:
        show: prints a line.
    """

    run_id = None

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._sender: Sender | None = None

    def start(
        self,
        cfg: Config,
        teacher: Config | None,
        step: int,
        run_id: str | None,
        terminal: bool,
        evaluate_again: bool = False,
    ) -> None:
        directory = cfg.run_dir / "tensorboard"
        try:
            if missing_packages("tensorboard"):
                raise ValueError(f"it is not installed: {install_hint('tensorboard')}")
            if directory.is_symlink():
                raise ValueError(f"{directory} is a link, and nothing is written through links")
            from torch.utils.tensorboard import SummaryWriter

            repeated = _without_evaluation(directory, step) if evaluate_again and step else {}
            first = step + (not evaluate_again) if step else 0  # of the steps to hide
            writer = SummaryWriter(str(directory), purge_step=first, flush_secs=_NEVER)
        except Exception as error:  # disk, a foreign version: neither is worth a training run
            text = str(error) if isinstance(error, ValueError) else reason(error)
            self._show(f"TensorBoard: off, it did not start ({text}). Training continues without it.")
            return
        self._sender = Sender("TensorBoard", writer, self._show)
        if repeated:
            self.log(step, repeated)
        configs = {"student": cfg, "teacher": teacher}
        for name, config in configs.items():
            if config is not None:
                self._text(f"config/{name}", _as_code(config.to_dict()), step)
        self._show(f"TensorBoard: tensorboard --logdir {directory}")
        if cfg.save_video:
            self._show(f"TensorBoard shows no videos, they are files: {cfg.run_dir / 'videos'}")

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        values = dict(row)

        def write(writer: Any) -> None:
            for name, value in values.items():
                writer.add_scalar(name, float(value), step)
            writer.flush()

        self._call(METRICS, write)

    def table(self, step: int, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        pass

    def video(self, step: int, name: str, path: Path) -> None:
        pass

    def artifact(self, path: Path, name: str, kind: str, aliases: Sequence[str]) -> None:
        pass

    def alert(self, title: str, text: str) -> None:
        self._text("alerts", f"**{title}**\n\n{text}", None)

    def finish(self, failed: bool) -> None:
        """Wait until everything is written, at most :data:`_FINISH_SECONDS`."""
        if self._sender is not None:
            self._sender.finish(lambda writer: writer.close(), _FINISH_SECONDS)
            self._sender = None

    def _text(self, name: str, text: str, step: int | None) -> None:
        def write(writer: Any) -> None:
            writer.add_text(name, text, step)
            writer.flush()

        self._call("texts", write)

    def _call(self, kind: str, action: Callable[[Any], None]) -> None:
        if self._sender is not None:
            self._sender.call(kind, action)


def _without_evaluation(directory: Path, step: int) -> dict[str, float]:
    """Read what a log shows of a step, but for its evaluation."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 1})
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if not name.startswith("eval/")]
    return {name: event.value for name in names for event in events.Scalars(name) if event.step == step}


def _as_code(values: Mapping[str, Any]) -> str:
    """Write values as a Markdown block, which TensorBoard shows as it is."""
    lines = json.dumps(values, indent=2).splitlines()
    return "\n".join(f"    {line}" for line in lines)
