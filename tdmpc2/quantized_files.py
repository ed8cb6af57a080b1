"""The files of a quantised checkpoint: their names, what they hold, and what they are compared with."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tdmpc2 import layouts
from tdmpc2.checkpoint import FORMAT, Checkpoint
from tdmpc2.config import parse_cfg
from tdmpc2.loading import config_of
from tdmpc2.quantization import RECIPES, Recipe, deployable, quantize_state
from tdmpc2.tasks import TaskSpec

#: Recipes by name; the matrices of ``mixed`` are chosen by :func:`tdmpc2.calibration.mixed_recipe`.
NAMES = (*RECIPES, "mixed")
_UNNAMED = "unnamed"
_SUFFIX = re.compile(rf"_(fp32|{'|'.join(sorted(NAMES, key=len, reverse=True))})$")


def stem_of(source: Path) -> str:
    """The file's name without ending and precision."""
    return _SUFFIX.sub("", source.stem)


def target_files(source: Path, out: Path, names: Iterable[str]) -> dict[str, Path]:
    """The file of each recipe, without one that would be ``source`` itself."""
    targets = {name: out / f"{stem_of(source)}_{name}.pt" for name in names}
    return {name: path for name, path in targets.items() if not (path.exists() and path.samefile(source))}


def check_free(paths: Iterable[Path], force: bool) -> None:
    """Raise ``ValueError`` if some of the files exist and ``force`` is false."""
    if not force and (existing := [str(path) for path in paths if path.exists()]):
        raise ValueError(f"There is already {', '.join(existing)}: --force replaces, --out DIR writes elsewhere")


def own_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """A configuration to build the file's agent with; a single task that the file does not name is called ``unnamed``.

    Raises:
        ValueError: the file has an unknown number of tasks and no configuration.
    """
    sizes = layouts.infer_sizes(checkpoint.model)
    if checkpoint.config is not None or sizes["num_tasks"]:
        return checkpoint.config or config_of(checkpoint).to_dict()
    unnamed = TaskSpec(_UNNAMED, sizes["obs_dim"], sizes["action_dim"])
    widths = {"num_bins": sizes["num_bins"], **layouts.size_keys(sizes)}
    return parse_cfg({"task": unnamed.name, "task_specs": (unnamed,), **widths}).to_dict()


def full_payload(checkpoint: Checkpoint) -> dict[str, Any]:
    """The file in float32 without target heads, the base of all size ratios."""
    return {"model": deployable(checkpoint.model), **_entries(checkpoint)}


def payload(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Any]:
    """What the file of a recipe holds.

    Raises:
        ValueError: see :func:`~tdmpc2.quantization.quantize_state`.
    """
    model = quantize_state(checkpoint.model, recipe, checkpoint.origin)
    return {"model": model, **_entries(checkpoint), "recipe": recipe.entry()}


def _entries(checkpoint: Checkpoint) -> dict[str, Any]:
    config = own_config(checkpoint)
    named = checkpoint.config is not None or config["task"] != _UNNAMED
    return {"config": config if named else None, "format": FORMAT, "step": checkpoint.step}


def serialised_bytes(content: Mapping[str, Any]) -> int:
    """Size of the file that holds this."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.tell()
