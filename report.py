"""Gather runs into a table with intervals over random seeds, and a figure: `python report.py --help`."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C while the rest is imported is no traceback

from tdmpc2.commands.report import main

if __name__ == "__main__":
    main()
