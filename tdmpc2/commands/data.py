"""Look at offline data, check it, convert between its forms, and make it of what a run has played.

tdmpc2 data inspect data/mt30
tdmpc2 data verify data/mt30
tdmpc2 data convert data/a data/b data/merged tasks=walker-walk,walker-run dtype=float16
tdmpc2 data from-run logs/walker-walk/1/default data/played
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmpc2.commands.options import Option
from tdmpc2.commands.plain import Verb, read_verb
from tdmpc2.support.cli import one_line_errors
from tdmpc2.support.text import escaped

if TYPE_CHECKING:
    from tdmpc2.data.store.store import EpisodeStore

_DIRECTORY = Option("dir", "an episode store or a directory of chunk files", required=True, bare=True)
_TASK = Option("task", "task set of chunk files; by default what collect.json says, or mt30")
VERBS = {
    "inspect": Verb(
        "what the data holds: sizes, returns per task, ranges, wrong values",
        (
            _DIRECTORY,
            _TASK,
            Option("quick", "read a sample of at most 2,000 episodes", False, bool),
            Option("figure", "PNG to draw histograms of the returns into; by default none", kind=Path),
            Option("json", "print one JSON object", False, bool),
        ),
    ),
    "verify": Verb("checksums of all data, and that every used value is finite", (_DIRECTORY, _TASK)),
    "from-run": Verb(
        "the replay buffer that a run which learns online has saved, as a store",
        (
            Option("run", "directory of the run", kind=Path, required=True, bare=True),
            Option("out", "directory to make; it must not exist", kind=Path, required=True, bare=True),
            Option("dtype", "of observations and actions", "float32", choices=("float32", "float16")),
        ),
    ),
    "convert": Verb(
        "merge, thin out or compact data into a store, or write chunk files",
        (
            Option("source", "episode stores and directories of chunk files", many=True, required=True, bare=True),
            Option("out", "directory to make; it must not exist", kind=Path, required=True, bare=True),
            _TASK,
            Option("dtype", "of observations and actions; by default as it is", choices=("float32", "float16")),
            Option("tasks", "only these tasks; their ids stay", (), many=True),
            Option("max_episodes_per_task", "that many of each, evenly spaced", kind=int, least=1),
            Option("to", "form to write", "store", choices=("store", "chunks")),
            Option("episodes_per_file", "with to=chunks", kind=int, least=1),
        ),
    ),
}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with code 1 if ``verify`` finds damage."""
    verb, values = read_verb("data", __doc__, argv, VERBS)
    {"inspect": _inspect, "verify": _verify, "from-run": _from_run, "convert": _convert}[verb](values)


def _inspect(values: dict[str, Any]) -> None:
    from tdmpc2.data.tools.overview import print_overview

    figure = values["figure"]
    if figure is not None and figure.suffix.lower() != ".png":
        raise ValueError(f"figure={figure} must end in .png")
    print_overview(values["dir"], values["task"], quick=values["quick"], as_json=values["json"], figure=figure)


def _verify(values: dict[str, Any]) -> None:
    from tdmpc2.data.tools.verify import verify

    result = verify(values["dir"], values["task"])
    for problem in result.problems:
        print(escaped(problem))
    amount = f"{result.files:,} files, {result.episodes:,} episodes"
    count = len(result.problems)
    print(f"{amount}: {count:,} problem{'s' * (count > 1)}" if count else f"{amount}: good")
    sys.exit(1 if result.problems else 0)


def _convert(values: dict[str, Any]) -> None:
    from tdmpc2.data.tools.convert import to_chunks, to_store

    sources, out = values["source"], values["out"]
    if values["to"] == "chunks":
        if len(sources) > 1 or any(values[key] for key in ("tasks", "max_episodes_per_task", "dtype", "task")):
            raise ValueError(
                "to=chunks writes one whole episode store, in float32: first make the store that is to be written "
                "(convert SRC ... STORE with tasks=... and the like), then convert STORE OUT to=chunks"
            )
        paths = to_chunks(sources[0], out, values["episodes_per_file"])
        print(f"{out}: {len(paths):,} chunk files")
        return
    if values["episodes_per_file"] is not None:
        raise ValueError("episodes_per_file is for to=chunks: a store is one file whatever its size")
    store = to_store(
        sources,
        out,
        task=values["task"],
        dtype=values["dtype"],
        tasks=values["tasks"],
        max_per_task=values["max_episodes_per_task"],
    )
    _print_store(out, store)


def _from_run(values: dict[str, Any]) -> None:
    from tdmpc2.training.saved_replay import replay_to_store

    _print_store(values["out"], replay_to_store(values["run"], values["out"], values["dtype"]))


def _print_store(out: Path, store: EpisodeStore) -> None:
    size = store.meta.files["rows.npy"].bytes
    print(f"{out}: episode store, {store.meta.dtype}, {store.meta.episodes:,} episodes, {size:,} bytes")
