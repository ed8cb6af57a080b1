"""The commands that are disturbed, and what each needs to begin with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.helpers.reference import REPO
from tests.helpers.toy_envs import FALLS, SEES, STANDS

TINY: dict[str, Any] = {"model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "task_dim": 8}
_TRAIN = """
    student_config.model_size=null student_config.enc_dim=16 student_config.mlp_dim=16 student_config.latent_dim=16
    student_config.task_dim=8 student_config.num_samples=16 student_config.num_elites=4 student_config.num_pi_trajs=4
    student_config.iterations=1 student_config.device=cpu student_config.num_threads=1 student_config.compile=false
    student_config.batch_size=16 student_config.data_dir=data student_config.work_dir=run student_config.log_freq=10
    student_config.save_freq=20 student_config.eval_episodes=2 student_config.keep_last=2
"""
_ONLINE = """
    task=tests.helpers.toy_envs:Stands-v0 model_size=null enc_dim=16 mlp_dim=16 latent_dim=16 num_samples=16
    num_elites=4 num_pi_trajs=4 iterations=1 device=cpu num_threads=1 compile=false batch_size=16 work_dir=run
    num_envs=2 seed_steps=40 steps=300 buffer_size=100 log_freq=10 save_freq=20 eval_freq=150 eval_episodes=1
"""
#: Simulators with episodes of 500 steps, two of which are stored for two tasks each.
_SHARE_BODY = """
    task=mt30 mode=online tasks=[pendulum-swingup,pendulum-spin] share_body=true task_balance=tasks task_dim=8
    num_envs=1 mpc=false utd=0.05 seed_steps=1000 steps=2400 buffer_size=3500 log_freq=100 save_freq=300 eval_freq=0
"""


#: Half of each batch is from a file and half from the run, whose episodes terminate.
_SHOWN = f"task={FALLS} episodic=true demonstrations=data bc_coef=0.5 steps=200 eval_freq=0"
_TEACHERS = ("pendulum-spin", "walker-walk")
#: Images of three frames, 64 x 64, and those of two cameras beside five numbers.
_IMAGES = "obs=rgb horizon=2 steps=160 eval_freq=0"
_IMAGES_AND_NUMBERS = f"task={SEES} obs=rgb+state horizon=2 steps=160 eval_freq=0"
#: Two tasks of episodes of 500 steps, each in an environment of its own.
_MANY_TASKS = """
    task=mt30 mode=online tasks=[pendulum-swingup,cartpole-balance] task_balance=tasks task_dim=8 num_envs=1 mpc=false
    utd=0.05 seed_steps=1000 steps=2400 buffer_size=3500 log_freq=100 save_freq=300 eval_freq=0
"""
_WIDTHS = "model_size=null enc_dim=16 mlp_dim=16 latent_dim=16".split()  # left out where a file decides


@dataclass(frozen=True)
class Scenario:
    """A command that can be interrupted.

    Attributes:
        prepare: puts what the command needs into a directory.
        command: what follows ``python``; it runs in a copy of that directory.
        ended: part of the one line that the command refuses to run again with once its work is done; empty: it simply
            finds that nothing is left to do, or does it again.
    """

    prepare: Callable[[Path], None]
    command: tuple[str, ...]
    ended: str = ""


def _script(name: str, *arguments: str) -> tuple[str, ...]:
    return (str(REPO / f"{name}.py"), *arguments)


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", name, *arguments)


def _short_episodes(directory: Path) -> None:
    """Collect random episodes of a task that is evaluated in no time."""
    from tdmpc2.config import parse_cfg
    from tdmpc2.play.collector import collect

    collect(parse_cfg({"task": STANDS, "episodes_per_task": 30}), None, directory / "data")


def _nothing(directory: Path) -> None:
    """Leave a directory as it is: the command needs nothing."""


def _many_tasks(directory: Path) -> None:
    """Save a tiny model of many tasks, without the one that is to be learned."""
    from tests.helpers.tuning import OTHERS, file_of_many

    file_of_many(directory, OTHERS)


def _agent(directory: Path) -> None:
    """Save a tiny agent, to be mixed with random play."""
    from tdmpc2.agent import TDMPC2
    from tdmpc2.config import Config

    TDMPC2(Config(tasks=("pendulum-spin",), device="cpu", **TINY)).save(directory / "x.pt")


def _store_and_teacher(directory: Path, episodes: int = 200, **widths: Any) -> None:
    """Make random episodes of MT30 and a random teacher, by default with about two seconds of work for it."""
    from tdmpc2.config import Config
    from tests.helpers.agents import make_teacher
    from tests.helpers.data import make_store

    cfg = Config(task="mt30", device="cpu", **{"model_size": None, **widths})
    make_store(directory / "data", cfg, episodes=episodes)
    make_teacher(cfg).save(directory / "teacher.pt")


def _logs(directory: Path) -> None:
    """Write episodes of unequal lengths, some of which terminate."""
    from tests.helpers.unequal import write_logs

    write_logs(directory / "data")


def _many_logs(directory: Path) -> None:
    """Write chunk files with 6,000 episodes of 1 to 9 steps."""
    from tests.helpers.unequal import write_logs

    for seed in range(2):
        write_logs(directory / "data", ends=[(1 + step % 9, step % 4 == 0) for step in range(3000)], seed=seed)


def _played(directory: Path) -> None:
    """Train a run that has played some hundred episodes."""
    from tdmpc2.training.online import train_online
    from tests.helpers.online import config

    train_online(config(directory, FALLS, episodic=True, seed_steps=3000, steps=3001, save_freq=300, utd=0.01), None)


def _store_and_teachers(directory: Path) -> None:
    """Make random episodes of MT30 and random teachers of two of its tasks."""
    from tdmpc2.config import parse_cfg
    from tests.helpers.agents import make_teacher

    _store_and_teacher(directory, episodes=30, **TINY)
    for task in _TEACHERS:
        make_teacher(parse_cfg({**TINY, "task": task, "device": "cpu"})).save(directory / f"{task}.pt")


def _chunks(directory: Path) -> None:
    """Write two chunk files of 40 MB in all."""
    from tdmpc2.data.chunks import write_chunk
    from tests.helpers.data import fields

    for number in range(2):
        data = fields([0, 1, 2, 29] * 80, first=320 * number, length=500, obs_dim=24, action_dim=6)
        write_chunk(directory / "data" / f"chunk_{number}.pt", **data)


def _runs(directory: Path) -> None:
    """Write finished runs with and without a teacher, three seeds each."""
    from tests.helpers.studies import write_run

    for seed in (1, 2, 3):
        write_run(directory / "logs", seed, 20.0 + seed)
        write_run(directory / "logs", seed, 25.0 + seed, weight=0.45)


_IMPORT = """
from tdmpc2.config import Config
from tdmpc2.data.store.importer import ensure_store
from tdmpc2.support.cli import one_line_errors
one_line_errors(ensure_store)("data", "mt30", Config(task="mt30").task_specs, block=16)
"""

SCENARIOS = {
    "train": Scenario(
        _short_episodes,
        _script(
            "train",
            "teacher_config=null",
            *_TRAIN.split(),
            f"student_config.task='{STANDS}'",
            "student_config.steps=150",
            "student_config.eval_freq=25",
        ),
    ),
    "distil": Scenario(
        partial(_store_and_teacher, episodes=30, **TINY),
        _script(
            "train",
            "teacher_config.checkpoint=teacher.pt",
            *_TRAIN.split(),
            "student_config.steps=100",
            "student_config.eval_freq=0",
            "student_config.distillation_targets=[reward, policy 0.2, next_state_linear 0.1]",
        ),
    ),
    "cache": Scenario(
        partial(_store_and_teacher, episodes=60, **TINY),
        _script(
            "train",
            "teacher_config.checkpoint=teacher.pt",
            *_TRAIN.split(),
            "student_config.steps=60",
            "student_config.eval_freq=0",
            "student_config.distillation_cache=full",
        ),
    ),
    "teachers": Scenario(
        _store_and_teachers,
        _script(
            "train",
            "student_config.teachers=[" + ",".join(f"{task} {task}.pt" for task in _TEACHERS) + "]",
            *_TRAIN.split(),
            "student_config.steps=100",
            "student_config.eval_freq=0",
        ),
    ),
    "online": Scenario(_nothing, _script("train", *_ONLINE.split())),
    "images": Scenario(_nothing, _script("train", *_ONLINE.split(), *_IMAGES.split())),
    "both": Scenario(_nothing, _script("train", *_ONLINE.split(), *_IMAGES_AND_NUMBERS.split())),
    "many": Scenario(_nothing, _script("train", *_ONLINE.split(), *_MANY_TASKS.split())),
    "tune": Scenario(
        _many_tasks,
        _script("train", "checkpoint=many.pt", "freeze=encoder", *(w for w in _ONLINE.split() if w not in _WIDTHS)),
    ),
    "shown": Scenario(_logs, _script("train", *_ONLINE.split(), *_SHOWN.split())),
    "share_body": Scenario(_nothing, _script("train", *_ONLINE.split(), *_SHARE_BODY.split())),
    "collect": Scenario(
        _agent,
        _script(
            "collect",
            "mix=[0.5 random, 0.5 policy x.pt noise 0.2]",
            *"episodes_per_task=5 episodes_per_file=1 data_dir=data device=cpu num_threads=1".split(),
        ),
    ),
    "import": Scenario(_chunks, ("-c", _IMPORT)),
    "convert": Scenario(_chunks, _module("tdmpc2.data", "convert", "data", "store"), ended="exists"),
    "unequal": Scenario(_many_logs, _module("tdmpc2.data", "convert", "data", "store"), ended="exists"),
    "from-run": Scenario(_played, _module("tdmpc2.data", "from-run", "run", "store"), ended="exists"),
    "targets": Scenario(
        _store_and_teacher,
        _module("tdmpc2.data.targets", "data", "teacher.pt", "--device", "cpu", "--batch-rows", "1500"),
    ),
    "plans": Scenario(
        partial(_store_and_teacher, episodes=2, **TINY),
        _module("tdmpc2.data.targets", "data", "teacher.pt", "columns=plan", *"--device cpu num_samples=64".split()),
    ),
    "quantize": Scenario(
        partial(_store_and_teacher, episodes=30, **TINY),
        _script(
            "quantize",
            *"teacher.pt --data data --rows 60 --repeats 1 --plans 4 --device cpu --force".split(),
        ),
    ),
    "report": Scenario(_runs, _script("report", "logs", "--out", "report", "--force")),
}
#: Commands that learn online, for ``--commands online-all``.
ONLINE = ("online", "images", "both", "many", "shown", "tune", "share_body")
