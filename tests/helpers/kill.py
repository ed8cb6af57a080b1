"""Commands that are killed at random moments and started again: in the end their files are those of an undisturbed run.

python -m tests.kill cache --times 20
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tests.helpers.reference import REPO


@dataclass(frozen=True)
class Scenario:
    """A command that can be interrupted.

    Attributes:
        prepare: puts what the command needs into a directory.
        command: arguments after ``python``; it runs in a copy of that directory.
        ignored: patterns of paths in the directory that may differ.
    """

    prepare: Callable[[Path], None]
    command: tuple[str, ...]
    ignored: tuple[str, ...] = ()


def _prepare_cache(directory: Path) -> None:
    """Random episodes and a random teacher with about two seconds of work for it."""
    from tdmpc2.config import Config
    from tests.helpers.agents import make_teacher
    from tests.helpers.data import make_store

    cfg = Config(task="mt30", device="cpu")
    make_store(directory / "data", cfg, episodes=200)
    make_teacher(cfg).save(directory / "teacher.pt")


_IMPORT = """
from tdmpc2.config import Config
from tdmpc2.data.store.importer import ensure_store
ensure_store("data", "mt30", Config(task="mt30").task_specs, block=16)
"""


def _prepare_import(directory: Path) -> None:
    """Two chunk files of 40 MB in all, to be imported in 40 blocks."""
    from tdmpc2.data.chunks import write_chunk
    from tests.helpers.data import fields

    for number in range(2):
        data = fields([0, 1, 2, 29] * 80, first=320 * number, length=500, obs_dim=24, action_dim=6)
        write_chunk(directory / "data" / f"chunk_{number}.pt", **data)


def _prepare_train(directory: Path) -> None:
    """Random episodes of a short task and of one more."""
    from tdmpc2.config import Config
    from tdmpc2.play.collector import collect

    tasks = ("pendulum-spin", "cartpole-balance")
    collect(Config(tasks=tasks, episodes_per_task=2), None, directory / "data")


_TRAIN = """
    teacher_config=null model_size=null enc_dim=16 mlp_dim=16 latent_dim=16 task_dim=8 num_samples=16 num_elites=4
    num_pi_trajs=4 iterations=1 device=cpu num_threads=1 tasks=[pendulum-spin] batch_size=16 data_dir=data work_dir=run
    steps=150 log_freq=10 save_freq=20 eval_freq=75 eval_episodes=1 keep_last=2
"""


_ONLINE = """
    task=tests.helpers.toy_envs:Stands-v0 model_size=null enc_dim=16 mlp_dim=16 latent_dim=16 num_samples=16
    num_elites=4 num_pi_trajs=4 iterations=1 device=cpu num_threads=1 batch_size=16 work_dir=run num_envs=2
    seed_steps=40 steps=300 buffer_size=100 log_freq=10 save_freq=20 eval_freq=150 eval_episodes=1 compile=false
"""


def _prepare_nothing(directory: Path) -> None:
    """Learning online needs nothing."""


def _prepare_collect(directory: Path) -> None:
    """A tiny agent, to be mixed with random play."""
    from tdmpc2.agent import TDMPC2
    from tdmpc2.config import Config

    keys = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "task_dim": 8}
    TDMPC2(Config(model_size=None, tasks=("pendulum-spin",), device="cpu", **keys)).save(directory / "x.pt")


SCENARIOS = {
    "collect": Scenario(
        _prepare_collect,
        (
            str(REPO / "collect.py"),
            "mix=[0.5 random, 0.5 policy x.pt noise 0.2]",
            *"episodes_per_task=8 episodes_per_file=1 data_dir=data device=cpu num_threads=1".split(),
        ),
    ),
    "cache": Scenario(
        _prepare_cache,
        ("-m", "tdmpc2.data.targets", "data", "teacher.pt", "--device", "cpu", "--batch-rows", "1500"),
        ignored=("*.lock",),
    ),
    "train": Scenario(
        _prepare_train,
        (
            str(REPO / "train.py"),
            *(word if word.startswith("teacher") else f"student_config.{word}" for word in _TRAIN.split()),
        ),
        # The same values can be pickled differently; the others hold times.
        ignored=("*.lock", "run/state.pt", "run/speed.csv", "run/train.log", "run/curves.png"),
    ),
    "online": Scenario(
        _prepare_nothing,
        (str(REPO / "train.py"), *_ONLINE.split()),
        ignored=("*.lock", "run/state.pt", "run/speed.csv", "run/train.log", "run/curves.png"),
    ),
    "import": Scenario(_prepare_import, ("-c", _IMPORT), ignored=("*.lock",)),
}


def killed_at_random(name: str, times: int, seed: int, root: Path) -> None:
    """Kill a scenario's command ``times`` times, starting it again until it is done, and compare all files it leaves.

    Raises:
        AssertionError: the files differ from those of an undisturbed run, or the command failed.
    """
    scenario, draw = SCENARIOS[name], random.Random(seed)
    (root / "prepared").mkdir()
    scenario.prepare(root / "prepared")
    shutil.copytree(root / "prepared", root / "undisturbed")
    work = _run(scenario, root / "undisturbed")
    assert work is not None
    print(f"{name}: {work:.2f} s of work undisturbed", flush=True)
    expected = _files(scenario, root / "undisturbed")
    kills = 0
    while kills < times:
        directory = root / "killed"
        shutil.copytree(root / "prepared", directory)
        before = kills
        while kills < times:
            moment = draw.uniform(0, work)
            if _run(scenario, directory, moment) is not None:
                break
            kills += 1
            print(f"{name}: kill {kills} of {times}, after {moment:.2f} s of work", flush=True)
        else:
            assert _run(scenario, directory) is not None
        found = _files(scenario, directory)
        assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
        differing = [path for path, content in found.items() if content != expected[path]]
        assert not differing, differing
        print(f"{name}: finished after {kills - before} kills, {len(found)} files identical", flush=True)
        shutil.rmtree(directory)


def _run(scenario: Scenario, directory: Path, moment: float | None = None) -> float | None:
    """Run the command; kill it ``moment`` seconds after the first sign of work, a change in its directory.

    Returns:
        Seconds from that sign to the end; None if it was killed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    before, began = _state(directory), None
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, *scenario.command],
            cwd=directory,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        while process.poll() is None:
            if began is None and _state(directory) != before:
                began = time.monotonic()
            if moment is not None and began is not None and time.monotonic() - began >= moment:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return None
            time.sleep(0.002)
        output.seek(0)
        assert process.returncode == 0, output.read().decode(errors="replace")
    return 0.0 if began is None else time.monotonic() - began


def _state(directory: Path) -> dict[str, tuple[int, int]]:
    state = {}
    with suppress(FileNotFoundError):  # it went while one looked, which is a change as well
        for path in directory.rglob("*"):
            status = path.stat()
            state[str(path)] = status.st_mtime_ns, status.st_size
    return state


def _files(scenario: Scenario, directory: Path) -> dict[str, bytes]:
    paths = {str(path.relative_to(directory)): path for path in sorted(directory.rglob("*")) if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in paths.items()
        if not any(fnmatch(name, pattern) for pattern in scenario.ignored)
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("scenario", choices=sorted(SCENARIOS))
    parser.add_argument("--times", type=int, default=20, help="number of kills (default: 20)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        killed_at_random(args.scenario, args.times, args.seed, Path(root))


if __name__ == "__main__":
    main()
