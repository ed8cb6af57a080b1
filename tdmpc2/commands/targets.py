"""Compute a teacher's rewards, values or both for all episodes, once. Training with distillation_cache=full then needs
no teacher. Interrupt it at any moment and start it again to go on.

tdmpc2 targets data/mt30 teacher.pt
tdmpc2 targets data/mt30 teacher.pt columns=reward,value
tdmpc2 targets data_dir=data/mt30 teacher=teacher.pt --device cuda --batch-rows 65536
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tdmpc2.commands.options import Option
from tdmpc2.commands.plain import read_options
from tdmpc2.support.cli import one_line_errors

OPTIONS = (
    Option("data_dir", "an episode store, or a directory of chunk files, which are imported first", required=True,
           bare=True, aliases=("data",)),
    Option("teacher", "the teacher's checkpoint", kind=Path, required=True, bare=True, aliases=("checkpoint",)),
    Option("columns", "what to compute", ("reward",), many=True, choices=("reward", "value")),
    Option("task", "the task of a single-task file that does not name it"),
    Option("device", "where the teacher computes", "auto"),
    Option("batch_rows", "rows it takes at a time", 4096, int, least=1),
)  # fmt: skip


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    values, _ = read_options("targets", __doc__, argv, OPTIONS)
    from tdmpc2.checkpoints.files import load_file
    from tdmpc2.data.store.importer import ensure_store
    from tdmpc2.data.store.teacher_columns import open_targets
    from tdmpc2.loading import load_agent
    from tdmpc2.support.runtime import set_num_threads
    from tdmpc2.training.teacher_cache import compute_all

    set_num_threads(None)
    path = values["teacher"]
    file = load_file(path, identify=True)
    teacher = load_agent(file, device=values["device"], precision="fp32", task=values["task"])
    store = ensure_store(values["data_dir"], teacher.cfg.task, teacher.cfg.task_specs)
    columns = [open_targets(store, file.sha256 or "", path.name, name) for name in dict.fromkeys(values["columns"])]
    compute_all(columns, teacher, batch_rows=values["batch_rows"])
    print(f"{columns[0].path} is complete: {', '.join(column.name for column in columns)}")
