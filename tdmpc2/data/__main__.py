"""Looking at offline data, checking it, and converting between its forms.

python -m tdmpc2.data inspect DIR
python -m tdmpc2.data verify DIR
python -m tdmpc2.data convert SRC [SRC ...] OUT
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tdmpc2.commands.cli import one_line_errors
from tdmpc2.data.rows import DTYPES
from tdmpc2.data.source import CHUNKS, STORE, find_form, kind_of, naming_the_task_set, open_source
from tdmpc2.data.store.export import export_chunks
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.tools.audit import SAMPLE, audit, describe
from tdmpc2.data.tools.figures import return_histograms
from tdmpc2.data.tools.verify import verify
from tdmpc2.support.figures import figure_class
from tdmpc2.tasks import nearest

_PLACES = {"cuda": "GPU memory", "cpu": "RAM", "disk": "disk"}


# -- inspect ----------------------------------------------------------------------------------------------------------


def _inspect(args: argparse.Namespace) -> int:
    figure = None if args.no_figure else _figure_path(args)
    source = open_source(args.dir, args.task)
    measured = audit(source, SAMPLE if args.quick else None)
    facts = describe(source, measured)
    if args.json:
        print(json.dumps({**facts, "figure": figure and str(figure)}, indent=1, allow_nan=False))
    else:
        print("\n\n".join("\n".join(part) for part in (_header(facts), _table(facts), _findings(facts))))
    if figure:
        returns = {source.specs[index].name: values for index, values in measured.returns.items()}
        return_histograms(figure, returns, _title(facts))
        print(f"\nhistograms of the returns: {figure}", file=sys.stderr if args.json else sys.stdout)
    return 0


def _figure_path(args: argparse.Namespace) -> Path | None:
    path = Path(args.figure or f"{Path(args.dir).expanduser().resolve().name or 'data'}_returns.png").expanduser()
    if path.suffix.lower() != ".png":
        raise ValueError(f"--figure {args.figure} must end in .png")
    try:
        figure_class()
    except ModuleNotFoundError as error:
        print(f"No histograms: {error}", file=sys.stderr)
        return None
    return path


def _title(facts: dict[str, Any]) -> str:
    sample = f", {facts['audited_episodes']:,} of them drawn" * (facts["audited_episodes"] < facts["episodes"])
    return f"{facts['task']}: returns of {facts['episodes']:,} episodes{sample}"


def _header(facts: dict[str, Any]) -> list[str]:
    memory = facts["memory"]
    lines = {
        "directory": facts["path"],
        "form": facts["form"],
        "task set": f"{facts['task']}, {len(facts['tasks'])} tasks",
        "dtype": facts["dtype"],
        "episodes": f"{facts['episodes']:,}",
        "rows": f"{facts['rows']:,}",
        "episode length": f"{facts['episode_length']:,} steps",
        "observation, action": f"{facts['obs_dim']}, {facts['action_dim']} (padded)",
        "bytes on disk": f"{facts['bytes']:,}",
        "bytes free there": f"{facts['bytes_free']:,}",
    }
    for file in facts["files"]:
        count = "" if file["episodes"] is None else f", {file['episodes']:,} episodes"
        lines[f"  {file['name']}"] = f"{file['bytes']:,} bytes{count}"
    if facts["store"]:
        lines["store made of them"] = f"{facts['store']}, to be inspected by this name"
    for dtype in ("float32", "float16"):
        fits = [
            f"{'fits' if place in memory[dtype]['fits'] else 'does not fit'} into the {_PLACES[place]} free now "
            f"({free / 1e9:.1f} GB)"
            for place, free in memory["free"].items()
        ]
        lines[f"in memory, {dtype}"] = f"{memory[dtype]['bytes']:,} bytes: {'; '.join(fits)}"
    stored = memory[facts["dtype"]]["auto"]
    importing = " (chunk files are imported into a store for that)" * (stored == "disk" and facts["form"] == CHUNKS)
    lines["data_device=auto"] = (
        f"{_PLACES[stored]}{importing}. The rule: GPU memory if the episodes fit and leave room for training, "
        "else RAM if they do, else read from disk as needed"
    )
    return [f"{label:22}{text}" for label, text in lines.items()]


def _table(facts: dict[str, Any]) -> list[str]:
    marks = ("mean", "min", "p10", "median", "p90", "max")
    width = max(len(task["name"]) for task in facts["tasks"])
    head = f"{'id':>3}  {'task':{width}} {'episodes':>9}" + "".join(
        f"{mark:>9}" for mark in ("mean", "min", "10 %", "median", "90 %", "max")
    )
    lines = ["returns"]
    if facts["audited_episodes"] < facts["episodes"]:
        lines = [f"returns of a sample of {facts['audited_episodes']:,} evenly spaced episodes"]
    lines.append(head)
    for task in facts["tasks"]:
        values = task["return"]
        cells = "".join(f"{values[mark]:9.1f}" if values else f"{'-':>9}" for mark in marks)
        lines.append(f"{task['id']:3}  {task['name']:{width}} {task['episodes']:9,}{cells}")
    return lines


def _findings(facts: dict[str, Any]) -> list[str]:
    audited = facts["audited_episodes"]
    sample = ", a sample" * (audited < facts["episodes"])
    lines = [f"values of {audited:,} episodes{sample}"]
    for name, bounds in facts["ranges"].items():
        text = f"{bounds[0]:.6g} to {bounds[1]:.6g}" if bounds else "no finite value"
        lines.append(f"{'range of ' + name:26}{text}")
    for kind, finding in facts["findings"].items():
        text = "none"
        if finding["values"]:
            text = f"{finding['values']:,} in {finding['episodes']:,} episodes; first: {finding['first']}"
        lines.append(f"{kind:26}{text}")
    lines.append(
        f"{'row 0 not NaN':26}{facts['filler_not_nan']:,} episodes; harmless, its action and reward are not used"
    )
    return lines


# -- verify -----------------------------------------------------------------------------------------------------------


def _verify(args: argparse.Namespace) -> int:
    result = verify(args.dir, args.task)
    for problem in result.problems:
        print(problem)
    amount = f"{result.files:,} files, {result.episodes:,} episodes"
    count = len(result.problems)
    print(f"{amount}: {count:,} problem{'s' * (count > 1)}" if count else f"{amount}: good")
    return 1 if result.problems else 0


# -- convert ----------------------------------------------------------------------------------------------------------


def _convert(args: argparse.Namespace) -> int:
    if args.to == "chunks":
        return _convert_to_chunks(args)
    if args.episodes_per_file is not None:
        raise ValueError("--episodes-per-file is for --to chunks: a store is one file whatever its size")
    kinds = [kind_of(source, args.task) for source in args.source]
    task, specs, dtype = kinds[0]
    for source, kind in zip(args.source, kinds, strict=True):
        if kind.specs != specs:
            raise ValueError(f"{args.source[0]} is of task={task}, {source} of {kind.task}: merge data of one task set")
    same = all(kind.dtype == dtype for kind in kinds)
    names = [spec.name for spec in specs]
    wanted = [name.strip() for name in args.tasks.split(",")] if args.tasks else []
    for name in wanted:
        if name not in names:
            raise ValueError(f"--tasks: '{name}' is not a task of {task}.{nearest(name, names)}")
    with naming_the_task_set(args.source[0], args.task):
        store = import_episodes(
            args.source,
            args.out,
            task,
            specs,
            dtype=args.dtype or (dtype if same else "float32"),
            task_ids=sorted({names.index(name) for name in wanted}) or None,
            max_per_task=args.max_episodes_per_task,
        )
    size = store.meta.files["rows.npy"].bytes
    print(f"{args.out}: episode store, {store.meta.dtype}, {store.meta.episodes:,} episodes, {size:,} bytes")
    return 0


def _convert_to_chunks(args: argparse.Namespace) -> int:
    first, *others = args.source
    if others or find_form(first)[1] != STORE or args.tasks or args.max_episodes_per_task or args.dtype or args.task:
        raise ValueError(
            "--to chunks writes one whole episode store, in float32: first make the store that is to be written "
            "(convert SRC ... STORE with --tasks and the like), then convert STORE OUT --to chunks"
        )
    options = {} if args.episodes_per_file is None else {"episodes_per_file": args.episodes_per_file}
    paths = export_chunks(EpisodeStore.open(find_form(first)[0]), args.out, **options)
    print(f"{args.out}: {len(paths):,} chunk files")
    return 0


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    """Run the command line; exits with 0, with 1 if ``verify`` finds damage, with 2 on an error of use."""
    parser = argparse.ArgumentParser(
        prog="python -m tdmpc2.data", description="Look at offline data, check it, convert it."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="what the data holds: sizes, returns per task, ranges, wrong values")
    check = commands.add_parser("verify", help="checksums of all data, and that every used value is finite")
    convert = commands.add_parser("convert", help="merge, thin out or compact data into a store, or write chunk files")
    for command in (inspect, check):
        command.add_argument("dir", help="an episode store or a directory of chunk files")
    for command in (inspect, check, convert):
        command.add_argument("--task", help="task set of chunk files (default: what collect.json says, or mt30)")
    inspect.add_argument("--quick", action="store_true", help=f"read a sample of at most {SAMPLE:,} episodes")
    inspect.add_argument("--figure", metavar="FILE.png", help="histograms (default: <DIR's name>_returns.png here)")
    inspect.add_argument("--no-figure", action="store_true", help="no histograms")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    convert.add_argument("source", nargs="+", help="episode stores and directories of chunk files")
    convert.add_argument("out", help="directory to make; it must not exist")
    convert.add_argument("--dtype", choices=DTYPES, help="of observations and actions (default: as it is)")
    convert.add_argument("--tasks", metavar="A,B", help="only these tasks; their ids stay")
    convert.add_argument(
        "--max-episodes-per-task", type=positive_number, metavar="N", help="that many of each, evenly spaced"
    )
    convert.add_argument("--to", choices=("store", "chunks"), default="store", help="form to write (default: store)")
    convert.add_argument("--episodes-per-file", type=positive_number, metavar="N", help="with --to chunks")
    inspect.set_defaults(run=_inspect)
    check.set_defaults(run=_verify)
    convert.set_defaults(run=_convert)
    args = parser.parse_args(argv)
    sys.exit(args.run(args))


def positive_number(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


if __name__ == "__main__":
    main()
