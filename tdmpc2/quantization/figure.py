"""The figure of a quantisation report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tdmpc2.support.figures import figure_class, save_figure


def quantization_figure(path: Path, rows: Sequence[dict[str, Any]], limit_db: float | None) -> str:
    """Draw the errors of each recipe, and beside them its size against its score, or else its regret, as a PNG.

    Args:
        path: file to write.
        rows: as from :func:`~tdmpc2.quantization.measure.measure`; the first is float32.
        limit_db: of the predicted errors of ``mixed``; None: there is no such line.

    Returns:
        Why there is no figure, or nothing.

    Raises:
        ValueError: the disk refused.
    """
    try:
        figure = figure_class()(figsize=(10, 4.2), layout="constrained")
    except ModuleNotFoundError as error:
        return f"No figure: {error}"
    errors, costs = figure.subplots(1, 2, width_ratios=(1.5, 1))
    markers, outputs = "oosD^vPX*", list(rows[0]["errors"])
    scored = "score" in rows[0]
    for index, row in enumerate(rows):
        style = {"color": f"C{index - 1}" if index else "black", "marker": markers[index % len(markers)]}
        value = row["score"] if scored else row["regret"]
        if value is not None:
            ends = row["interval"] if scored else None
            bars = [[value - ends[0]], [ends[1] - value]] if ends else None if scored else row["regret_error"]
            costs.errorbar(100 * row["size_ratio"], value, yerr=bars, capsize=3, linestyle="none", **style)
        shift = 0.7 * ((index - 0.5) / max(len(rows) - 1, 1) - 0.5)  # beside each other, not on top
        points = [(x + shift, row["errors"][name]) for x, name in enumerate(outputs) if row["errors"][name] is not None]
        errors.plot(*zip(*points, strict=True) if points else ([], []), linestyle="none", label=row["name"], **style)
    if limit_db is not None:
        errors.axhline(limit_db, color="grey", linewidth=1, linestyle="--", label=f"mixed: {limit_db:g} dB predicted")
    for x in range(len(outputs) - 1):
        errors.axvline(x + 0.5, color="lightgrey", linewidth=0.5)
    errors.set_xticks(range(len(outputs)), [name.replace("_", " ") for name in outputs])
    errors.set(xlim=(-0.5, len(outputs) - 0.5), ylabel="error relative to float32, dB", title="lower is better")
    what = f"{rows[0].get('score_label', 'normalized score')}, 95 % intervals" if scored else "regret ± standard error"
    costs.set(xlabel="file size, % of float32", ylabel=what, title="further left is smaller")
    costs.set_xlim(left=0)
    for axes in (errors, costs):
        axes.title.set_fontsize(9)
        axes.grid(axis="y", color="lightgrey", linewidth=0.5)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    save_figure(figure, path, force=True)  # the command has looked
    return ""
