"""The frame of every command line: errors in one line, a quiet end by Ctrl-C and by a closed pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from gymnasium.error import Error as GymnasiumError

P = ParamSpec("P")

#: Exceptions whose message is written for the user; all others are faults of the program and keep their traceback.
EXPECTED = (ValueError, OSError, ModuleNotFoundError, GymnasiumError)
INTERRUPTED = 130  # what shells report for a command that Ctrl-C ended
CLOSED_PIPE = 141  # and for one that wrote to a reader that had left, as `head` does


def is_expected(error: BaseException) -> bool:
    """True if the message is enough. With TDMPC2_TRACEBACK=1 it never is, so that a fault can be reported whole."""
    return isinstance(error, EXPECTED) and os.environ.get("TDMPC2_TRACEBACK") != "1"


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks inside a paragraph: libraries wrap theirs for a wide terminal."""
    return " ".join(str(error).split()) if isinstance(error, GymnasiumError) else str(error)


def one_line_errors(function: Callable[P, None]) -> Callable[P, None]:
    """Print an error of use or of the disk in one line and exit with code 2.

    Ctrl-C ends with code 130 and one line, a closed pipe (``... | head``) with code 141 and none.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            try:
                function(*args, **kwargs)
            finally:
                sys.stdout.flush()  # a closed pipe is noticed here and not when Python shuts down
        except KeyboardInterrupt:
            print("Stopped by Ctrl-C", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            _discard_output()
            sys.exit(CLOSED_PIPE)
        except Exception as error:
            if not is_expected(error):
                raise
            print(f"error: {one_line(error)}", file=sys.stderr)
            sys.exit(2)

    return wrapped


def _discard_output() -> None:
    """Point standard output at nothing, or Python would report the closed pipe again while it shuts down."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
