"""Imports of chunk files: complete, refused and interrupted ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tdmpc2.data.chunks import write_chunk
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.data.store.writer import StoreWriter
from tests.helpers.data import SPECS, fields

TASKS = [0, 1, 2, 2, 1, 0, 1]


def make_chunks(root: Path, files: list[list[int]] | None = None, first: int = 0) -> Path:
    """Write chunk files of episodes of these tasks, numbered on from ``first``."""
    for number, tasks in enumerate([TASKS[:3], TASKS[3:]] if files is None else files):
        write_chunk(root / f"chunk_{number}.pt", **fields(tasks, first))
        first += len(tasks)
    return root


def content(root: Path) -> dict[str, bytes]:
    """Read all files of a directory, by name."""
    return {path.name: path.read_bytes() for path in root.iterdir()}


def obvious_rows(data: dict[str, Tensor], dtype: str = "float32") -> bytes:
    """Compute the values of ``rows.npy`` field by field with numpy."""
    record = [("obs", dtype, data["obs"].shape[2:]), ("action", dtype, data["action"].shape[2:]), ("reward", "<f4")]
    rows = np.zeros(data["reward"].shape, np.dtype(record, align=True))
    for name in ("obs", "action", "reward"):
        rows[name] = data[name].numpy()
    rows["action"][:, 0] = rows["reward"][:, 0] = np.nan
    return rows.tobytes()


def refused(tmp_path: Path, match: str, **arguments: Any) -> None:
    """Check that importing ``chunks`` fails with this message and changes nothing."""
    before = content(tmp_path / "chunks")
    with pytest.raises(ValueError, match=match):
        import_episodes([tmp_path / "chunks"], tmp_path / "out", "three", SPECS, **arguments)
    assert content(tmp_path / "chunks") == before
    assert set(os.listdir(tmp_path)) <= {"chunks", ".out.lock", ".out.partial"}


class Interrupt(BaseException):
    """An exception that nothing in the program handles, so that it acts like a kill."""


def write_until(monkeypatch: pytest.MonkeyPatch, blocks: int, error: BaseException) -> None:
    write = StoreWriter.write

    def stop(self: StoreWriter, records: Tensor, lengths: Tensor, hold: bool = False) -> None:
        if len(self.finished) >= blocks:
            raise error
        write(self, records, lengths, hold)

    monkeypatch.setattr(StoreWriter, "write", stop)


def interrupted(root: Path, monkeypatch: pytest.MonkeyPatch, blocks: int = 2) -> tuple[Path, dict[str, bytes]]:
    """Stop an import of chunk files, and return what the whole store would hold."""
    chunks = make_chunks(root / "chunks")
    whole = content(import_episodes([chunks], root / "undisturbed", "three", SPECS, block=2, quiet=True).path)
    with monkeypatch.context() as patch:
        write_until(patch, blocks, Interrupt())
        with pytest.raises(Interrupt):
            import_episodes([chunks], root / "out", "three", SPECS, block=2, quiet=True)
    return chunks, whole
