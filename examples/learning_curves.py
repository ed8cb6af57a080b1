"""Learn tasks by acting, each alone, and draw their curves beside public ones.

python examples/learning_curves.py walker-walk cup-catch [--steps 50000] [--out learning_curves] [KEY=VALUE ...]
python examples/learning_curves.py --so-far

A run for each task lies in --out, one is trained after the other, and the agent that each one ends with plays
--episodes episodes. Keys are those of train.py. Left in --out: ``learning_curves.md`` with the table,
``learning_curves.json``, and ``learning_curves.png``: evaluations, the episodes that were played while learning, and
what single-task TD-MPC2 of 5M parameters had after as many control steps, mean and range of its seeds. If it is
stopped, the same line goes on where it was. --so-far trains nothing and shows the runs as they are.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from tdmpc2 import load_agent, parse_cfg
from tdmpc2.checkpoints.files import file_sha256, load_file
from tdmpc2.config import PLAYING_KEYS
from tdmpc2.play.evaluation import evaluate
from tdmpc2.studies.sources import SHORT, curves
from tdmpc2.support.cli import check_free, one_line_errors
from tdmpc2.support.csv_files import read_csv
from tdmpc2.support.figures import figure_class, save_figure
from tdmpc2.support.files import read_json, write_text
from tdmpc2.support.intervals import format_interval, mean_interval
from tdmpc2.support.names import safe_name
from tdmpc2.support.tables import markdown_table
from tdmpc2.tracking.curves import Curve, read_curves, wall_seconds
from tdmpc2.training.online import train_online

TASKS = (
    "walker-walk", "cartpole-swingup", "cup-catch", "finger-spin", "pendulum-spin", "reacher-easy", "cheetah-run",
)  # fmt: skip
PUBLIC = SHORT / "single_task_curves.csv"
_REPEAT = 2  # control steps in an agent's step in DMControl, which the public curves are about


class Learned(NamedTuple):
    """A run, and how good its agent is."""

    task: str
    steps: int  # that the agent had trained when it played
    hours: float  # of training until then, without breaks
    returns: list[float]  # of its episodes, or only the mean of an evaluation while it learns
    public: list[float]  # returns of seeds of single-task TD-MPC2 after all steps; empty if unknown
    all_steps: int  # of the run
    curve: Curve | None  # evaluations
    random: float | None = None  # mean return of the episodes with random actions that the run began with

    def row(self) -> list[str]:
        """Format a row of the table."""
        mean, public = float(np.mean(self.returns)), float(np.mean(self.public or [math.nan]))
        seeds = f"{public:.1f} ({min(self.public):.0f} to {max(self.public):.0f})" if self.public else "-"
        return [
            self.task, f"{self.steps:,}", f"{self.hours:.1f}", str(len(self.returns)), f"{mean:.1f}",
            format_interval(mean_interval(self.returns)), "-" if self.random is None else f"{self.random:.1f}",
            seeds, f"{100 * mean / public:.0f} %" if self.public else "-",
        ]  # fmt: skip


HEADER = (
    "task", "agent steps", "hours", "episodes", "return", "95 % interval", "random actions",
    "TD-MPC2 (5M) in the end, its seeds", "share of it",
)  # fmt: skip


def learn(task: str, steps: int, episodes: int, out: Path, typed: Mapping[str, Any]) -> Learned:
    """Train a run to its end and play its agent; what was played once with a file is not played again.

    Raises:
        ValueError: see :func:`~tdmpc2.training.online.train_online`.
    """
    keys = {"model_size": 1, "mode": "online", "eval_freq": max(steps // 10, 1), "eval_episodes": 1, **typed}
    keys |= {"task": task, "steps": steps, "work_dir": str(out / safe_name(task))}
    cfg = parse_cfg(keys, f"the run of {task}")
    model = train_online(cfg, None)
    if (trained := load_file(model).step or 0) > steps:
        raise ValueError(f"{cfg.run_dir} was trained for {trained:,} steps: --steps {trained}, or another --out")
    playing = {key: value for key, value in typed.items() if key in PLAYING_KEYS}
    scores, known = cfg.run_dir / "returns.json", {"sha256": file_sha256(model), "episodes": episodes, "keys": playing}
    found = read_json(scores) if scores.exists() else {}
    if {key: found.get(key) for key in known} != known:
        agent = load_agent(model, task=task, **playing)
        result = evaluate(agent, agent.cfg.replace(eval_episodes=episodes))
        found = {**known, "steps": steps, "returns": list(result.tasks[0].returns)}
        write_text(scores, json.dumps(found) + "\n")
    return _learned(cfg.run_dir, task, steps, found["returns"])


def so_far(run_dir: Path, task: str) -> Learned | None:
    """Take the episodes of its finished agent, or else a run's latest evaluation; None if there is none."""
    scores, model = run_dir / "returns.json", run_dir / "model.pt"
    if scores.exists() and model.exists() and (found := read_json(scores)).get("sha256") == file_sha256(model):
        return _learned(run_dir, task, found["steps"], found["returns"])
    curve = read_curves(run_dir).get(f"eval/{task}")
    if curve is None:
        return None
    return _learned(run_dir, task, int(curve.step[-1]), [float(curve.value[-1])])


def _learned(run_dir: Path, task: str, steps: int, returns: list[float]) -> Learned:
    record = read_json(run_dir / "run.json")
    all_steps = record["steps"]
    from_states = record.get("obs", "state") == "state"  # as the public curves are
    public = curves("tdmpc2", _REPEAT * all_steps)({PUBLIC.name: PUBLIC}).get(task, []) if from_states else []
    played = read_csv(run_dir / "episodes.csv")[1]
    random = [float(row["return"]) for row in played if int(row["step"]) <= record.get("seed_steps", 0)]
    hours, curve = wall_seconds(run_dir, steps) / 3600, read_curves(run_dir).get(f"eval/{task}")
    return Learned(task, steps, hours, returns, public, all_steps, curve, float(np.mean(random)) if random else None)


def draw(path: Path, out: Path, runs: Sequence[Learned]) -> None:
    """Draw a panel for each task."""
    rows = math.ceil(len(runs) / 4)
    columns = math.ceil(len(runs) / rows)
    figure = figure_class()(figsize=(3 * columns, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for run, axes in zip(runs, panels, strict=False):  # zip takes one more of what comes first
        played = read_csv(out / safe_name(run.task) / "episodes.csv")[1]
        points = [(int(row["step"]), float(row["return"])) for row in played]
        axes.set(title=run.task, xlabel="agent steps", ylabel="return")
        if not points:
            continue
        axes.plot(*zip(*points, strict=True), ".", color="C0", alpha=0.3, markersize=3, label="episodes while learning")
        if run.curve is not None:
            axes.plot(run.curve.step, run.curve.value, color="C0", marker="o", markersize=3, label="evaluations")
        if run.public:
            mean, low, high = float(np.mean(run.public)), min(run.public), max(run.public)
            axes.errorbar(
                [run.all_steps], [mean], [[mean - low], [high - mean]], color="C1", marker="D", markersize=4, capsize=3,
                label="single-task TD-MPC2 (5M)",
            )  # fmt: skip
        axes.set_ylim(0, None)
    for axes in list(panels):
        axes.set_visible(False)
    with_legend = max(figure.axes, key=lambda axes: len(axes.get_legend_handles_labels()[0]))
    figure.legend(
        *with_legend.get_legend_handles_labels(), loc="outside lower center", ncols=min(columns, 3), fontsize=8
    )
    save_figure(figure, path)


def report(out: Path, runs: Sequence[Learned]) -> str:
    """Write table, numbers and figure; gives the table."""
    text = markdown_table(list(HEADER), [run.row() for run in runs])
    write_text(out / "learning_curves.md", text + "\n")
    content = [{key: value for key, value in run._asdict().items() if key != "curve"} for run in runs]
    write_text(out / "learning_curves.json", json.dumps(content, indent=1) + "\n")
    draw(out / "learning_curves.png", out, runs)
    return text


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words", nargs="*", metavar="TASK or KEY=VALUE", help="tasks (default: seven), keys of train.py"
    )
    parser.add_argument("--steps", type=int, default=50_000, help="agent steps of each run (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=10, help="that each agent plays (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("learning_curves"), help="(default: %(default)s)")
    parser.add_argument("--so-far", action="store_true", help="train nothing")
    args = parser.parse_intermixed_args(argv)
    typed = OmegaConf.to_container(OmegaConf.from_dotlist([word for word in args.words if "=" in word]))
    check_free(typed, {"task": "the tasks", "steps": "--steps", "work_dir": "--out", "dry_run": "train.py"})  # type: ignore[arg-type]
    tasks = [word for word in args.words if "=" not in word] or list(TASKS)
    if args.so_far:
        found = [so_far(args.out / safe_name(task), task) for task in tasks]
        runs = [run for run in found if run is not None]
        if not runs:
            raise ValueError(f"{args.out} holds no run of {', '.join(tasks)} that was evaluated: leave out --so-far")
        print(report(args.out, runs))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    runs = []
    for task in tasks:
        runs.append(learn(task, args.steps, args.episodes, args.out, typed))  # type: ignore[arg-type]
        print(report(args.out, runs), flush=True)


if __name__ == "__main__":
    main()
