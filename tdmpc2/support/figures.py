"""Drawing without a display; matplotlib is an optional package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tdmpc2.support.files import replacing


def figure_class() -> Any:
    """Return matplotlib's ``Figure``, which draws without a display.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the message says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModuleNotFoundError("figures need matplotlib: pip install matplotlib") from error
    return Figure


@contextmanager
def png(path: Path, width: float, height: float) -> Iterator[Any]:
    """Yield an empty figure of a size in inches, and write it to ``path`` in the end.

    Raises:
        ModuleNotFoundError: see :func:`figure_class`.
        ValueError: the disk refused.
    """
    figure = figure_class()(figsize=(width, height), layout="constrained")
    yield figure
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
