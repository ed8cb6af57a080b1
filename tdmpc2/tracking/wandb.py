"""A Weights & Biases run that never stops or delays the work it records: whatever fails costs one warning line.

After the start everything is sent by a thread of its own: logging an artifact asks the server, and metrics wait for the
local service process when that is busy or stopped.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tdmpc2.config import Config
from tdmpc2.support.names import safe_name
from tdmpc2.tracking.sender import CAPACITY, METRICS, Sender, reason

#: Seconds that the end of a run waits for uploads; the environment variable of the same name replaces it.
WANDB_FINISH_TIMEOUT = 300.0
#: Beginning of the names of directories that hold what is being uploaded.
_COPY = ".wandb-"
#: The environment variable by which the library and its child processes find a service process.
_SERVICE = "WANDB_SERVICE"
#: Runs of this process that go on: the library's service is one for all of them.
_RUNNING: weakref.WeakSet[WandbRun] = weakref.WeakSet()


class WandbRun:
    """A Weights & Biases run that may be absent: methods then do nothing, and failures are one line each.

    No method but ``start`` and ``finish`` waits for anything.

    Args:
        show: prints a line.
    """

    #: Calls that may wait to be sent.
    capacity = CAPACITY

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._run: Any = None
        self._wandb: Any = None
        self._sender: Sender | None = None

    @property
    def run_id(self) -> str | None:
        return None if self._run is None else str(self._run.id)

    def start(
        self,
        cfg: Config,
        teacher: Config | None,
        step: int,
        run_id: str | None,
        terminal: bool,
        evaluate_again: bool = False,
    ) -> None:
        if cfg.disable_wandb or not cfg.wandb_project:
            why = "disable_wandb=true" if cfg.disable_wandb else "set wandb_project to turn it on"
            self._show(f"Weights & Biases: off ({why})")
            return
        # Its service process may run already, or have been killed meanwhile.
        used = "wandb" in sys.modules or _SERVICE in os.environ
        try:
            import wandb

            options = _run_options(wandb, cfg, teacher, run_id, not terminal)
            with _no_prompt():
                try:
                    run = wandb.init(**options)
                except Exception:  # the library words a killed service in several ways
                    if not used or _RUNNING:
                        raise
                    _end_service()
                    run = wandb.init(**options)
            if run.disabled:
                self._show("Weights & Biases: off (WANDB_MODE=disabled)")
                return
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
        except Exception as error:  # network, login, disk, a foreign version: none of them is worth a training run
            self._show(f"Weights & Biases: off, it did not start ({reason(error)}). Training continues without it.")
            return
        self._run, self._wandb = run, wandb
        _RUNNING.add(self)
        for left in cfg.run_dir.glob(f"{_COPY}*"):  # by a process that was killed
            if re.fullmatch(rf"{re.escape(_COPY)}[a-z0-9_]{{8}}", left.name) and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
        self._sender = Sender("Weights & Biases", run, self._show, self.capacity)
        where = f"offline, `wandb sync {Path(run.dir).parent}` uploads it" if run.offline else run.url
        self._show(f"Weights & Biases: {where}")

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        self._call(METRICS, lambda run: run.log({**row, "step": step}))

    def table(self, step: int, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        def send(run: Any) -> None:
            table = self._wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
            run.log({name: table, "step": step})

        self._call("tables", send)

    def video(self, step: int, name: str, path: Path) -> None:
        self._call("videos", lambda run: run.log({name: self._wandb.Video(str(path)), "step": step}))

    def artifact(self, path: Path, name: str, kind: str, aliases: Sequence[str]) -> None:
        if self._sender is None or not self._sender.takes("artifacts"):
            return
        try:  # the file may have been replaced by the time it is sent
            directory = tempfile.TemporaryDirectory(dir=path.parent, prefix=_COPY, ignore_cleanup_errors=True)
            own = Path(directory.name) / path.name
            try:
                os.link(path, own)
            except OSError:  # a file system without links
                shutil.copyfile(path, own)
        except OSError as error:
            self._sender.fail("artifacts", error)
            return

        def send(run: Any) -> None:
            with directory:
                artifact = self._wandb.Artifact(safe_name(name), type=kind)
                artifact.add_file(str(own), name="model.pt" if kind == "model" else path.name)  # equal files are one
                run.log_artifact(artifact, aliases=["latest", *aliases])

        self._call("artifacts", send)

    def alert(self, title: str, text: str) -> None:
        self._call("alerts", lambda run: run.alert(title=title[:63], text=text, level="ERROR"))

    def finish(self, failed: bool) -> None:
        """Wait until everything is sent, at most WANDB_FINISH_TIMEOUT seconds and a little more."""
        if self._sender is None:
            return
        timeout = _finish_timeout()
        grace = 1 + 0.1 * timeout  # the library's own end comes first
        ended = self._sender.finish(lambda run: run.finish(exit_code=int(failed)), timeout, grace)
        _RUNNING.discard(self)
        if not ended and not _RUNNING:  # specialists side by side share it
            _end_service()
        self._run = self._sender = None

    def _call(self, kind: str, action: Callable[[Any], None]) -> None:
        if self._sender is not None:
            self._sender.call(kind, action)


def _run_options(
    wandb: Any, cfg: Config, teacher: Config | None, run_id: str | None, capture_console: bool
) -> dict[str, Any]:
    """Build the arguments of ``wandb.init``; settings left out keep what the user's environment says."""
    settings: dict[str, Any] = {"finish_timeout": _finish_timeout()}
    if cfg.wandb_silent:
        settings["silent"] = True
    if not capture_console:  # a live line would arrive there as thousands of lines
        settings["console"] = "off"
    experiment = safe_name(f"{cfg.run_task}-{cfg.exp_name or 'default'}", 100)
    size = "custom-size" if cfg.model_size is None else f"{cfg.model_size}M"
    return {
        "project": cfg.wandb_project,
        "entity": cfg.wandb_entity,
        "dir": str(cfg.run_dir),
        "id": run_id,
        "resume": "allow" if run_id else None,
        "name": f"{experiment}-{cfg.seed}",
        "group": experiment,
        "tags": [cfg.run_task[:64], size, "distilled" if teacher or cfg.teachers else "from-scratch"],
        "config": {"student": cfg.to_dict(), "teacher": None if teacher is None else teacher.to_dict()},
        "reinit": "create_new",  # specialists side by side have a run each
        "settings": wandb.Settings(**settings),
    }


def _end_service() -> None:
    """Kill the service processes of this one, for which its exit would wait without end.

    The library would go on using their closed connection: it has to forget it, so that a later run starts a new one.
    """
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("wandb-"):
                process.kill()
    if (teardown := getattr(sys.modules.get("wandb"), "teardown", None)) is not None:
        with contextlib.suppress(Exception):  # the connection is closed already, which is what was asked for
            teardown()
    os.environ.pop(_SERVICE, None)  # the library leaves it where another process had started the service


def _finish_timeout() -> float:
    try:
        return float(os.environ.get("WANDB_FINISH_TIMEOUT", WANDB_FINISH_TIMEOUT))
    except ValueError:
        return WANDB_FINISH_TIMEOUT


@contextlib.contextmanager
def _no_prompt() -> Iterator[None]:
    """Close standard input to questions, so that a missing login is an error at once, not a prompt for ever."""
    stdin = sys.stdin
    with open(os.devnull) as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = stdin
