"""Gather runs into a table with intervals over random seeds, and a figure: `python report.py --help`."""

from __future__ import annotations

from tdmpc2_start import prepare

prepare()  # before the slow imports

from tdmpc2.commands.report import main

if __name__ == "__main__":
    main()
