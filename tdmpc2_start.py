"""Start of the console script ``tdmpc2``: Ctrl-C while the package is imported is one line and no traceback."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run ``tdmpc2 COMMAND ...``; see :mod:`tdmpc2.commands`."""
    try:
        from tdmpc2.commands import main as run
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C", file=sys.stderr, flush=True)
        os._exit(130)  # at once: modules that are half imported cannot be relied on to end well
    run()
