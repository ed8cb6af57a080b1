"""Start of all command lines: what has to be settled before the slow imports."""

from __future__ import annotations

import os
import signal
import sys

#: Turns that a waiting thread of PyTorch makes before it sleeps, about 0.1 ms. By default they are 300,000, and beside
#: another busy process it waits on the core that the thread it waits for needs: everything takes ten times as long.
SPIN_COUNT = "10000"


def prepare() -> None:
    """Let Ctrl-C end a script without a traceback while it imports the rest, and its waiting threads sleep soon."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    bound_spinning()


def bound_spinning() -> None:
    """Let waiting threads sleep soon, unless the user has chosen: libgomp reads these when PyTorch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def main() -> None:
    """Run ``tdmpc2 COMMAND ...``; see :mod:`tdmpc2.commands`."""
    bound_spinning()
    try:
        from tdmpc2.commands import main as run
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C", file=sys.stderr, flush=True)
        os._exit(130)  # at once: modules that are half imported cannot be relied on to end well
    run()
