"""Standard output that can no longer be written to: a full disk, a closed terminal, a reader that has left."""

from __future__ import annotations

import contextlib
import os
import re
import sys

from tdmpc2.support.text import escaped

#: Lines of a message that belong to it: they begin with two spaces, as in the list of what a run lacks.
_CONTINUED = re.compile(r"\n(?!  )")


def settle() -> OSError | None:
    """Write what is waiting in standard output; if that fails, throw it away and say why.

    Otherwise Python would report the failure again while it shuts down.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        discard()
        return error
    return None


def discard() -> None:
    """Point standard output at nothing from now on."""
    with contextlib.suppress(OSError, ValueError):  # a stream of a test or a notebook has no descriptor
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
    with contextlib.suppress(OSError):
        sys.stdout.flush()


def say(line: str) -> None:
    """Print a line for people on standard error, if there is still somebody to read it."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Escape what is not printable, so that a text from a file commands no terminal.

    Line breaks stay where the next line begins with two spaces; others would let a file write lines of ours.
    """
    return escaped(_CONTINUED.sub(r"\\n", text), keep="\n\t")
