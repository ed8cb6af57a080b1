"""Fine-tune a model of many tasks to one, and compare: before, after, and a run from scratch of the same length.

python examples/fine_tuning.py CHECKPOINT [--task walker-walk] [--steps 10000] [--seeds 1,2,3] [KEY=VALUE ...]

For each seed the file is fine-tuned by acting for so many agent steps, and a model of the same sizes learns the task
alone from nothing for as many. All are evaluated on the same episodes with the same planner. Left in --out (default:
fine_tuning): the runs, ``fine_tuning.md`` with the table, ``fine_tuning.json`` with every return, and
``fine_tuning.png`` with the learning curves. Keys are those of train.py, for both kinds of runs. If it is stopped, the
same line goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from tdmpc2 import load_agent, parse_cfg
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import PLANNER_KEYS, PLAYING_KEYS, WIDTHS, Config
from tdmpc2.play.evaluation import evaluate
from tdmpc2.studies.curves import mean_curve
from tdmpc2.support.cli import check_free, one_line_errors
from tdmpc2.support.figures import figure_class, save_figure
from tdmpc2.support.files import write_text
from tdmpc2.support.intervals import Interval, difference_interval, format_interval, mean_interval
from tdmpc2.support.tables import markdown_table
from tdmpc2.tracking.curves import Curve, read_curves
from tdmpc2.training.online import train_online
from tdmpc2.training.tuning import keys_from_checkpoint

BEFORE, TUNED, SCRATCH = "before", "fine-tuned", "from scratch"
Returns = dict[str, list[list[float]]]  # name -> returns of each run


def configure(
    kind: str, checkpoint: Path, task: str, steps: int, seed: int, out: Path, typed: dict[str, Any]
) -> Config:
    """Describe the run of one kind and seed."""
    keys = {
        "task": task, "mode": "online", "steps": steps, "seed": seed, "eval_freq": max(steps // 10, 1),
        "work_dir": str(out / f"{kind.replace(' ', '_')}-{seed}"), **typed,
    }  # fmt: skip
    if kind == TUNED:
        keys["checkpoint"] = str(checkpoint)
        return parse_cfg(keys_from_checkpoint(keys, keys.keys()), "the fine-tuned run")
    own = load_agent(checkpoint, device="cpu", compile=False, quiet=True).cfg
    widths = {name: getattr(own, name) for name in WIDTHS if name != "task_dim"}
    of_a_file = ("freeze", "reset")  # mean nothing from scratch
    keys = {name: value for name, value in keys.items() if name not in of_a_file}
    return parse_cfg({"model_size": None, **widths, **keys}, "the run from scratch")


def returns_of(checkpoint: Path, task: str, episodes: int, playing: Mapping[str, Any]) -> list[float]:
    """Play the episodes that all are compared on."""
    agent = load_agent(checkpoint, task=task, **playing)
    result = evaluate(agent, agent.cfg.replace(eval_episodes=episodes))
    return list(result.tasks[0].returns)


def playing_keys(checkpoint: Path, task: str, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Say how all files are played: as the file that is fine-tuned says, but for what was typed."""
    chosen = {key: value for key, value in typed.items() if key in PLAYING_KEYS}
    own = load_agent(checkpoint, task=task, **{**chosen, "compile": False, "quiet": True}).cfg
    budget = {key: getattr(own, key) for key in (*PLANNER_KEYS, "mpc")}
    return {key: value for key, value in chosen.items() if key != "planner"} | budget


def rows_of(returns: Returns) -> list[dict[str, Any]]:
    """Summarise each kind: mean return, interval over runs or, of the one file before, over episodes."""
    tuned = [float(np.mean(run)) for run in returns[TUNED]]
    rows = []
    for name, runs in returns.items():
        means = [float(np.mean(run)) for run in runs]
        spread = means if len(means) > 1 else runs[0]
        gain: Interval | None = None
        if name != TUNED:
            other = means if len(means) > 1 or len(tuned) > 1 else runs[0]
            gain = difference_interval(tuned if len(tuned) > 1 else returns[TUNED][0], other)
        row = {"name": name, "runs": len(runs), "episodes": len(runs[0]), "mean": float(np.mean(means))}
        better = None if name == TUNED else float(np.mean(tuned) - np.mean(means))
        rows.append({**row, "interval": mean_interval(spread), "tuned_minus": better, "tuned_minus_interval": gain})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the rows as Markdown."""
    return markdown_table(
        ["", "runs", "episodes each", "return", "95 % interval", "fine-tuned is better by", "95 % interval"],
        [
            [
                row["name"],
                str(row["runs"]),
                str(row["episodes"]),
                f"{row['mean']:.1f}",
                format_interval(row["interval"]),
                "" if row["tuned_minus"] is None else f"{row['tuned_minus']:+.1f}",
                "" if row["tuned_minus"] is None else format_interval(row["tuned_minus_interval"]),
            ]
            for row in rows
        ],
    )


def draw(path: Path, task: str, before: float, curves: Mapping[str, Sequence[Curve]]) -> None:
    """Draw the returns of evaluations over steps, and a level line for the file as it was."""
    figure = figure_class()(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(before, color="grey", linestyle="--", linewidth=1, label=BEFORE)
    for index, (name, runs) in enumerate((name, runs) for name, runs in curves.items() if runs):
        band = mean_curve([(np.asarray(curve.step, float), curve.value) for curve in runs])
        axes.plot(band.x, band.mean, color=f"C{index}", marker=".", label=name)
        axes.fill_between(band.x, band.low, band.high, color=f"C{index}", alpha=0.15, linewidth=0)
    axes.set(xlabel="agent steps", ylabel=f"return of {task}")
    axes.legend(fontsize=8)
    save_figure(figure, path)


def compare(checkpoint: Path, task: str, steps: int, seeds: Sequence[int], episodes: int, out: Path, typed: Any) -> str:
    """Train, evaluate, and write table, returns and figure; gives the table.

    Raises:
        ValueError: the file is no model of many tasks, or see :func:`~tdmpc2.training.online.train_online`.
    """
    playing = playing_keys(checkpoint, task, typed)
    returns: Returns = {BEFORE: [returns_of(checkpoint, task, episodes, playing)], TUNED: [], SCRATCH: []}
    curves: dict[str, list[Curve]] = {TUNED: [], SCRATCH: []}
    for seed in seeds:
        for kind in (TUNED, SCRATCH):
            cfg = configure(kind, checkpoint, task, steps, seed, out, typed)
            model = train_online(cfg, None)
            if (trained := load_file(model).step or 0) > steps:
                raise ValueError(
                    f"{cfg.run_dir} was trained for {trained:,} steps: --steps {trained}, or another --out"
                )
            returns[kind].append(returns_of(model, task, episodes, playing))
            curves[kind] += [curve for name, curve in read_curves(cfg.run_dir).items() if name == f"eval/{task}"]
    rows = rows_of(returns)
    text = table(rows)
    about = f"{checkpoint.name}, {task}, {steps:,} agent steps, seeds {', '.join(map(str, seeds))}\n\n"
    write_text(out / "fine_tuning.md", about + text + "\n")
    content = {"task": task, "steps": steps, "seeds": list(seeds), "returns": returns, "rows": rows}
    write_text(out / "fine_tuning.json", json.dumps(content, indent=1) + "\n")
    draw(out / "fine_tuning.png", task, rows[0]["mean"], curves)
    return text


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a model of many tasks, in fp32, bf16 or fp16")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="keys of train.py")
    parser.add_argument("--task", default="walker-walk", help="what it is fine-tuned to (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10_000, help="agent steps of each run (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=_numbers, default=(1,), help="as 1,2,3: a run of each kind for each (default: 1)"
    )
    parser.add_argument("--episodes", type=int, default=10, help="that all are compared on (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("fine_tuning"), help="(default: %(default)s)")
    args = parser.parse_intermixed_args(argv)
    if strange := [word for word in args.keys if "=" not in word]:
        raise ValueError(f"{strange[0]} is no key of train.py: write KEY=VALUE")
    typed = OmegaConf.to_container(OmegaConf.from_dotlist(args.keys))
    options = {"task": "--task", "steps": "--steps", "seed": "--seeds", "work_dir": "--out", "dry_run": "train.py"}
    check_free(typed, options)  # type: ignore[arg-type]
    args.out.mkdir(parents=True, exist_ok=True)
    print(compare(args.checkpoint, args.task, args.steps, args.seeds, args.episodes, args.out, typed))


if __name__ == "__main__":
    main()
