"""The log of a run: console, ``train.log``, CSV files, Weights & Biases and TensorBoard behind one interface.

Nothing else in the project reads metric values or knows which outputs are on. Values may stay on the device until
:meth:`Logger.log`, which reads all of them in one transfer. The two services (:mod:`tdmpc2.tracking.writers`) are
imported when a run asks for them, and whatever goes wrong there costs one warning line, never the training run.
``names.py`` has the names of all metrics.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, TextIO

import torch

from tdmpc2.config import Config
from tdmpc2.support.csv_files import CsvFile, drop_rows_after, read_csv, set_aside
from tdmpc2.tracking.console import RunConsole, metric_parts
from tdmpc2.tracking.names import CSV_FILES, wandb_name
from tdmpc2.tracking.pace import Activity, Pace
from tdmpc2.tracking.writers import writers_of

__all__ = ["Logger", "read_scalars"]


class Logger:
    """Metrics and messages of one run, for the length of a ``with`` block.

    Args:
        cfg: what is trained; says where to write (``run_dir``, ``tracker``, ``save_csv``, which is also for
            ``train.log``).
        teacher: the teacher's configuration, recorded beside the student's.
        total_steps: last step of the run, for the remaining time.
        start_step: step of the checkpoint a run continues from. Rows after it are dropped from the CSV files, because
            those steps are taken again; its own rows stay, so log a step before saving it. With 0 the run is new: a
            CSV file in its way is renamed (``train.csv.1``).
        begun_before: the run was ended before it first saved: with ``start_step`` 0 its CSV files are removed instead.
        run_id: Weights & Biases run to continue, a former :attr:`run_id`.
        evaluate_again: the evaluation at ``start_step`` is made again, so that its rows are dropped, too.
        wall_seconds: seconds that earlier starts of the run took until ``start_step``.
        stream: where console output goes; standard output by default.
    """

    def __init__(
        self,
        cfg: Config,
        *,
        teacher: Config | None = None,
        total_steps: int,
        start_step: int = 0,
        begun_before: bool = False,
        run_id: str | None = None,
        evaluate_again: bool = False,
        wall_seconds: float = 0.0,
        stream: TextIO | None = None,
    ) -> None:
        self._cfg, self._teacher, self._total, self._start = cfg, teacher, total_steps, start_step
        self._console = RunConsole(cfg.run_dir / "train.log" if cfg.save_csv else None, stream)
        self._writers = writers_of(cfg, self.message)
        self._wandb_id, self._evaluate_again, self._begun_before = run_id, evaluate_again, begun_before
        self._wall_seconds_before = wall_seconds
        self._files: dict[str, CsvFile] = {}
        self._off: set[str] = set()  # CSV files that are not written
        self._warned: set[str] = set()
        lines = {"eval/teacher_score": cfg.teacher_score, "eval/control_score": cfg.control_score}
        self._lines = {name: value for name, value in lines.items() if value is not None}

    def __enter__(self) -> Logger:
        self._cfg.run_dir.mkdir(parents=True, exist_ok=True)
        for name in CSV_FILES if self._cfg.save_csv else ():
            self._bring_to_start(name)
        for writer in self._writers:
            place = self._start, self._wandb_id, self._console.terminal, self._evaluate_again
            writer.start(self._cfg, self._teacher, *place)
        self._console.__enter__()
        if self._lines and not self._start:  # from the beginning on; later every evaluation carries them
            self._send(self._start, self._lines)
        self._pace = Pace(self._start, self._total, monotonic(), self._wall_seconds_before)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._console.__exit__()
        for file in self._files.values():
            file.close()
        for writer in self._writers:
            writer.finish(failed=kind is not None)

    @property
    def run_id(self) -> str | None:
        """Id of the Weights & Biases run, or None without one; kept in the training state to continue the run."""
        return next((writer.run_id for writer in self._writers if writer.run_id), None)

    @property
    def wall_seconds(self) -> float:
        """Seconds that the run has trained in all its starts; kept in the training state to continue the count."""
        return self._pace.wall_seconds(monotonic())

    @property
    def paused(self) -> float:
        """Seconds of :meth:`pause` since the last row of "train"."""
        return self._pace.paused

    def log(
        self,
        step: int,
        metrics: Mapping[str, float | torch.Tensor],
        group: str = "train",
        *,
        data_wait: float | None = None,
        activity: Activity | None = None,
    ) -> None:
        """Write one row of scalars to every output.

        Args:
            step: training step the values belong to.
            metrics: numbers or one-element tensors, on any device. This call waits for the device once.
            group: name of the CSV file, ``<run_dir>/<group>.csv``, and prefix in trackers (``names.py``). Rows
                of "train" are the live line of a terminal, and their speed is a row of ``speed.csv``; every other
                group gets a line of its own. Rows of "eval" carry the scores of ``teacher_score`` and
                ``control_score`` along.
            data_wait: share of the time since the last row that was spent waiting for data, 0 to 1.
            activity: what else is to be said of that time.

        Raises:
            ValueError: a metric is not a scalar.
        """
        values = read_scalars(metrics)
        self._write_csv(group, [{"step": step, **values}])
        row: dict[str, float] = {wandb_name(group, name): value for name, value in values.items()}
        if group == "train":
            row |= self._log_speed(step, values, data_wait, activity)
        else:
            row |= self._lines if group == "eval" else {}
            shown = "   ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.message(f"{group}: step {step:,}   {shown}")
        self._send(step, row)

    def _send(self, step: int, row: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.log(step, row)

    def _log_speed(
        self, step: int, values: Mapping[str, float], data_wait: float | None, activity: Activity | None
    ) -> dict[str, float]:
        """Write the training line and a row of ``speed.csv``; returns what trackers show of it."""
        now = monotonic()
        interval = self._pace.row(step, now)
        pace = {"it_per_s": interval.it_per_s}
        parts = [f"step {step:,}/{self._total:,} ({step / max(self._total, 1):.0%})", f"{interval.it_per_s:,.1f} it/s"]
        if data_wait is not None:
            pace["data_wait"] = data_wait
            parts.append(f"data {data_wait:.0%}")
        if activity is not None:
            pace |= activity.columns
            parts += activity.parts
        row = {"step": step, "seconds": interval.seconds, **pace, "wall_seconds": interval.wall_seconds}
        self._write_csv("speed", [row])
        self._console.training_line([*parts, f"ETA {self._pace.remaining(step, now)}", *metric_parts(values)])
        pace["wall_hours"] = interval.wall_seconds / 3600
        return {f"speed/{name}": value for name, value in pace.items()}

    def log_episodes(self, step: int, rows: Sequence[Mapping[str, str | float]]) -> None:
        """Record episodes that were played for training: ``episodes.csv``, and a curve for each task's returns.

        Args:
            step: training step they ended with.
            rows: of each its task, return, length, success and whatever else there is to tell.
        """
        self._write_csv("episodes", [{"step": step, **row} for row in rows])
        for row in rows:
            self._send(step, {f"episode/{row['task']}": float(row["return"])})

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time of a block out of ``it_per_s``: that of an evaluation or of saving a checkpoint.

        ``seconds``, ``wall_seconds`` and the remaining time count it.
        """
        began = monotonic()
        try:
            yield
        finally:
            self._pace.pause(monotonic() - began)

    def log_table(
        self,
        step: int,
        name: str,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
        curve: str | None = None,
    ) -> None:
        """Write a table, such as scores by task: ``<run_dir>/<name>.csv`` with a ``step`` column, one row per row.

        A ``/`` in ``name`` groups the table in trackers and becomes ``_`` in the file name.

        Args:
            step: training step the table belongs to.
            name: its name.
            columns: headings.
            rows: cells.
            curve: the column that trackers also draw over the steps, a curve for each row, named by the row's
                first cell, in the table's group.
        """
        cells = [list(row) for row in rows]
        named = [dict(zip(["step", *columns], [step, *row], strict=True)) for row in cells]
        self._write_csv(name.replace("/", "_"), named)
        for writer in self._writers:
            writer.table(step, name, list(columns), cells)
        if curve is not None:
            group, column = name.partition("/")[0], list(columns).index(curve)
            self._send(step, {f"{group}/{row[0]}": row[column] for row in cells if row[column] is not None})

    def log_video(self, step: int, name: str, path: str | Path) -> None:
        """Show a video file in Weights & Biases; elsewhere the file itself is the record."""
        for writer in self._writers:
            writer.video(step, name, Path(path))

    def save_artifact(self, path: str | Path, name: str, kind: str, aliases: Sequence[str] = ()) -> None:
        """Upload a file to Weights & Biases as the next version of artifact ``name`` of type ``kind``.

        Its aliases are "latest" and those given, which move there from older versions.
        """
        for writer in self._writers:
            writer.artifact(Path(path), name, kind, aliases)

    def alert(self, title: str, text: str) -> None:
        """Send an alert through the trackers that are on, to people who are not watching the console."""
        for writer in self._writers:
            writer.alert(title, text)

    def message(self, text: str) -> None:
        """Print a line that stays; on a terminal, above the live line."""
        self._console.message(text)

    def _bring_to_start(self, name: str) -> None:
        """Cut a CSV file to the step that the run continues from, or delete that of a run that never saved."""
        path = self._cfg.run_dir / f"{name}.csv"
        try:
            if path.is_symlink():
                raise ValueError("it is a link, and nothing is written through links")
            if self._start:
                drop_rows_after(path, self._start - (self._evaluate_again and name.startswith("eval")))
            elif self._begun_before and path.exists() and read_csv(path)[0][:1] in (["step"], []):
                path.unlink()
        except (OSError, ValueError) as error:
            self._off.add(name)  # or the steps that are taken again would be there twice
            self.message(f"{name}.csv is not written by this start: {error}")

    def _write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows; what the disk says costs one warning for each file, never the run."""
        if not self._cfg.save_csv or name in self._off:
            return
        try:
            if name not in self._files:
                path = self._cfg.run_dir / f"{name}.csv"
                if not self._start:
                    set_aside(path)
                self._files[name] = CsvFile(path)
            self._files[name].append(rows)
        except (OSError, ValueError) as error:
            if name not in self._warned:
                self._warned.add(name)
                self.message(f"{name}.csv lacks rows, the run goes on: {error}")


def read_scalars(metrics: Mapping[str, float | torch.Tensor]) -> dict[str, float]:
    """Read all values as Python numbers, in order, with one transfer and one wait per device.

    Raises:
        ValueError: a tensor has more or less than one element.
    """
    by_device: dict[torch.device, dict[str, torch.Tensor]] = {}
    values: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, torch.Tensor):
            if value.numel() != 1:
                raise ValueError(f"metric '{name}' has shape {list(value.shape)}; log a scalar, such as its mean")
            by_device.setdefault(value.device, {})[name] = value.detach().reshape(())
            values[name] = float("nan")  # holds the place
        else:
            values[name] = value if type(value) is int else float(value)
    for tensors in by_device.values():
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()), torch.float32)
        stacked = torch.stack([tensor.to(dtype) for tensor in tensors.values()])
        values.update(zip(tensors, stacked.tolist(), strict=True))
    return values
