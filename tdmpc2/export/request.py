"""Requests for an export, and the model that is exported."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import Checkpoint, formats_of, load_file, precision_of
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.quantization.recipes import RECIPES, quantize_state
from tdmpc2.support.names import safe_name

RECIPE = "int8-weight-only"  # of int8 exports
_INT8 = ("int8", "qint8")


@dataclass(frozen=True)
class Request:
    """An export, as asked for on the command line.

    Attributes:
        checkpoint: file to export.
        task: the only task, or None.
        tasks: the tasks in their order; empty: all of the file.
        precision: of the weights.
        envs: number of environments that act at once.
        out: where to write; None: a name made of the checkpoint's and the task's, in ``folder``.
        folder: see ``out``; None: beside the checkpoint.
        force: replace what is there.
        check: compare what was written with the plain model.
        data: directory of episodes to compare on; None: play some.
        steps: of each task to compare on.
        overrides: settings of the planner.
    """

    checkpoint: Path
    task: str | None = None
    tasks: tuple[str, ...] = ()
    precision: str = "fp32"
    envs: int = 1
    out: Path | None = None
    folder: Path | None = None
    force: bool = False
    check: bool = False
    data: str | None = None
    steps: int = 8
    overrides: Mapping[str, Any] | None = None

    @property
    def default_folder(self) -> Path:
        """Where files are written whose name was not asked for."""
        return self.checkpoint.parent if self.folder is None else self.folder

    def stem(self, precision: str) -> str:
        """Name what is written by the checkpoint, the one task and the precision, which a quantised copy's name has."""
        named = not precision or self.checkpoint.stem.endswith(f"_{precision}")
        parts = [self.checkpoint.stem, safe_name(self.task) if self.task else "", "" if named else precision]
        return "_".join(filter(None, parts))

    def check_free(self, paths: Iterable[Path]) -> None:
        """Raise ``ValueError`` if a file to write is there and must stay, or is the checkpoint itself."""
        paths = list(paths)
        for path in paths:
            if path.exists() and path.samefile(self.checkpoint):
                raise ValueError(f"{path} is the checkpoint itself: --out writes elsewhere")
        if not self.force and (there := [str(path) for path in paths if os.path.lexists(path)]):
            raise ValueError(f"There is already {', '.join(there)}: --force replaces, --out writes elsewhere")


class Source(NamedTuple):
    """The model that is exported."""

    file: Checkpoint  # as read, with its sha256
    model: WorldModel  # on the CPU, with weights in the precision asked for and products in float32
    reference: WorldModel  # the file's own weights in float32

    @property
    def cfg(self) -> Config:
        """Its configuration, with the planner's settings asked for."""
        return self.model.cfg


def load(request: Request) -> Source:
    """Read the file and bring its weights to the precision asked for.

    Raises:
        ValueError: unreadable file, or a task it does not have.
    """
    file = load_file(request.checkpoint, identify=True)
    keys = {**(request.overrides or {})}
    if request.task is not None:
        keys["task"] = request.task
    if request.tasks:
        keys["tasks"] = request.tasks
    reference = _plain(file, keys).model.requires_grad_(False).eval()
    if request.precision != "int8":
        return Source(file, reference, reference)
    lower = file
    if precision_of(file.model) not in ("int8", "mixed"):
        lower = replace(file, model=quantize_state(file.model, RECIPES[RECIPE], file.origin))
    agent, formats = _plain(lower, keys), formats_of(lower.model)
    agent.set_precision(RECIPE, lambda name: RECIPE if formats[name] in _INT8 else "fp32", torch.float32)
    return Source(file, agent.model.requires_grad_(False).eval(), reference)


def _plain(file: Checkpoint, keys: Mapping[str, Any]) -> TDMPC2:
    return load_agent(file, device="cpu", precision="fp32", compile=False, quiet=True, **keys)
