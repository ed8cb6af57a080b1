"""Gather runs into a table with intervals over random seeds, and a figure.

tdmpc2 report logs/mt30
tdmpc2 report logs/mt30 more/logs out=report
tdmpc2 report logs/mt30 --out report --force
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tdmpc2.commands.options import Option
from tdmpc2.commands.plain import read_options
from tdmpc2.support.cli import one_line_errors

OPTIONS = (
    Option("paths", "directories that hold runs, at any depth", kind=Path, many=True, required=True, bare=True),
    Option("out", "directory of report.md, report.json and report.png", Path("report"), Path),
    Option("force", "replace an earlier report there", False, bool),
)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    values, _ = read_options("report", __doc__, argv, OPTIONS)
    from tdmpc2.studies.report import write_report
    from tdmpc2.studies.runs import read_study

    print("\n".join(write_report(read_study(values["paths"]), values["out"], values["force"])))
