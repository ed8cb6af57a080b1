"""Teach many tasks at once by acting, a specialist for each: one update and one plan for all of them.

python examples/specialists.py --tasks walker-walk cup-catch pendulum-swingup steps=50000 [KEY=VALUE ...]

Keys are those of train.py, for all specialists; --tasks mt30 is all thirty tasks, and share_body=true teaches tasks of
one body to one specialist, where each body has as many of the named tasks, two or more. Each learns as ``train.py
task=TASK`` would, with random numbers and a replay of its own. In --out it leaves ``TASK/``, the directory of its run
with ``model.pt``, and ``data/TASK-STEPS``, an episode store of what it played. If it is stopped or killed, the same
line goes on. On a GPU the specialists of a batch are expected to take little longer than one; on a CPU it is for trying
out. env_workers=1 steps each one's environments in a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tdmpc2 import parse_cfg
from tdmpc2.config import Config
from tdmpc2.support.cli import one_line_errors
from tdmpc2.support.names import safe_name
from tdmpc2.tasks import MT30, body_of, task_names
from tdmpc2.training.saved_replay import NoEpisodes, replay_to_store
from tdmpc2.training.specialists import train_specialists


def groups(tasks: Sequence[str], share_body: bool) -> dict[str, list[str]]:
    """Divide tasks among specialists: name -> tasks. Tasks of one body get one specialist if bodies are shared."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        body = body_of(task) if share_body else (task,)
        found.setdefault(next(other for other in tasks if other in body), []).append(task)
    return found


def configure(tasks: Sequence[str], out: Path, typed: dict[str, Any]) -> list[Config]:
    """Describe the run of each specialist.

    Raises:
        ValueError: a key or a task is none, or a key is not for all specialists.
    """
    for key in ("task", "tasks", "work_dir", "exp_name"):
        if key in typed:
            raise ValueError(f"{key}={typed[key]}: each specialist has its own, from --tasks and --out: leave it out")
    names = [name for task in tasks for name in task_names(task)]
    share = typed.get("share_body") is True
    found = groups(names, share)
    if share and (len({len(own) for own in found.values()}) > 1 or len(found) == len(names)):
        counts = ", ".join(f"{name}: {len(own)}" for name, own in found.items())
        raise ValueError(
            f"share_body=true: specialists take every step together, so each body needs as many tasks, at least two; "
            f"there are {counts}"
        )
    cfgs = []
    for name, own in found.items():
        task = {"task": "mt30", "tasks": own} if share else {"task": name}
        if share and (strange := set(own) - set(MT30)):
            raise ValueError(f"share_body=true: {min(strange)} is no task of mt30: leave it out, or share_body")
        keys = {"mode": "online", "eval_freq": 0, "save_freq": 10_000, **typed, **task}
        cfgs.append(parse_cfg({**keys, "work_dir": str(out / safe_name(name))}, f"the specialist of {name}"))
    return cfgs


def keep_episodes(cfg: Config, folder: Path) -> str:
    """Write the episodes of a run's replay into a store, and say where it is, or why there is none."""
    store = folder / f"{cfg.run_dir.name}-{cfg.steps}"
    if cfg.save_agent and not (store / "meta.json").exists():
        try:
            replay_to_store(cfg.run_dir, store, quiet=True)
        except NoEpisodes as error:
            return str(error)
    return str(store)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="keys of train.py")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help="or a task set, such as mt30")
    parser.add_argument("--out", type=Path, default=Path("specialists"), help="(default: %(default)s)")
    args, more = parser.parse_known_args(argv)
    words = [*args.keys, *(word for word in args.tasks if "=" in word), *more]
    if strange := [word for word in words if "=" not in word or word.startswith("-")]:
        raise ValueError(f"{strange[0]} is no key of train.py: write KEY=VALUE")
    typed: Any = OmegaConf.to_container(OmegaConf.from_dotlist(words))
    cfgs = configure([word for word in args.tasks if "=" not in word], args.out, typed)
    for cfg, model in zip(cfgs, train_specialists(cfgs), strict=True):
        print(f"{cfg.run_dir.name}: {model}, {keep_episodes(cfg, args.out / 'data')}", flush=True)


if __name__ == "__main__":
    main()
