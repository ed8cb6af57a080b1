"""Gather runs into a table with intervals over random seeds, and a figure.

python report.py logs/mt30 [more directories] --out report    ->  report/report.md, report.json, report.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tdmpc2.commands import cli
from tdmpc2.studies.report import write_report
from tdmpc2.studies.runs import read_study


@cli.one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Gather runs into a table and a figure.")
    parser.add_argument("paths", nargs="+", help="directories that hold runs, at any depth")
    parser.add_argument("--out", default="report", help="directory of the report (default: report)")
    parser.add_argument("--force", action="store_true", help="replace an earlier report there")
    args = parser.parse_args(argv)
    study = read_study(Path(path).expanduser() for path in args.paths)
    print("\n".join(write_report(study, Path(args.out).expanduser(), args.force)))


if __name__ == "__main__":
    main()
