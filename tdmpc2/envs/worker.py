"""One process that steps environments for another: ``python -m tdmpc2.envs.worker FD CALLER LASTING``.

FD is its end of a socket, CALLER the number of the process that starts it, LASTING 1 if the thread that does so lives
as long as that process. It is started as a command, and not by multiprocessing, which would run the caller's own script
a second time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from tdmpc2.envs.checked import EnvironmentFault
from tdmpc2.envs.stepping import EachAlone
from tdmpc2.envs.vector import EnvPool, make_vec_env

_SECONDS = 1.0  # between two looks at whether the caller is alive


class Work:
    """Requests of a caller, a method for each; environments stay here from one to the next."""

    def __init__(self) -> None:
        self._envs: Any = None
        self._pool: EnvPool | None = None
        self._alone: EachAlone | None = None

    def prepare(self, modules: list[str]) -> None:
        """Import what the caller has imported to register its tasks."""
        for module in modules:
            import_module(module)

    def build(self, *args: Any, **kwargs: Any) -> None:
        self._envs = make_vec_env(*args, **kwargs)

    def pool(self, specs: Any, *form: Any) -> None:
        self._pool = self._pool or EnvPool(*form)
        self._envs = self._pool.make(specs)

    def close(self) -> None:
        """Close all environments: a simulator may hold a port, a licence or a process of its own."""
        for held in (self._alone, self._pool or self._envs):
            if held is not None:
                held.close()

    def reset(self, seed: Any, options: Any) -> Any:
        return self._envs.reset(seed=seed, options=options)[0]

    def step(self, actions: Any) -> Any:
        obs, reward, terminated, truncated, info = self._envs.step(actions)
        return obs, reward, terminated, truncated, info["success"]

    def render(self, index: int) -> Any:
        return self._envs.envs[index].render()

    def metadata(self, index: int) -> Any:
        return dict(self._envs.envs[index].metadata)

    def alone(self, *args: Any) -> None:
        self._alone = EachAlone(*args)

    def reset_one(self, *args: Any) -> Any:
        assert self._alone is not None
        return self._alone.reset(*args)

    def step_each(self, actions: Any) -> Any:
        assert self._alone is not None
        return self._alone.step(actions)


def serve(connection: Connection) -> None:
    """Answer requests until the caller is gone: (name, arguments) -> ("done", result) or (kind of error, its text)."""
    work = Work()
    try:
        _answer_requests(connection, work)
    finally:
        work.close()


def _answer_requests(connection: Connection, work: Work) -> None:
    while True:
        try:
            name, args, kwargs = connection.recv()
        except (EOFError, OSError):  # the caller is gone, perhaps in the middle of a request
            return
        asked: Callable[..., Any] = getattr(work, name)
        try:
            answer: tuple[str, Any] = ("done", asked(*args, **kwargs))
        except EnvironmentFault as error:
            answer = ("fault", str(error))
        except Exception as error:  # what the caller would have seen, had it done this itself
            kind = next((kind for kind in (ValueError, ImportError) if isinstance(error, kind)), None)
            answer = ("error", kind(str(error)) if kind else f"{type(error).__name__}: {error}")
        try:
            connection.send(answer)
        except OSError:
            return


def _end_with(caller: int) -> None:
    """End this process soon after its caller, also in the middle of a step."""
    while os.getppid() == caller:  # an orphan gets another parent
        time.sleep(_SECONDS)
    os._exit(1)


def main() -> None:
    """Serve the caller, whose end of the socket closes when it ends, however that happens."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the caller decides, and a signal to a whole group comes here as well
    descriptor, caller, lasting = map(int, sys.argv[1:])
    if sys.platform == "linux" and lasting:  # or it would be killed when the thread that has started it ends
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: also in a step that never returns
    threading.Thread(target=_end_with, args=(caller,), daemon=True).start()
    connection = Connection(descriptor)
    sys.stdout.flush()
    os.dup2(2, 1)  # simulators print; the caller's output is its own
    serve(connection)


if __name__ == "__main__":
    main()
