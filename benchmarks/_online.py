"""Time of a step of learning online: the whole loop, the same on plain paths, its parts alone, and a save."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._harness import Run as Timed
from benchmarks._harness import take_turns
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.ring import ReplayRing
from tdmpc2.data.ring_files import SavedRing
from tdmpc2.data.rows import RowFormat
from tdmpc2.distributed import ProcessGroup
from tdmpc2.play.evaluation import evaluate
from tdmpc2.play.explorer import Explorer
from tdmpc2.training import run_dir
from tdmpc2.training.loop import Run
from tdmpc2.training.online import Loop

_EPISODES = 20  # random ones that the buffer holds from the beginning
_SAVED = 10_000  # steps between two saves


class Learning:
    """A run that learns online and takes a given number of turns at a time."""

    def __init__(self, cfg: Config, stack: contextlib.ExitStack) -> None:
        run = stack.enter_context(Run.open(cfg, None, ProcessGroup(), evaluate, stride=len(cfg.envs)))
        self.explorer = stack.enter_context(Explorer(cfg, run.agent))
        self.loop = Loop(run, self.explorer)
        self.agent, self._turns = run.agent, self.loop.turns()
        rng, length = np.random.default_rng(0), cfg.task_specs[cfg.task_ids[0]].episode_length
        for number in range(_EPISODES):
            rows = [rng.standard_normal((length + 1, size), np.float32) for size in (cfg.obs_dim, cfg.action_dim, 1)]
            self.loop.replay.add(rows[0], np.tanh(rows[1]), rows[2][:, 0], cfg.task_ids[number % len(cfg.task_ids)])
        next(self._turns)  # the first turn acts randomly, all later ones plan
        self._numbers = itertools.count()

    def steps(self, count: int) -> None:
        """Take so many turns of the loop."""
        for _ in range(count):
            next(self._turns)

    def part(self, name: str, count: int) -> None:
        """Do only one part of so many turns."""
        self.explorer.begin()
        parts: dict[str, Callable[[], Any]] = {
            "acting": lambda: self.explorer.act(0, random=False),
            "environment": self._step,
            "updating": lambda: self.agent.update(self.loop.batches.draw(next(self._numbers))),
        }
        for _ in range(count):
            parts[name]()

    def _step(self) -> None:
        self.explorer.step(np.zeros((len(self.explorer.task_ids), self.agent.cfg.action_dim), np.float32))
        self.explorer.begin()


def config(directory: Path, name: str, fast: bool, **keys: Any) -> Config:
    """Configure a run whose turns are timed: nothing is evaluated, saved or logged meanwhile."""
    forever = 10**9
    values: dict[str, Any] = {
        "mode": "online", "seed_steps": 1, "steps": forever, "buffer_size": 100_000, "log_freq": forever,
        "save_freq": forever, "eval_freq": 0, "save_csv": False, "save_agent": False, "compile": str(fast).lower(),
        "work_dir": str(directory / name),
    }  # fmt: skip
    return Config(**{**values, **keys})


def whole_and_parts(
    directory: Path, name: str, block: int, repeats: int, limit: float | None, **keys: Any
) -> dict[str, Any]:
    """Measure a step of the loop against that of plain paths, and against the sum of its parts alone, in turns."""
    parts = ("acting", "environment", "updating")
    with contextlib.ExitStack() as stack:
        fast, plain = (Learning(config(directory, kind, kind == "fast", **keys), stack) for kind in ("fast", "plain"))
        variants: dict[str, Timed] = {"plain": partial(plain.steps, block), "fast": partial(fast.steps, block)}
        variants |= {part: partial(fast.part, part, block) for part in parts}
        times = take_turns(variants, repeats, warm_up=1, device=fast.agent.device, limit=limit)
    total = sum(times.seconds[part] for part in parts)
    return {
        "name": name,
        "plain_ms": times.ms("plain") / block,
        "fast_ms": times.ms("fast") / block,
        "speedup": times.ratio("plain", "fast"),
        "steps_per_s": 1e3 * block / times.ms("fast"),
        **{f"{part}_ms": times.ms(part) / block for part in parts},
        "overhead": float(np.median(times.seconds["fast"] / total)) - 1,
    }


def sharing(
    directory: Path, tasks: tuple[str, ...], block: int, repeats: int, limit: float | None, **keys: Any
) -> dict[str, Any]:
    """Measure a step of tasks that share a body against that of the same tasks apart."""
    with contextlib.ExitStack() as stack:
        runs = {
            name: Learning(
                config(directory, name, True, task="mt30", tasks=tasks, share_body=name == "shared", **keys), stack
            )
            for name in ("apart", "shared")
        }
        variants = {name: partial(run.steps, block) for name, run in runs.items()}
        times = take_turns(variants, repeats, warm_up=1, device=runs["apart"].agent.device, limit=limit)
    count = block * len(tasks)
    return {
        "name": f"{len(tasks)} tasks share a body",
        "plain_ms": times.ms("apart") / count,
        "fast_ms": times.ms("shared") / count,
        "overhead": times.ratio("shared", "apart") - 1,
    }


def saving(cfg: Config, directory: Path, rows: int, repeats: int, step_ms: float) -> dict[str, Any]:
    """Measure a save of every 10,000 steps with a full buffer of ``rows``, beside the time of those steps."""
    length, saved = cfg.task_specs[cfg.task_ids[0]].episode_length, min(_SAVED, rows // 2)
    ring, directory = ReplayRing(RowFormat(cfg.obs_dim, cfg.action_dim), rows, cfg.horizon), directory / "saved"
    agent, number = TDMPC2(cfg), itertools.count()
    obs, action = torch.randn(length + 1, cfg.obs_dim).numpy(), torch.zeros(length + 1, cfg.action_dim).numpy()

    def play(steps: int) -> None:
        for _ in range(max(steps // length, 1)):
            ring.add(obs, action, obs[:, 0])

    def save() -> None:
        run_dir.save(agent, directory, next(number), None, wall_seconds=0.0, parts={"replay": files.state()})

    directory.mkdir()
    files = SavedRing(ring, directory / "replay")
    while ring.num_rows + length < rows:
        play(saved)
        files.state()
    times = take_turns({"save": save}, repeats, warm_up=1, prepare={"save": partial(play, saved)})
    share = times.ms("save") / (_SAVED * step_ms)
    return {"name": f"a save, {rows:,} rows", "fast_ms": times.ms("save"), "overhead": share}
