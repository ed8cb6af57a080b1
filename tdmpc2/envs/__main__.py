"""List the tasks that have a name of their own.

python -m tdmpc2.envs                                 all of them, by family
python -m tdmpc2.envs "walker-*" ms-push-cube         those that a name or pattern matches
python -m tdmpc2.envs --write docs/tasks.md           write the reference page
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich import get_console

from tdmpc2.envs.registry import FAMILIES, family_of
from tdmpc2.support.cli import one_line_errors
from tdmpc2.support.files import write_text
from tdmpc2.support.tables import Cells, markdown_table, terminal_table
from tdmpc2.tasks import TASK_SETS, TASKS, TaskSpec, matching, nearest

_HEADINGS = ("task", "observation", "action", "steps", "score", "sets")
_PAGE = """# Tasks

Every task that has a name of its own, by family of [environments](environments.md), with the sizes of its observation
and action and the steps of an episode. `task=NAME` learns, plays or collects one of them, and the name of a set all
that are in it. Tasks without a row work under their own names: every other of dm_control's suite as `domain-task`, and
whatever is registered with Gymnasium under its id.

This page is written by `python -m tdmpc2.envs --write docs/tasks.md`; without `--write` that prints the tables.
"""


def tables(names: Sequence[str] = ()) -> list[Cells]:
    """Make a table of tasks for each family, in the order of the task table.

    Args:
        names: tasks and patterns such as ``mw-*`` to choose by; all by default.

    Raises:
        ValueError: a name that no task has, or a pattern that matches none.
    """
    chosen = matching(names, tuple(TASKS), "the table") if names else tuple(TASKS)
    if unknown := [name for name in chosen if name not in TASKS]:
        hint = nearest(unknown[0], TASKS) or " Type no name to see all of them."
        raise ValueError(f"'{unknown[0]}' is not among the tasks with a name of their own.{hint}")
    by_family: dict[str, list[TaskSpec]] = {family.name: [] for family in reversed(FAMILIES)}
    for name in chosen:
        by_family[family_of(name).name].append(TASKS[name])
    return [Cells(family, _HEADINGS, [_row(spec) for spec in specs]) for family, specs in by_family.items() if specs]


def markdown() -> str:
    """Write the reference page."""
    parts = [f"## {cells.title}\n\n{markdown_table(cells.headings, cells.rows)}\n" for cells in tables()]
    return "\n".join([_PAGE, *parts])


def _row(spec: TaskSpec) -> tuple[str, ...]:
    score = "success" if spec.success_score else family_of(spec.name).score
    sets = ", ".join(name for name, tasks in TASK_SETS.items() if spec.name in tasks)
    return spec.name, *map(str, (spec.obs_dim, spec.action_dim, spec.episode_length)), score, sets


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Print the tasks, or write the reference page."""
    parser = argparse.ArgumentParser(prog="python -m tdmpc2.envs", description="List the tasks by family.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="tasks, or patterns such as 'mw-*' (default: all)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write docs/tasks.md instead")
    chosen = parser.parse_args(arguments)
    if chosen.write:
        write_text(chosen.write, markdown())
        print(f"wrote {chosen.write}")
        return
    for cells in tables(chosen.names):
        get_console().print(terminal_table(cells))


if __name__ == "__main__":
    main()
