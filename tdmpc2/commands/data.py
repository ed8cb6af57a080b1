"""Look at offline data, check it, convert between its forms, and make it of what a run has played.

tdmpc2 data inspect data/mt30
tdmpc2 data verify data/mt30
tdmpc2 data convert data/a data/b data/merged tasks=walker-walk,walker-run dtype=float16
tdmpc2 data from-run logs/walker-walk/1/default data/played
tdmpc2 data import mujoco/hopper/expert-v0 data/hopper form=minari
tdmpc2 data export data/mt30_store data/minari form=minari name=expert
tdmpc2 data view data/mine episode=3 video=episode.mp4
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
_EPISODE = "number of the episode, from 0"
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
            Option(
                "alone",
                "of a run that plays one task of a set: data of this task, without the padding",
                False,
                kind=bool,
            ),
            Option("task_set", "store them as part of mt30, mt80 or a set of your own; by default that of the run"),
        ),
    ),
    "convert": Verb(
        "merge, thin out or compact data into a store, or write chunk files",
        (
            Option("source", "episode stores and directories of chunk files", many=True, required=True, bare=True),
            Option("out", "directory to make; it must not exist", kind=Path, required=True, bare=True),
            _TASK,
            Option("dtype", "of observations and actions; by default as it is", choices=("float32", "float16")),
            Option(
                "tasks", "only these tasks, or those that a pattern such as mw-* matches; their ids stay", (), many=True
            ),
            Option("max_episodes_per_task", "that many of each, evenly spaced", kind=int, least=1),
            Option("to", "form to write", "store", choices=("store", "chunks")),
            Option("episodes_per_file", "with to=chunks", kind=int, least=1),
        ),
    ),
    "import": Verb(
        "data of other programs, as a store",
        (
            Option("source", "a data set of Minari (directory or id), or a file of MMBench", required=True, bare=True),
            Option("out", "directory to make; it must not exist", kind=Path, required=True, bare=True),
            Option("form", "what the source is", required=True, choices=("minari", "mmbench")),
            Option("task", "task of the episodes; by default what the source says"),
            Option("task_set", "store them as part of mt30, mt80 or a set of your own; by default alone"),
            Option("dtype", "of observations and actions", "float32", choices=("float32", "float16")),
        ),
    ),
    "export": Verb(
        "data for other programs",
        (
            _DIRECTORY,
            Option("out", "directory to make; it must not exist", kind=Path, required=True, bare=True),
            Option("form", "what to write", required=True, choices=("minari", "lerobot")),
            _TASK,
            Option("name", "of Minari's data sets, TASK/NAME-v0; by default episodes"),
            Option("storage", "of Minari's data sets; by default hdf5", choices=("hdf5", "arrow", "parquet")),
            Option("fps", "frames per second of LeRobot's times; by default 25", kind=float),
            Option("robot", "type of the robot, for LeRobot; by default unknown"),
        ),
    ),
    "view": Verb(
        "a figure of an episode, and a video of its actions played again",
        (
            _DIRECTORY,
            Option("episode", _EPISODE, 0, int, least=0),
            _TASK,
            Option("figure", "PNG to draw; by default episode_<number>.png", kind=Path),
            Option("video", "mp4 to write; by default none", kind=Path),
            Option("seed", "of the environment, where the data do not record it", kind=int, least=0),
        ),
    ),
}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with code 1 if ``verify`` finds damage."""
    verb, values = read_verb("data", __doc__, argv, VERBS)
    {
        "inspect": _inspect,
        "verify": _verify,
        "from-run": _from_run,
        "convert": _convert,
        "import": _import,
        "export": _export,
        "view": _view,
    }[verb](values)


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

    kind = {"alone": values["alone"], "task_set": values["task_set"]}
    _print_store(values["out"], replay_to_store(values["run"], values["out"], values["dtype"], **kind))


def _import(values: dict[str, Any]) -> None:
    from tdmpc2.data.exchange.foreign import Foreign, import_foreign
    from tdmpc2.data.exchange.minari_files import MinariData
    from tdmpc2.data.exchange.mmbench import Demonstrations, task_of

    source, task, task_set = values["source"], values["task"], values["task_set"]
    opened: Foreign
    if values["form"] == "minari":
        opened = data = MinariData.open(source)
        target = data.target(task, task_set)
    else:
        target = task_of(source, task, task_set)
        opened = Demonstrations.open(source, target)
    _print_store(values["out"], import_foreign(opened, target, values["out"], values["dtype"]))


def _export(values: dict[str, Any]) -> None:
    from tdmpc2.data.exchange.lerobot import export_lerobot
    from tdmpc2.data.exchange.minari_write import export_minari
    from tdmpc2.data.exchange.rows import OwnData
    from tdmpc2.data.store.selection import check_outside

    out, minari = values["out"], values["form"] == "minari"
    for name in ("fps", "robot") if minari else ("name", "storage"):
        if values[name] is not None:
            raise ValueError(f"{name}={values[name]} says nothing with form={values['form']}: leave it out")
    check_outside(out, Path(values["dir"]))
    data = OwnData.open(values["dir"], values["task"])
    if minari:
        ids = export_minari(data, out, values["name"] or "episodes", values["storage"] or "hdf5")
        print(f"{out}: data sets of Minari, read with MINARI_DATASETS_PATH={out}: {', '.join(ids)}")
    else:
        fps = 25.0 if values["fps"] is None else values["fps"]
        frames = export_lerobot(data, out, fps, values["robot"] or "unknown")
        print(f"{out}: LeRobotDataset v3.0, {len(data.index):,} episodes, {frames:,} frames")


def _view(values: dict[str, Any]) -> None:
    from tdmpc2.data.exchange.rows import OwnData
    from tdmpc2.data.exchange.view import draw_episode, play_again, recorded_seed
    from tdmpc2.envs.modules import import_module_of
    from tdmpc2.play.results import write_video

    number, video = values["episode"], values["video"]
    figure = values["figure"] or Path(f"episode_{number}.png")
    for path, ending in ((figure, ".png"), (video, ".mp4")):
        if path is not None and path.suffix.lower() != ending:
            raise ValueError(f"{path} must end in {ending}")
    if video is None and values["seed"] is not None:
        raise ValueError("seed is that of the environment of a video: add video=FILE.mp4")
    if video is not None and video.exists():
        raise ValueError(f"{video} exists: name another file, or move it away")
    if values["task"] is not None:
        import_module_of(values["task"])  # as the user says; data that name a module do not import it
    data = OwnData.open(values["dir"], values["task"])
    episode = data.episode(number)
    title = f"{episode.spec.name}, episode {number}: {len(episode.reward)} steps, return {episode.reward.sum():.5g}"
    draw_episode(episode, figure, title)
    print(escaped(f"{title}: {figure}"))
    if video is None:
        return
    seed = values["seed"] if values["seed"] is not None else recorded_seed(data, number)
    if seed is None:
        raise ValueError(f"{values['dir']} does not record the seeds of its episodes: name that of the video, seed=...")
    played = play_again(episode, seed, data.source.dtype)
    write_video(video, played.frames, played.fps)
    near = f"observations are within {played.distance:.3g} of the stored ones"
    print(f"{video}: {len(played.frames)} frames from seed {seed}, {near}")


def _print_store(out: Path, store: EpisodeStore) -> None:
    size = store.meta.files["rows.npy"].bytes
    print(f"{out}: episode store, {store.meta.dtype}, {store.meta.episodes:,} episodes, {size:,} bytes")
