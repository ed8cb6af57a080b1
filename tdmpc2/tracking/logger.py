"""Console, CSV and Weights & Biases behind one interface.

Nothing else in the project reads metric values or knows which outputs are on. Values may stay on the device until
:meth:`Logger.log`, which reads all of them in one transfer. Weights & Biases is imported when a run asks for it, and
whatever goes wrong there costs one warning line, never the training run. There, the groups are train/, distill/
(metrics whose name starts with "distillation"), eval/ and speed/, all with ``step`` as their axis.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, TextIO

import torch
from rich.live import Live
from rich.text import Text

from tdmpc2.config import Config
from tdmpc2.support.files import write_text
from tdmpc2.tracking.progress import Progress, is_terminal, open_console, print_line, progress, remaining
from tdmpc2.tracking.wandb import WandbRun

__all__ = ["Logger", "Progress", "progress", "read_csv", "read_scalars"]


class Logger:
    """Metrics of one run, for the length of a ``with`` block.

    Args:
        cfg: what is trained; says where to write (``run_dir``, ``wandb_*``, ``save_csv``).
        teacher: the teacher's configuration, recorded beside the student's.
        total_steps: last step of the run, for the remaining time.
        start_step: step of the checkpoint a run continues from. Rows after it are dropped from the CSV files, because
            those steps are taken again; its own rows stay, so log a step before saving it. With 0 the run is new: a
            CSV file in its way is renamed (``train.csv.1``).
        begun_before: the run was ended before it first saved: with ``start_step`` 0 its CSV files are removed instead.
        run_id: Weights & Biases run to continue, a former :attr:`run_id`.
        evaluate_again: the evaluation at ``start_step`` is made again, so that its rows are dropped, too.
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
        stream: TextIO | None = None,
    ) -> None:
        self._cfg, self._teacher, self._total, self._start = cfg, teacher, total_steps, start_step
        self._wandb = WandbRun(self.message)
        self._wandb_id, self._evaluate_again, self._begun_before = run_id, evaluate_again, begun_before
        self._console = open_console(stream)
        self._live: Live | None = None
        self._files: dict[str, _CsvFile] = {}
        lines = {"eval/teacher_score": cfg.teacher_score, "eval/control_score": cfg.control_score}
        self._lines = {name: value for name, value in lines.items() if value is not None}

    def __enter__(self) -> Logger:
        self._cfg.run_dir.mkdir(parents=True, exist_ok=True)
        for path in self._cfg.run_dir.glob("*.csv") if self._cfg.save_csv else ():
            if self._start:
                again = self._evaluate_again and path.name.startswith("eval")
                _drop_rows_after(path, self._start - again)
            elif self._begun_before and read_csv(path)[0][:1] in (["step"], []):  # else not a file of ours
                path.unlink()
        terminal = is_terminal(self._console)
        self._wandb.start(self._cfg, self._teacher, self._wandb_id, capture_console=not terminal)
        if terminal:
            self._live = Live(Text(), console=self._console, auto_refresh=False)
            self._live.start()
        if self._lines:
            self._wandb.log(self._start, self._lines)
        self._began = self._last_time = monotonic()
        self._last_step = self._start
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
            self._live = None
        for file in self._files.values():
            file.close()
        self._wandb.finish(failed=kind is not None)

    @property
    def run_id(self) -> str | None:
        """Id of the Weights & Biases run, or None without one; kept in the training state to continue the run."""
        return self._wandb.run_id

    def log(
        self,
        step: int,
        metrics: Mapping[str, float | torch.Tensor],
        group: str = "train",
        *,
        data_wait: float | None = None,
    ) -> None:
        """Write one row of scalars to every output.

        Args:
            step: training step the values belong to.
            metrics: numbers or one-element tensors, on any device. This call waits for the device once.
            group: prefix in Weights & Biases and name of the CSV file, ``<run_dir>/<group>.csv``. Rows of "train" are
                the live line of a terminal, and their speed is a row of ``speed.csv``; every other group gets a line
                of its own. Rows of "eval" carry the scores of ``teacher_score`` and ``control_score`` along.
            data_wait: share of the time since the last row that was spent waiting for data, 0 to 1.

        Raises:
            ValueError: a metric is not a scalar.
        """
        values = read_scalars(metrics)
        self._write_csv(group, [{"step": step, **values}])
        row: dict[str, float] = {f"{_wandb_group(group, name)}/{name}": value for name, value in values.items()}
        total_first = sorted(values, key=lambda name: name != "total_loss")
        shown = "   ".join(f"{name} {values[name]:.4g}" for name in total_first)
        if group != "train":
            row.update(self._lines if group == "eval" else {})
            self.message(f"{group}: step {step:,}   {shown}")
        else:
            seconds, speed, left = self._pace(step)
            pace = {"it_per_s": speed}
            place = f"step {step:,}/{self._total:,} ({step / max(self._total, 1):.0%})   {speed:,.1f} it/s"
            if data_wait is not None:
                pace["data_wait"] = data_wait
                place += f"   data {data_wait:.0%}"
            self._write_csv("speed", [{"step": step, "seconds": seconds, **pace}])
            row.update({f"speed/{name}": value for name, value in pace.items()})
            line = f"{place}   ETA {left}   {shown}"
            if self._live:
                self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
            else:
                self.message(line)
        self._wandb.log(step, row)

    def log_table(
        self,
        step: int,
        name: str,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
        curve: str | None = None,
    ) -> None:
        """Write a table, such as scores by task: ``<run_dir>/<name>.csv`` with a ``step`` column, one row per row.

        A ``/`` in ``name`` groups the table in Weights & Biases and becomes ``_`` in the file name.

        Args:
            step: training step the table belongs to.
            name: its name.
            columns: headings.
            rows: cells.
            curve: the column that Weights & Biases also draws over the steps, a curve for each row, named by the row's
                first cell, in the table's group.
        """
        cells = [list(row) for row in rows]
        named = [dict(zip(["step", *columns], [step, *row], strict=True)) for row in cells]
        self._write_csv(name.replace("/", "_"), named)
        self._wandb.table(step, name, list(columns), cells)
        if curve is not None:
            group, column = name.partition("/")[0], list(columns).index(curve)
            self._wandb.log(step, {f"{group}/{row[0]}": row[column] for row in cells if row[column] is not None})

    def log_video(self, step: int, name: str, path: str | Path) -> None:
        """Show a video file in Weights & Biases; elsewhere the file itself is the record."""
        self._wandb.video(step, name, Path(path))

    def save_artifact(self, path: str | Path, name: str, kind: str, aliases: Sequence[str] = ()) -> None:
        """Upload a file to Weights & Biases as the next version of artifact ``name`` of type ``kind``.

        Its aliases are "latest" and those given, which move there from older versions.
        """
        self._wandb.artifact(Path(path), name, kind, aliases)

    def alert(self, title: str, text: str) -> None:
        """Tell people who are not watching, where Weights & Biases can; the console shows it anyway."""
        self._wandb.alert(title, text)

    def message(self, text: str) -> None:
        """Print a line that stays; on a terminal, above the live line."""
        print_line(self._console, text)

    def _pace(self, step: int) -> tuple[float, float, str]:
        """Seconds and steps per second since the last row, and the time left at the mean pace; evaluations count."""
        now = monotonic()
        seconds = now - self._last_time
        speed = (step - self._last_step) / max(seconds, 1e-9)
        self._last_step, self._last_time = step, now
        return seconds, speed, remaining(step - self._start, self._total - self._start, now - self._began)

    def _write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if not self._cfg.save_csv:
            return
        if name not in self._files:
            path = self._cfg.run_dir / f"{name}.csv"
            if not self._start:
                _set_aside(path)
            self._files[name] = _CsvFile(path)
        self._files[name].append(rows)


def read_scalars(metrics: Mapping[str, float | torch.Tensor]) -> dict[str, float]:
    """All values as Python numbers, in order, with one transfer and one wait per device.

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


def _wandb_group(group: str, name: str) -> str:
    return "distill" if group == "train" and name.startswith("distillation") else group


# -- CSV -------------------------------------------------------------------------------------------------------------


class _CsvFile:
    """One CSV file that is appended to row by row and rewritten whole when a column is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns = read_csv(path)[0]
        self._file: TextIO | None = None

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        new = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in self._columns]
        if new:
            self.close()
            self._columns += new
            write_text(self._path, _csv_text(self._columns, read_csv(self._path)[1]))
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8", newline="")
        self._file.write(_csv_text(self._columns, rows, header=False))
        self._file.flush()  # what the operating system has survives a kill

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and whole rows of a file; a last line without its newline was torn by a kill and is left out."""
    if not path.exists():
        return [], []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        text = file.read()
    columns, *rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))) or [[]]
    return columns, [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]


def _csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool = True) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _drop_rows_after(path: Path, step: int) -> None:
    columns, rows = read_csv(path)
    if columns[:1] == ["step"]:  # otherwise not a file of ours
        kept = (row for row in rows if row["step"].isdigit() and int(row["step"]) <= step)
        write_text(path, _csv_text(columns, kept))


def _set_aside(path: Path) -> None:
    if path.exists():
        names = (path.with_name(f"{path.name}.{n}") for n in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))
