"""Measure a model's errors on episodes it was not trained on: another directory of data, collected with another seed.

tdmpc2 heldout model.pt data=data/heldout
tdmpc2 heldout student.pt other.pt data=data/heldout teacher=teacher.pt
tdmpc2 heldout student.pt --data data/heldout --teacher teacher.pt --write

By default the errors are of all tasks that a checkpoint and the data have in common; tasks=[...] chooses among them.
For each task the trust figures also say at which share of the starts a rollout of three steps is worse than the
assumption that nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tdmpc2.commands.options import Option
from tdmpc2.commands.plain import read_options
from tdmpc2.support.cli import one_line_errors

OPTIONS = (
    Option("checkpoints", "files to measure", kind=Path, many=True, required=True, bare=True, aliases=("checkpoint",)),
    Option("data", "episode store or directory of chunk files", required=True, aliases=("data_dir",)),
    Option("teacher", "checkpoint whose values are the reference for value errors", kind=Path),
    Option(
        "tasks",
        "only these tasks, or patterns such as mw-*; by default all that checkpoint and data have in common",
        (),
        many=True,
    ),
    Option("batches", "how many are drawn", 50, int, least=1),
    Option("batch_size", "slices in each", 256, int, least=1),
    Option("seed", "of the slices", 12345, int, least=0, most=2**31 - 1),
    Option("device", "where the model computes", "auto"),
    Option("write", "leave heldout.json beside a run's model.pt, for report; heldout_NAME.json beside other files",
           False, bool),
)  # fmt: skip


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    values, _ = read_options("heldout", __doc__, argv, OPTIONS)
    from rich import get_console

    from tdmpc2.studies.error_files import check_one_each, write_errors
    from tdmpc2.studies.heldout import error_table, measure, scored_tasks, trust_table
    from tdmpc2.support.tables import terminal_table

    paths, write = values.pop("checkpoints"), values.pop("write")
    if not Path(values["data"]).expanduser().exists():
        raise ValueError(
            f"data={values['data']} is not there. Episodes that no training had are those of another seed: "
            f"`python collect.py seed=2 data_dir={values['data']}`"
        )
    if write:
        check_one_each(paths)
    results = measure(paths, values.pop("data"), values.pop("teacher"), **values)
    if write:
        write_errors(results)
    get_console().print(terminal_table(error_table(results)))
    for found in results.values():
        get_console().print(terminal_table(trust_table(found)))
    print(*scored_tasks(results), sep="\n")
