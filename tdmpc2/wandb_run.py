"""A Weights & Biases run that never stops or delays the work it records: whatever fails costs one warning line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tdmpc2.config import Config

#: Seconds that the end of a run waits for uploads; the environment variable of the same name replaces it.
WANDB_FINISH_TIMEOUT = 300


class WandbRun:
    """A Weights & Biases run that may be absent: methods then do nothing, and failures are one line each."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._run: Any = None
        self._wandb: Any = None
        self._failed: set[str] = set()

    @property
    def run_id(self) -> str | None:
        return None if self._run is None else str(self._run.id)

    def start(self, cfg: Config, teacher: Config | None, run_id: str | None, capture_console: bool) -> None:
        if cfg.disable_wandb or not cfg.wandb_project:
            reason = "disable_wandb=true" if cfg.disable_wandb else "set wandb_project to turn it on"
            self._say(f"Weights & Biases: off ({reason})")
            return
        try:
            import wandb

            with _no_prompt():
                run = wandb.init(**_run_options(wandb, cfg, teacher, run_id, capture_console))
            if run.disabled:
                self._say("Weights & Biases: off (WANDB_MODE=disabled)")
                return
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
        except Exception as error:  # network, login, disk, a foreign version: none of them is worth a training run
            self._say(f"Weights & Biases: off, it did not start ({_reason(error)}). Training continues without it.")
            return
        self._run, self._wandb = run, wandb
        where = f"offline, `wandb sync {Path(run.dir).parent}` uploads it" if run.offline else run.url
        self._say(f"Weights & Biases: {where}")

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        self._call("metrics", lambda run: run.log({**row, "step": step}))

    def table(self, step: int, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        def send(run: Any) -> None:
            table = self._wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
            run.log({name: table, "step": step})

        self._call("tables", send)

    def video(self, step: int, name: str, path: Path) -> None:
        self._call("videos", lambda run: run.log({name: self._wandb.Video(str(path)), "step": step}))

    def artifact(self, path: Path, name: str, kind: str) -> None:
        def send(run: Any) -> None:
            artifact = self._wandb.Artifact(name, type=kind)
            artifact.add_file(str(path))
            run.log_artifact(artifact)

        self._call("artifacts", send)

    def alert(self, title: str, text: str) -> None:
        self._call("alerts", lambda run: run.alert(title=title, text=text, level="ERROR"))

    def finish(self, failed: bool) -> None:
        self._call("finish", lambda run: run.finish(exit_code=int(failed)))
        self._run = None

    def _call(self, what: str, action: Callable[[Any], None]) -> None:
        """Run ``action``; after a failure leave this kind of output out, and everything if metrics failed."""
        if self._run is None or what in self._failed:
            return
        try:
            action(self._run)
        except Exception as error:  # as in start
            self._failed.add(what)
            if what == "metrics":
                self._run = None
            self._say(f"Weights & Biases: {what} off after an error ({_reason(error)}). Training continues.")


def _run_options(
    wandb: Any, cfg: Config, teacher: Config | None, run_id: str | None, capture_console: bool
) -> dict[str, Any]:
    """Arguments of ``wandb.init``. Settings left out keep what the user's environment says."""
    settings: dict[str, Any] = {"finish_timeout": float(os.environ.get("WANDB_FINISH_TIMEOUT", WANDB_FINISH_TIMEOUT))}
    if cfg.wandb_silent:
        settings["silent"] = True
    if not capture_console:  # a live line would arrive there as thousands of lines
        settings["console"] = "off"
    experiment = f"{cfg.task}-{cfg.exp_name or 'default'}"[:100]
    size = "custom-size" if cfg.model_size is None else f"{cfg.model_size}M"
    return {
        "project": cfg.wandb_project,
        "entity": cfg.wandb_entity,
        "dir": str(cfg.run_dir),
        "id": run_id,
        "resume": "allow" if run_id else None,
        "name": f"{experiment}-{cfg.seed}",
        "group": experiment,
        "tags": [cfg.task[:64], size, "from-scratch" if teacher is None else "distilled"],
        "config": {"student": cfg.to_dict(), "teacher": None if teacher is None else teacher.to_dict()},
        "reinit": "finish_previous",
        "settings": wandb.Settings(**settings),
    }


@contextlib.contextmanager
def _no_prompt() -> Iterator[None]:
    """Standard input that is no terminal, so that a missing login is an error at once, not a question for ever."""
    stdin = sys.stdin
    with open(os.devnull) as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = stdin


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
