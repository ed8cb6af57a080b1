"""Environments in processes of their own, as many as cores: what is stepped there equals what is stepped here.

It pays where simulators or pictures are slow beside the planner, and where there are cores to spare; on two cores,
which the planner fills, it rarely does (benchmarks/collect.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc2.envs.checked import EnvironmentFault
from tdmpc2.envs.modules import module_of
from tdmpc2.envs.stepping import EachAlone, Played, Step
from tdmpc2.support.text import cut
from tdmpc2.tasks import TaskSpec

#: Seconds that a worker may take for one answer; building a simulator takes the longest.
SECONDS = 300.0


class WorkerLost(ValueError):
    """A process that stepped environments ended or hung: nothing that is the environments' own fault."""


class Worker:
    """A process that holds environments.

    Attributes:
        episodes: task and seed of each that is known by its number, for messages.
    """

    def __init__(self) -> None:
        self.episodes: dict[int, tuple[str, int]] = {}
        mine, its = socket.socketpair()
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        lasting = threading.current_thread() is threading.main_thread()
        words = its.fileno(), os.getpid(), int(lasting)
        with its:
            os.set_inheritable(its.fileno(), True)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tdmpc2.envs.worker", *map(str, words)],  # -P: nothing from this folder
                pass_fds=(its.fileno(),),
                process_group=0,  # a Ctrl-C in the terminal is for the caller
                env={**os.environ, **threads, "PYTHONPATH": paths},
            )
        self._connection = Connection(mine.detach())
        self._waiting = "start"

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Ask for something, and wait for the answer."""
        self.begin(name, *args, **kwargs)
        return self.end()

    def begin(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Ask for something; :meth:`end` waits for it."""
        self._waiting = name
        with contextlib.suppress(OSError):  # it is dead, which end() says
            self._connection.send((name, args, kwargs))

    def end(self) -> Any:
        """Wait for an answer.

        Raises:
            EnvironmentFault: an environment failed there.
            WorkerLost: the process ended, or does not answer.
            ValueError, ImportError: as the call would have raised here.
        """
        try:
            if not self._connection.poll(SECONDS):
                self._process.kill()
                raise WorkerLost(
                    f"the process that steps {self._names()} did not answer for {SECONDS:g} s ({self._waiting}), and "
                    "was ended"
                )
            kind, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            code = self._process.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise WorkerLost(f"the process that steps {self._names()} {how} ({self._waiting})") from error
        if kind == "fault":
            raise EnvironmentFault(answer)
        if kind == "error":
            raise answer if isinstance(answer, Exception) else EnvironmentFault(answer)
        return answer

    def _names(self) -> str:
        known = ", ".join(f"{task} (seed {seed})" for task, seed in self.episodes.values())
        return cut(known, 200) or "the environments"

    def close(self) -> None:
        """End the process."""
        self._connection.close()  # it reads the end, and exits
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Workers:
    """N processes among which environments are split; a context manager that ends them."""

    def __init__(self, count: int) -> None:
        if sys.platform == "win32":
            raise ValueError(f"env_workers={count}: Windows hands no sockets to processes: use env_workers=0")
        self._all: list[Worker] = []
        try:
            for _ in range(count):
                self._all.append(Worker())
        except BaseException:
            self.close()
            raise

    def prepare(self, tasks: Sequence[str]) -> None:
        """Import there the modules that tasks name, which register them, if they are imported here."""
        modules = sorted({module for task in tasks if (module := module_of(task)) in sys.modules})
        together((worker, "prepare", (modules,), {}) for worker in self._all)

    def parts(self, count: int) -> list[tuple[Worker, slice]]:
        """Split ``count`` environments evenly; workers that would have none are left out."""
        bounds = np.linspace(0, count, len(self._all) + 1).round().astype(int).tolist()
        split = zip(self._all, bounds, bounds[1:], strict=False)
        return [(worker, slice(start, stop)) for worker, start, stop in split if stop > start]

    def close(self) -> None:
        """End all processes."""
        for worker in self._all:
            worker.close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class WorkerVecEnv:
    """E environments in worker processes, with the methods of a vector environment that episodes are played with.

    Args:
        workers: hold the environments.
        count: E.
    """

    def __init__(self, workers: Workers, count: int) -> None:
        self._workers, self._parts = workers, workers.parts(count)
        self.num_envs = count
        self._obs: NDArray[Any] | None = None

    @property
    def envs(self) -> list[_Remote]:
        """The environments, which can be asked for pictures only."""
        return [_Remote(worker, i) for worker, part in self._parts for i in range(part.stop - part.start)]

    def build(self, specs: Sequence[TaskSpec], seeds: Sequence[int], *form: Any, **more: Any) -> WorkerVecEnv:
        """Build new environments, as :func:`tdmpc2.envs.vector.make_vec_env` does."""
        self._workers.prepare([spec.name for spec in specs])
        together((worker, "build", (specs[part], seeds[part], *form), more) for worker, part in self._parts)
        return self

    def pool(self, specs: Sequence[TaskSpec], *form: Any) -> WorkerVecEnv:
        """Build environments or use those of the time before, as :class:`tdmpc2.envs.vector.EnvPool` does."""
        self._workers.prepare([spec.name for spec in specs])
        together((worker, "pool", (specs[part], *form), {}) for worker, part in self._parts)
        return self

    def reset(self, *, seed: Sequence[int] | None = None, options: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
        """Begin episodes in all environments, or in those of ``options["reset_mask"]``."""
        mask = None if options is None else options["reset_mask"]
        asked = [(worker, part) for worker, part in self._parts if mask is None or mask[part].any()]
        found = together(
            (
                worker,
                "reset",
                (
                    None if seed is None else list(seed[part]),
                    None if mask is None else {**(options or {}), "reset_mask": mask[part]},
                ),
                {},
            )
            for worker, part in asked
        )
        if self._obs is None or len(asked) == len(self._parts):
            self._obs = np.concatenate(found)
        else:
            self._obs = self._obs.copy()
            for (_, part), obs in zip(asked, found, strict=True):
                self._obs[part] = obs
        return self._obs, {}

    def step(self, actions: NDArray[Any]) -> tuple[Any, ...]:
        """Take a step in all environments: observations, rewards, ends, time limits, and ``info["success"]``."""
        found = together((worker, "step", (actions[part],), {}) for worker, part in self._parts)
        self._obs, *others, success = (np.concatenate(column) for column in zip(*found, strict=True))
        return self._obs, *others, {"success": success}

    def close(self) -> None:
        """Leave the environments to the workers, whose end closes them."""


class _Remote:
    """One environment of a worker, of which pictures can be asked."""

    def __init__(self, worker: Worker, index: int) -> None:
        self._worker, self._index = worker, index

    def render(self) -> Any:
        return self._worker.ask("render", self._index)

    @property
    def metadata(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._worker.ask("metadata", self._index)
        return found


class EachInWorkers:
    """Environments by their numbers, as :class:`tdmpc2.envs.stepping.EachAlone`, in worker processes.

    Args:
        workers: hold them; they are ended with these environments.
        played: what to build.
        form: as for ``EachAlone``.
    """

    def __init__(self, workers: Workers, played: Sequence[Played], *form: Any) -> None:
        self._workers = workers
        workers.prepare([one.task for one in played])
        parts = [(worker, played[part]) for worker, part in workers.parts(len(played))]
        self._of = {one.number: worker for worker, own in parts for one in own}
        for worker, own in parts:
            worker.episodes = {one.number: (one.task, one.seed) for one in own}
        together((worker, "alone", (own, *form), {}) for worker, own in parts)
        self._begun: list[Worker] = []

    def reset(self, number: int, seed: int) -> NDArray[Any]:
        """Begin an episode, as there."""
        worker = self._of[number]
        worker.episodes[number] = worker.episodes[number][0], seed
        first: NDArray[Any] = worker.ask("reset_one", number, seed)
        return first

    def begin(self, actions: Mapping[int, NDArray[np.floating[Any]]]) -> None:
        """Begin a step that :meth:`step` is then asked for with the same actions, and go on without waiting for it."""
        asked: dict[Worker, dict[int, Any]] = {}
        for number, action in actions.items():
            asked.setdefault(self._of[number], {})[number] = action
        self._begun = begun_together((worker, "step_each", (own,), {}) for worker, own in asked.items())

    def step(self, actions: Mapping[int, NDArray[np.floating[Any]]]) -> dict[int, Step | str]:
        """Take a step in some environments, as there; workers do so at the same time."""
        if not self._begun:
            self.begin(actions)
        begun, self._begun = self._begun, []
        found = answers_of(begun)
        outcomes = {number: outcome for own in found for number, outcome in own.items()}
        return {number: outcomes[number] for number in actions if number in outcomes}

    def close(self) -> None:
        """End the workers."""
        self._workers.close()


def together(requests: Iterable[tuple[Worker, str, tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
    """Ask several workers at a time; all have answered when the first error is raised."""
    return answers_of(begun_together(requests))


def begun_together(requests: Iterable[tuple[Worker, str, tuple[Any, ...], dict[str, Any]]]) -> list[Worker]:
    """Ask several workers, and wait for none of them."""
    asked = []
    for worker, name, args, kwargs in requests:
        worker.begin(name, *args, **kwargs)
        asked.append(worker)
    return asked


def answers_of(asked: Sequence[Worker]) -> list[Any]:
    """Wait for the answers of workers that were asked; all have answered when the first error is raised."""
    answers: list[Any] = []
    errors: list[Exception] = []
    for worker in asked:
        try:
            answers.append(worker.end())
        except (ValueError, ImportError) as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return answers


def each_of(played: Sequence[Played], workers: int, *form: Any) -> EachAlone | EachInWorkers:
    """Build environments in this process if ``workers`` is 0, else in so many processes, or fewer if they are fewer.

    Args:
        played: what to build.
        workers: how many processes.
        form: as for :class:`~tdmpc2.envs.stepping.EachAlone`.
    """
    if not workers:
        return EachAlone(played, *form)
    processes = Workers(min(workers, len(played)))
    try:
        return EachInWorkers(processes, played, *form)
    except BaseException:
        processes.close()
        raise
