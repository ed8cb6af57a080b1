"""Gather runs into a table with intervals over random seeds, figures, or one web page; compare finished evaluations.

tdmpc2 report logs/mt30
tdmpc2 report logs/mt30 more/logs out=report
tdmpc2 report logs/mt30 --out report --force
tdmpc2 report logs/mt30 --html runs.html
tdmpc2 report logs/mt30/1/eval-student logs/mt30/1/eval-student_int8 paired=true

The web page has curves, tables and the newest video of each task in one file that needs no other.
With paired=true the directories are those of evaluations: each is compared with the first one, episode by episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tdmpc2.commands.options import Option
from tdmpc2.commands.plain import read_options
from tdmpc2.support.cli import one_line_errors

OPTIONS = (
    Option("paths", "directories of runs, at any depth; with paired of evaluations", kind=Path, many=True,
           required=True, bare=True),
    Option("out", "directory of report.md, report.json and report.png; by default report (paired: none)", kind=Path),
    Option("html", "write one web page, and the other files only if out is given", kind=Path),
    Option("paired", "compare evaluations of the same tasks and seeds with the first of them", False, bool),
    Option("force", "replace an earlier report there", False, bool),
)  # fmt: skip


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    values, _ = read_options("report", __doc__, argv, OPTIONS)
    paths, out, page, force = (values[key] for key in ("paths", "out", "html", "force"))
    if values["paired"]:
        if page is not None:
            raise ValueError(f"html={page} shows runs, and paired=true compares evaluations: leave out one of them")
        from tdmpc2.studies.paired import write_comparison

        print("\n".join(write_comparison(paths, out, force)))
        return
    from tdmpc2.studies.report import write_report
    from tdmpc2.studies.runs import read_study
    from tdmpc2.studies.web_page import write_page

    study = read_study(paths)
    if out is not None or page is None:
        print("\n".join(write_report(study, out or Path("report"), force)))
    if page is not None:
        print("\n".join(write_page(study, paths, page, force)))
