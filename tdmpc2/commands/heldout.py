"""Measure a model's errors on episodes it was not trained on: another directory of data, collected with another seed.

tdmpc2 heldout model.pt data=data/heldout
tdmpc2 heldout student.pt other.pt data=data/heldout teacher=teacher.pt
tdmpc2 heldout student.pt --data data/heldout --teacher teacher.pt --write
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tdmpc2.commands.options import Option
from tdmpc2.commands.plain import read_options
from tdmpc2.support.cli import one_line_errors

OPTIONS = (
    Option("checkpoints", "files to measure", kind=Path, many=True, required=True, bare=True, aliases=("checkpoint",)),
    Option("data", "episode store or directory of chunk files", required=True, aliases=("data_dir",)),
    Option("teacher", "checkpoint whose values are the reference for value errors", kind=Path),
    Option("batches", "how many are drawn", 50, int, least=1),
    Option("batch_size", "slices in each", 256, int, least=1),
    Option("seed", "of the slices", 12345, int, least=0),
    Option("device", "where the model computes", "auto"),
    Option("write", "leave heldout.json beside each checkpoint, for report", False, bool),
)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    values, _ = read_options("heldout", __doc__, argv, OPTIONS)
    from rich import box, get_console
    from rich.table import Table

    from tdmpc2.studies.heldout import measure
    from tdmpc2.support.files import write_text

    paths, write = values.pop("checkpoints"), values.pop("write")
    if write and len({path.resolve().parent for path in paths}) < len(paths):
        raise ValueError("write leaves one heldout.json per directory: name one checkpoint of each")
    results = measure(paths, values.pop("data"), values.pop("teacher"), **values)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("checkpoint", overflow="fold")
    names = list(next(iter(results.values()))["errors"])
    for name in names:
        table.add_column(name.replace("_", "\n"), justify="right")
    for path, result in results.items():
        table.add_row(str(path), *(f"{result['errors'][name]:.4f}" for name in names))
        if write:
            write_text(path.parent / "heldout.json", json.dumps(result, indent=1) + "\n")
    get_console().print(table)
