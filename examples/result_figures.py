"""Draw figures of docs/evaluation.md, results.md and quantization.md from the numbers in benchmarks/RESULTS.md.

python examples/result_figures.py assets
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tdmpc2.support.figures import figure_class, save_figure

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "RESULTS.md"
Table = list[dict[str, str]]

STUDENT, SCORES = "Published student (fp16 file), all of MT30", "Scores of the recipes, four tasks x 3 episodes"
BODY = "One body, five tasks"
FILES = ("published_student.png", "walker.png", "quantization.png")
RECIPES = "Recipes: size, error, regret and time"
OUTPUTS = {"latent": "o", "reward": "s", "value": "D", "policy": "^"}
_LOWEST, _HIGHEST = -78, 5  # dB that are drawn; errors beyond are written as numbers
_EXACT = "exact"


def read_table(text: str, section: str, column: str) -> Table:
    """Read a table of a Markdown text: a dict of cells by heading for each row.

    Args:
        text: the whole of it.
        section: heading that the table stands under.
        column: heading of its first column.

    Raises:
        ValueError: there is no such table.
    """
    _, found, below = text.partition(f"\n## {section}\n")
    lines = below.split("\n## ")[0].splitlines()
    start = next((i for i, line in enumerate(lines) if _cells(line)[:1] == [column]), None)
    if not found or start is None:
        raise ValueError(f"{RESULTS} has no table with the column '{column}' under '{section}'")
    rows: Table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(_cells(lines[start]), _cells(line), strict=True)))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []


def numbers(cell: str) -> list[float]:
    """Read the numbers of a cell, such as a score and the ends of its interval."""
    return [float(number) for number in re.findall(r"[-+]?\d+(?:\.\d+)?", cell)]


def draw_student(path: Path, table: Table) -> None:
    """Draw the return of every task: bars for the two precisions here, points for another implementation's episodes."""
    names = [row["task"] for row in table]
    figure = figure_class()(figsize=(7, 0.27 * len(names) + 1.4), layout="constrained")
    axes = figure.subplots()
    for shift, precision in ((-0.2, "bf16"), (0.2, "int8")):
        returns = [numbers(row[precision])[0] for row in table]
        label = f"{precision} here: {sum(returns) / len(returns) / 10:.1f}"
        axes.barh([i + shift for i in range(len(names))], returns, 0.4, label=label)
    points = [(value, i) for i, row in enumerate(table) for value in numbers(row["recorded"])]
    mean = sum(value for value, _ in points) / len(points) / 10
    label = f"another implementation, three episodes: {mean:.1f}"
    axes.plot(*zip(*points, strict=True), "|", color="black", markersize=7, label=label)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="episode return", xlim=(-12, 1012), ylim=(len(names) - 0.4, -0.6))
    axes.grid(axis="x", color="lightgrey", linewidth=0.5)
    axes.set_axisbelow(True)
    title = "normalized score; bars are one episode a task, so that no interval can be given"
    figure.legend(title=title, loc="outside upper center", ncols=3, fontsize=8, title_fontsize=8)
    save_figure(figure, path, force=True)


def draw_body(path: Path, episodes: Table, scores: Table) -> None:
    """Draw the episodes of tasks that share a body while one model learned them, and what it plays in the end."""
    figure = figure_class()(figsize=(10, 2.6), layout="constrained")
    for column, (axes, row) in enumerate(zip(figure.subplots(1, len(scores), sharey=True), scores, strict=True)):
        points = [(numbers(e["agent steps"].replace(",", ""))[0] / 1000, numbers(e[row["task"]])[0]) for e in episodes]
        axes.plot(*zip(*points, strict=True), color="C0", marker=".", markersize=3, linewidth=1, label="while learning")
        end = points[-1][0]
        (planned, *_), (single, *_) = numbers(row["planned, 128 x 4"]), numbers(row["single-task TD-MPC2, 5M"])
        axes.plot(end, planned, "*", color="C0", markersize=11, label="in the end, noise-free")
        axes.plot(end, single, "D", color="C1", markersize=5, label="single-task TD-MPC2 (5M), as many steps each")
        axes.set(title=row["task"], xlabel="1,000 agent steps in all", ylim=(0, 1020), xlim=(0, end * 1.06))
        axes.title.set_fontsize(9)
        axes.grid(color="lightgrey", linewidth=0.4)
        if not column:
            axes.set_ylabel("return")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    save_figure(figure, path, force=True)


def draw_recipes(path: Path, recipes: Table, scores: Table) -> None:
    """Draw size, errors and score of every file, side by side."""
    score_of = {row["file"].partition(" (")[0]: numbers(row["score"]) for row in scores}
    sizes = {row["file"]: row for row in recipes if row["of fp32"]}
    names = [*sizes, *(name for name in score_of if name not in sizes)]
    figure = figure_class()(figsize=(10, 0.42 * len(names) + 1.2), layout="constrained")
    size, error, score = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1.6, 1.2))
    for y, name in enumerate(names):
        if row := sizes.get(name):
            size.barh(y, numbers(row["of fp32"])[0], 0.6, color=f"C{y}")
            _draw_errors(error, y, row)
        else:
            for axes, place in ((size, 2), (error, _LOWEST + 1)):
                axes.text(place, y, "not measured", va="center", fontsize=8, color="grey")
        if name in score_of:
            mean, *ends = score_of[name]
            bars = [[mean - ends[0]], [ends[1] - mean]]
            score.errorbar(mean, y, xerr=bars, capsize=3, marker="o", linestyle="none", color=f"C{y}")
    for output, marker in OUTPUTS.items():
        error.plot([], [], marker, color="grey", label=output)
    error.legend(fontsize=8, loc="upper right")
    size.set_yticks(range(len(names)), names, fontsize=9)
    size.set(xlabel="file size, % of float32", ylim=(len(names) - 0.5, -0.5))
    error.set(xlabel="error relative to float32, dB", xlim=(_LOWEST, _HIGHEST + 25))
    score.set(xlabel="normalized score, 95 % intervals")
    for axes in (size, error, score):
        axes.grid(axis="x", color="lightgrey", linewidth=0.5)
        axes.set_axisbelow(True)
    save_figure(figure, path, force=True)


def _draw_errors(axes: Any, y: int, row: Mapping[str, str]) -> None:
    beyond, exact = [], []
    for output, marker in OUTPUTS.items():
        value = numbers(row[output])
        if value and value[0] <= _HIGHEST:
            axes.plot(value[0], y, marker, color=f"C{y}")
        elif value:
            beyond.append(f"{output} {value[0]:+.0f}")
        elif row[output] == _EXACT:
            exact.append(output)
    if beyond:
        axes.text(_HIGHEST + 1, y, f"{', '.join(beyond)} \N{RIGHTWARDS ARROW}", va="center", fontsize=8)
    if exact:
        axes.text(_LOWEST + 1, y, f"{', '.join(exact)}: exact", va="center", fontsize=8)


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    if len(argv) != 1:
        sys.exit("usage: python examples/result_figures.py DIRECTORY")
    text, out = RESULTS.read_text(encoding="utf-8"), Path(argv[0])
    try:
        draw_student(out / "published_student.png", read_table(text, STUDENT, "task"))
        draw_body(out / "walker.png", read_table(text, BODY, "agent steps"), read_table(text, BODY, "task"))
        draw_recipes(out / "quantization.png", read_table(text, RECIPES, "file"), read_table(text, SCORES, "file"))
    except (ValueError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(*(out / name for name in FILES), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
