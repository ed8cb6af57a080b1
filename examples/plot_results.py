"""Bars of the return per task of one or more evaluations.

python examples/plot_results.py assets/student.png logs/mt30/1/eval-student/results.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tdmpc2.support.cli import one_line_errors


@one_line_errors
def main(target: str, *sources: str) -> None:
    """Draw the tasks of the first file; the others' bars stand beside its own."""
    results = {
        Path(source).parent.name.removeprefix("eval-"): json.loads(Path(source).read_text()) for source in sources
    }
    names = [task["task"] for task in next(iter(results.values()))["tasks"]]
    height = 0.8 / len(results)
    figure, axes = plt.subplots(figsize=(7, 0.2 * len(names) * max(1, len(results) ** 0.5) + 1), layout="constrained")
    for k, (label, result) in enumerate(results.items()):
        tasks = {task["task"]: task for task in result["tasks"]}
        means = np.array([tasks[name]["return"] for name in names])
        limits = np.array([tasks[name]["return_interval"] or [tasks[name]["return"]] * 2 for name in names])
        axes.barh(
            np.arange(len(names)) + (k + 0.5) * height - 0.4,
            means,
            height,
            xerr=np.abs(limits.T - means),
            label=f"{label}: {result['normalized_score']:.1f}",
            error_kw={"elinewidth": 0.8},
        )
    axes.set(
        yticks=range(len(names)),
        yticklabels=names,
        xlim=(0, 1000),
        xlabel="episode return",
        ylim=(len(names) - 0.4, -0.6),
    )
    figure.legend(title="normalized score", loc="outside upper center", ncols=2)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
    print(target)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: python {sys.argv[0]} FIGURE.png RESULTS.json [RESULTS.json ...]")
    main(*sys.argv[1:])
