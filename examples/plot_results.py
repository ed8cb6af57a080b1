"""Draw bars of the return per task of one or more evaluations.

python examples/plot_results.py assets/student.png logs/mt30/1/eval-student/results.json

Lines are 95 % intervals over episodes; where a task was played once there is none, and the figure says so.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tdmpc2.play.protocols import labels
from tdmpc2.studies.labels import wrapped
from tdmpc2.support.figures import figure_class, save_figure
from tdmpc2.support.files import read_json


def read_results(path: Path) -> dict[str, Any]:
    """Read the results of an evaluation.

    Raises:
        ValueError: there is no such file, or it is not one.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name results.json files, as evaluate.py leaves them in logs/")
    results = read_json(path)
    if not {"tasks", "normalized_score"} <= results.keys():
        raise ValueError(f"{path} holds no results of an evaluation")
    return results


def episodes_text(results: Sequence[Mapping[str, Any]]) -> str:
    """Say how many episodes of a task the bars stand for."""
    counts = sorted({task["episodes"] for result in results for task in result["tasks"]})
    if counts == [1]:
        return "one episode a task: no interval can be given"
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"means and 95 % intervals over {number} episodes a task"


def draw(target: Path, sources: Sequence[Path]) -> None:
    """Draw the tasks of the first file; the others' bars stand beside its own.

    Raises:
        ValueError: a file that cannot be used, or the disk refused.
        ModuleNotFoundError: matplotlib is not installed.
    """
    results = [read_results(source) for source in sources]
    names = [task["task"] for task in results[0]["tasks"]]
    directories = [str(source.parent) for source in sources]
    titles = labels([result.get("protocol", {}) for result in results], directories)
    height = 0.8 / len(results)
    size = (7, 0.2 * len(names) * max(1, len(results) ** 0.5) + 1.2 + 0.2 * len(results))
    figure = figure_class()(figsize=size, layout="constrained")
    axes = figure.subplots()
    for k, (title, result) in enumerate(zip(titles, results, strict=True)):
        tasks = {task["task"]: task for task in result["tasks"]}
        positions = [i for i, name in enumerate(names) if name in tasks]
        means = np.array([tasks[names[i]]["return"] for i in positions])
        ends = np.array([tasks[names[i]]["return_interval"] or [np.nan] * 2 for i in positions])
        score = result["normalized_score"]  # null for tasks on different scales
        label = wrapped(title if score is None else f"{title}: {score:.1f}", 70)
        bars = np.abs(ends.T - means)
        places = np.array(positions) + (k + 0.5) * height - 0.4
        axes.barh(places, means, height, xerr=bars, label=label, error_kw={"elinewidth": 0.8})
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="episode return", ylim=(len(names) - 0.4, -0.6))
    returns = [task["return"] for result in results for task in result["tasks"]]
    if min(returns) >= 0 and max(returns) > 100:
        axes.set_xlim(0, max(1000, *returns))  # the range of every dm_control task
    scale = results[0].get("score_label", "normalized score")
    figure.legend(title=f"{scale}\n{episodes_text(results)}", loc="outside upper center", fontsize=8, title_fontsize=8)
    save_figure(figure, target)
    print(target)


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    if len(argv) < 2:
        sys.exit("usage: python examples/plot_results.py FIGURE.png RESULTS.json [RESULTS.json ...]")
    try:
        draw(Path(argv[0]), [Path(source) for source in argv[1:]])
    except (ValueError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
