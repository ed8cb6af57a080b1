"""A folder that is written under another name and is there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tdmpc2.support.files import locked, sync_folder, write_text

_MARK = "written-by-tdmpc2-export"  # in a folder that may be deleted: what a kill left


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder beside ``out`` to write to; at the end of the block it becomes ``out``, or is deleted.

    Raises:
        ValueError: ``out`` exists, what a kill left is something else, another process writes it, or the disk refused.
    """
    out = Path(out).expanduser()
    if os.path.lexists(out):
        raise ValueError(f"{out} exists: name another directory, or move it away")
    partial = out.with_name(f".{out.name}.partial")
    busy = f"Another process is writing {out}: wait for its end, or name another directory"
    with locked(out.with_name(f".{out.name}.lock"), busy):
        try:
            if partial.exists():
                if any(partial.iterdir()) and not (partial / _MARK).is_file():
                    raise ValueError(f"{partial} is in the way, and was not left by an export: move it away")
                shutil.rmtree(partial)
            partial.mkdir(parents=True)
            write_text(partial / _MARK, "Files of an export; this one can be deleted.\n")
            yield partial
            for folder, _, files in os.walk(partial, topdown=False):
                for name in files:
                    with open(Path(folder, name), "r+b") as file:
                        os.fsync(file.fileno())
                sync_folder(Path(folder))
            os.rename(partial, out)
            (out / _MARK).unlink()
        except OSError as error:
            raise ValueError(f"Could not write {out}: {error}") from error
        finally:
            if (partial / _MARK).is_file():
                shutil.rmtree(partial, ignore_errors=True)
