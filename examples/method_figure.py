"""Draw the method: a world model that imagines, a teacher, the planner and quantised weights.

python examples/method_figure.py assets/method.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

INK, GREY, PAPER, PANEL = "#1f2933", "#7b8794", "#ffffff", "#f3f5f7"
BLUE, GREEN, RED, VIOLET, ORANGE = "#2f6fb0", "#2f8f5b", "#b8473f", "#7a54a8", "#d9822b"
HEADS = (("R", GREEN), ("Q", RED), ("π", VIOLET))
Point = tuple[float, float]


def text(ax: Axes, at: Point, content: str, size: float = 9.5, **style: Any) -> None:
    """Write centred text; ``at`` is in the figure's units, 100 across."""
    ax.text(*at, content, **{"ha": "center", "va": "center", "fontsize": size, "color": INK, **style})


def box(ax: Axes, corner: Point, extent: Point, label: str, colour: str = BLUE, **style: Any) -> None:
    """Draw a filled box with a white label."""
    ax.add_patch(FancyBboxPatch(corner, *extent, "round,pad=0,rounding_size=0.8", facecolor=colour, edgecolor="none"))
    centre = (corner[0] + extent[0] / 2, corner[1] + extent[1] / 2)
    text(ax, centre, label, **{"color": "white", "weight": "bold", **style})


def panel(ax: Axes, corner: Point, size: Point, title: str, note: str) -> None:
    """Draw the background of one part of the figure, with its title and a line that explains it."""
    style = "round,pad=0,rounding_size=1.4"
    ax.add_patch(FancyBboxPatch(corner, *size, style, facecolor=PANEL, edgecolor="#d3d9df", linewidth=1))
    left, top = corner[0] + 1.8, corner[1] + size[1]
    text(ax, (left, top - 3), title, 11, weight="bold", ha="left")
    text(ax, (left, top - 5.2), note, 8.8, color="#52606d", ha="left", va="top")


def arrow(ax: Axes, start: Point, end: Point, colour: str = INK, width: float = 1.4, bend: float = 0) -> None:
    """Draw an arrow, curved if ``bend`` is not 0."""
    style = "-|>,head_length=4,head_width=2.4" if width < 3 else "-|>,head_length=7,head_width=5"
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle=style, color=colour, linewidth=width, connectionstyle=f"arc3,rad={bend}",
            shrinkA=0, shrinkB=0,
        )
    )  # fmt: skip


def latent(ax: Axes, at: Point, label: str, colour: str = BLUE, radius: float = 2.6) -> None:
    """Draw a latent."""
    ax.add_patch(Circle(at, radius, facecolor=PAPER, edgecolor=colour, linewidth=1.8, zorder=3))
    text(ax, at, label, 10, zorder=4)


def world_model(ax: Axes) -> None:
    """Draw the student: one observation is encoded, three steps are imagined, every latent has its heads."""
    panel(
        ax,
        (1, 35),
        (60.5, 31),
        "World model: the 1M student",
        "Imagines rewards and values of actions in latent space.",
    )
    y, xs = 44.5, (25.6, 35.8, 46.0, 56.2)
    box(ax, (2.8, y - 3), (6.6, 6), "$o_0$", GREY, size=11)
    box(ax, (12.2, y - 3), (9.2, 6), "encoder")
    arrow(ax, (9.4, y), (12.0, y))
    arrow(ax, (21.4, y), (xs[0] - 2.7, y))
    for t, x in enumerate(xs):
        latent(ax, (x, y), f"$z_{t}$")
        for k, (name, colour) in enumerate(HEADS):
            box(ax, (x - 4.2 + 2.9 * k, 51.6), (2.6, 3.6), name, colour, size=8.8)
        arrow(ax, (x, y + 2.7), (x, 51.3), GREY, 1.1)
        if t + 1 < len(xs):
            arrow(ax, (x + 2.7, y), (xs[t + 1] - 2.7, y), BLUE, 2)
            middle = (x + xs[t + 1]) / 2
            text(ax, (middle, 38.2), f"$a_{t}$", 10)
            arrow(ax, (middle, 39.8), (middle, y - 0.3), GREY, 1.1)
    text(ax, (12.5, 53.4), "R reward, Q value,\nπ policy prior", 8.8, color="#52606d")
    text(ax, (21.5, 38.2), "dynamics:", 8.8, color=BLUE)


def teacher(ax: Axes) -> None:
    """Draw the teacher and what the student learns from it."""
    panel(ax, (71, 35), (28, 31), "Teacher, 317M", "Frozen; sees the same data.")
    y = 45.5
    arrow(ax, (92.4, y), (89.5, y))
    box(ax, (92.4, y - 3), (5.4, 6), "$o_t$", GREY, size=11)
    box(ax, (84, y - 4.2), (5.6, 8.4), "", "#1d4f84")
    text(ax, (86.8, y), "encoder", 9, color="white", weight="bold", rotation=90)
    arrow(ax, (84, y), (81.4, y))
    latent(ax, (77.8, y), "$z_T$", "#1d4f84", 3.4)
    arrow(ax, (77.8, y + 3.7), (77.8, 51.0), GREY, 1.1)
    for k, (name, colour) in enumerate(HEADS):
        box(ax, (72.2 + 3.9 * k, 51.3), (3.5, 4.4), name, colour, size=10.5)
    arrow(ax, (70.8, 53.4), (61.9, 53.4), ORANGE, 4.5)
    text(ax, (66.3, 57.2), "distil", 11, color=ORANGE, weight="bold")
    text(ax, (85, 38.2), "rewards (default), values,\npolicy or latents are taught", 8.8, color=ORANGE)


def planner(ax: Axes) -> None:
    """Draw MPPI: a fan of imagined sequences, and the loop that narrows it."""
    panel(
        ax,
        (1, 1),
        (60.5, 32),
        "Plan (MPPI), every step",
        "Six rounds of imagining narrow the choice down to one action.",
    )
    rng = np.random.default_rng(3)
    origin, steps = np.array([5, 13]), np.linspace(0, 15.5, 4)
    paths = np.cumsum(np.concatenate([np.zeros((34, 1)), rng.normal(0, 2.6, (34, 3))], 1), 1)
    score = np.abs(paths - np.array([0, 1.2, 2.4, 3.2])).sum(1)
    for rank, k in enumerate(np.argsort(-score)):
        elite = rank >= len(paths) - 5
        line = (
            {"color": ORANGE, "alpha": 0.95, "linewidth": 1.6}
            if elite
            else {"color": GREY, "alpha": 0.4, "linewidth": 0.9}
        )
        ax.plot(origin[0] + steps, np.clip(origin[1] + paths[k], 3.4, 23.2), **line, zorder=1)
    latent(ax, (5, 13), "$z_0$", radius=2.3)
    labels = (
        ((24, 16.2), "1  sample 512 action\nsequences, 24 from π"),
        ((43.5, 16.2), "2  imagine 3 steps\nof each"),
        ((43.5, 7.6), "3  value: rewards,\nthen Q at the end"),
        ((24, 7.6), "4  refit mean and\nspread to the 64 best"),
    )
    for corner, label in labels:
        box(ax, corner, (17.2, 6.4), label, "#4a5568", size=8.2, weight="normal")
    arrow(ax, (41, 19.3), (43.4, 19.3))
    arrow(ax, (52, 16.2), (52, 13.9))
    arrow(ax, (43.5, 10.7), (41.1, 10.7))
    arrow(ax, (32.5, 13.8), (32.5, 16.1), ORANGE, 2)
    text(ax, (37.3, 15.0), "6 times", 8.8, color=ORANGE, weight="bold")
    arrow(ax, (32.5, 7.6), (32.5, 4.6))
    text(ax, (42.5, 3.4), "first action of one of the best → environment", 8.8)


def quantised(ax: Axes) -> None:
    """Draw a weight matrix as int8 with one scale for each row."""
    panel(ax, (71, 1), (28, 32), "Quantised student", "int8 weights, a scale per channel:\na quarter of the bytes")
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(5, 5)) * np.array([1, 0.4, 0.8, 0.25, 0.6])[:, None]
    scales = np.abs(weights).max(1, keepdims=True)
    side, top = 1.85, 18.2
    grids = ((72.6, weights, "float $W$"), (84.2, scales, "scale"), (88.3, weights / scales, "int8"))
    for left, values, label in grids:
        largest = np.abs(values).max()
        for (row, column), value in np.ndenumerate(values):
            colour = plt.get_cmap("RdBu_r" if label != "scale" else "Oranges")(0.5 + 0.45 * value / largest)
            ax.add_patch(
                plt.Rectangle((left + side * column, top - side * (row + 1)), side, side, color=colour, linewidth=0)
            )
        text(ax, (left + side * values.shape[1] / 2, top - 5 * side - 1.9), label, 8.8)
    text(ax, (83.05, top - 2.5 * side), "≈", 12)
    text(ax, (87.2, top - 2.5 * side), "·", 15)
    text(ax, (85, 3.6), "or fp16, bf16, mixed files", 8.8)


def main(target: str) -> None:
    """Draw the figure and write it."""
    figure = plt.figure(figsize=(8, 5.5), facecolor=PAPER)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 100), ylim=(-0.4, 68.35))
    ax.set_axis_off()
    for part in (world_model, teacher, planner, quantised):
        part(ax)
    arrow(ax, (61.8, 38), (70.8, 30), BLUE, 4.5)
    text(ax, (66.2, 38.6), "quantise", 9, color=BLUE, weight="bold")
    arrow(ax, (70.8, 14), (61.9, 14), BLUE, 4.5)
    text(ax, (66.3, 18.2), "plans\nfaster", 9, color=BLUE, weight="bold")
    arrow(ax, (8, 34.8), (8, 33.3), BLUE, 2)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=200)
    print(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} FIGURE.png")
    main(sys.argv[1])
