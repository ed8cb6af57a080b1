"""Figures as PNG files, by matplotlib, which is optional."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tdmpc2.support.extras import install_hint
from tdmpc2.support.files import replacing


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


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as a PNG.

    Raises:
        ValueError: see :func:`~tdmpc2.support.files.replacing`.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
