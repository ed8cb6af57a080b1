"""CSV files with a ``step`` column that survive a kill: read, append to, cut."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tdmpc2.support.appending import append_whole, open_append
from tdmpc2.support.files import write_text
from tdmpc2.support.reading import MOST_TEXT, NotRegularError, open_regular, read_text


class CsvFile:
    """A CSV file that rows are appended to; a new column rewrites it, with empty cells in earlier rows.

    Args:
        path: the file; one that exists is continued.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns = read_csv(path)[0]
        self._torn = _is_torn(path)
        self._file: BinaryIO | None = None

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows; they are with the operating system when this returns, so that a kill does not lose them.

        Raises:
            OSError, ValueError: the disk refused, or the file is a link; the file is as it was.
        """
        new = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in self._columns]
        if new or self._torn:
            self.close()
            open_append(self._path).close()  # refuses what is no file of ours
            write_csv(self._path, columns := [*self._columns, *new], read_csv(self._path)[1])
            self._columns, self._torn = columns, False
        if self._file is None:
            self._file = open_append(self._path)
        append_whole(self._file, _csv_text(self._columns, rows, header=False).encode())

    def close(self) -> None:
        """Close the file; the next row opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _is_torn(path: Path) -> bool:
    """Tell if a kill has torn the last line of a file."""
    if not path.exists():
        return False
    with open_regular(path) as file:
        return file.seek(0, os.SEEK_END) > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read columns and complete rows; ([], []) if there is no file.

    A last line without its newline was torn by a kill and is left out, as are rows of another width.

    Raises:
        ValueError: it cannot be read, is no file, or has a field that no log has.
    """
    if not path.exists():
        return [], []
    try:
        text = read_text(path, MOST_TEXT, errors="replace")
        columns, *rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))) or [[]]
    except NotRegularError as error:
        raise ValueError(str(error)) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except csv.Error as error:
        raise ValueError(f"{path} is damaged [{error}]") from error
    return columns, [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]


def drop_rows_after(path: Path, step: int) -> None:
    """Cut a file after a step, since a run that continues there takes the later steps again.

    A file whose first column is not ``step`` is somebody else's and is left alone.
    """
    columns, rows = read_csv(path)
    if columns[:1] == ["step"]:
        kept = (row for row in rows if row["step"].isdigit() and int(row["step"]) <= step)
        write_csv(path, columns, kept)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file by one of these rows.

    Raises:
        ValueError: the disk refused.
    """
    write_text(path, _csv_text(columns, rows))


def set_aside(path: Path) -> None:
    """Rename a file to the first free of ``<name>.1``, ``<name>.2``, ...; nothing to do without one."""
    if path.exists():
        names = (path.with_name(f"{path.name}.{n}") for n in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))


def _csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool = True) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
