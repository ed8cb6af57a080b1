"""Figures as PNG files, by matplotlib, which is optional."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from tdmpc2.support.extras import install_hint
from tdmpc2.support.files import replacing
from tdmpc2.support.reading import open_regular

_MARK = "tdmpc2-opt"


def figure_class() -> Any:
    """Import matplotlib's ``Figure``, which draws without a display.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the message says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModuleNotFoundError(f"figures need matplotlib: {install_hint('figures')}") from error
    return Figure


def save_figure(figure: Any, path: Path, *, force: bool = False) -> None:
    """Write a figure as a PNG, marked as drawn here.

    Args:
        figure: of matplotlib.
        path: the file; one that was drawn here is replaced.
        force: whatever it is, the user has said that it may be replaced.

    Raises:
        ValueError: something else has that name, or see :func:`~tdmpc2.support.files.replacing`.
    """
    if not force and os.path.lexists(path) and not was_drawn_here(path):
        raise ValueError(f"{path} exists and was not drawn by this program: name another file, or move it away")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png", metadata={"Source": _MARK})


def was_drawn_here(path: Path) -> bool:
    """True for a figure of :func:`save_figure`; false for a link, whatever it leads to."""
    try:
        if path.is_symlink():
            return False
        with open_regular(path) as file:
            return f"tEXtSource\0{_MARK}".encode() in file.read(4096)
    except OSError:
        return False


def free_figure_name(path: Path) -> Path:
    """The first of ``curves.png``, ``curves-2.png``, ... that no file of the user's has."""
    names = (path if n == 1 else path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name) or was_drawn_here(name))
