"""Figures of offline data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tdmpc2.support.figures import figure_class, save_figure


def return_histograms(path: Path, returns: Mapping[str, np.ndarray], title: str) -> None:
    """Draw one histogram of episode returns per task into a PNG, all on the same axis of returns.

    Args:
        path: file to write.
        returns: task name -> returns of its episodes, [n].
        title: text above.

    Raises:
        ValueError: see :func:`~tdmpc2.support.files.replacing`.
        ModuleNotFoundError: see :func:`~tdmpc2.support.figures.figure_class`.
    """
    columns = min(len(returns), 5) or 1
    lines = math.ceil(len(returns) / columns) or 1
    figure = figure_class()(figsize=(max(2.2 * columns, 4), 1.5 * lines + 0.7), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True).flatten()
    drawn = [values for values in returns.values() if len(values)]
    low = min([0.0, *(float(values.min()) for values in drawn)])
    high = max([1.0, *(float(values.max()) for values in drawn)])
    edges = np.linspace(low, high, 41)
    for panel, (name, values) in zip(panels, returns.items(), strict=False):
        panel.hist(values, bins=edges, color="tab:blue")
        if len(values):
            panel.axvline(float(np.median(values)), color="tab:orange", linewidth=1)
        panel.set_title(f"{name} ({len(values):,})", fontsize=7)
        panel.set_xlim(low, high)
        panel.tick_params(labelsize=6)
        panel.set_yticks([])  # shapes are compared; the number of episodes stands in the title
        panel.spines[["left", "right", "top"]].set_visible(False)
    for panel in panels[len(returns) :]:
        panel.set_axis_off()
    figure.suptitle(title, fontsize=9)
    figure.supxlabel("episode return; the line is the median", fontsize=8)
    save_figure(figure, path)
