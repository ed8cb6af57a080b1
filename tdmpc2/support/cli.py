"""The frame of every command line: errors in one line, a quiet end by signals and by a closed pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import ParamSpec

from gymnasium.error import Error as GymnasiumError

from tdmpc2.support.memory import is_out_of_memory, out_of_memory_line
from tdmpc2.support.output import printable, say, settle
from tdmpc2.support.signals import EndedBySignal, ended_by_exceptions
from tdmpc2.support.text import cut

P = ParamSpec("P")

#: Exceptions whose message is written for the user; all others are faults of the program and keep their traceback.
EXPECTED = (ValueError, OSError, ModuleNotFoundError, GymnasiumError)
INTERRUPTED = 130  # what shells report for a command that Ctrl-C ended
CLOSED_PIPE = 141  # and for one that wrote to a reader that had left, as `head` does
REFUSED = 2
_LONGEST = 1200  # letters of a line


def is_expected(error: BaseException) -> bool:
    """True if the message is enough. With TDMPC2_TRACEBACK=1 it never is, so that a fault can be reported whole."""
    if os.environ.get("TDMPC2_TRACEBACK") == "1":
        return False
    return isinstance(error, EXPECTED) or is_out_of_memory(error)


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks inside a paragraph: libraries wrap theirs for a wide terminal.

    Lines that a file or a library has made endless are cut in the middle.
    """
    if is_out_of_memory(error):
        return out_of_memory_line(error)
    text = printable(" ".join(str(error).split()) if isinstance(error, GymnasiumError) else str(error))
    return "\n".join(cut(line, _LONGEST) if len(line) > _LONGEST else line for line in text.split("\n"))


def check_free(typed: Iterable[str], taken: Mapping[str, str]) -> None:
    """Raise ``ValueError`` if a typed key is one that an option of the program gives: key -> option."""
    for key in typed:
        if key in taken:
            raise ValueError(f"{key}= is given by {taken[key]} here: leave it out")


def one_line_errors(function: Callable[P, None]) -> Callable[P, None]:
    """Print an error of use or of the disk in one line and exit with code 2.

    Ctrl-C ends with code 130 and one line, SIGTERM and SIGHUP with 143 and 129, a closed pipe (``... | head``) with 141
    and none. What was half written is cleaned up in all of these cases.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        code: str | int | None = 0
        line, left = "", False  # whether the function asked to leave, as after help
        with ended_by_exceptions():
            try:
                function(*args, **kwargs)
            except KeyboardInterrupt:
                code, line = INTERRUPTED, "Stopped by Ctrl-C"
            except EndedBySignal as end:
                code, line = end.code, f"Stopped by {end.signal.name}"
            except SystemExit as end:
                code, left = end.code, True
            except BrokenPipeError:
                code = CLOSED_PIPE
            except Exception as error:
                if not is_expected(error):
                    raise
                code, line = REFUSED, f"error: {one_line(error)}"
            lost = settle()  # a closed pipe or a full disk is noticed here and not when Python shuts down
            if isinstance(lost, BrokenPipeError):
                code, line = CLOSED_PIPE, ""
            elif lost is not None and code != INTERRUPTED:
                code = REFUSED
                line = f"error: Standard output could not be written: {lost.strerror}. Make room, or write it elsewhere"
            if line:
                say(line)
        if left or code not in (0, None):
            sys.exit(code)

    return wrapped
