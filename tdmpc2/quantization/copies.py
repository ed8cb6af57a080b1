"""The copies of a checkpoint that are written: their names, what they hold, and what they are compared with.

Files of other projects, int8 ones included, are read in :mod:`tdmpc2.checkpoints.layouts`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tdmpc2.checkpoints.card import card_of_copy
from tdmpc2.checkpoints.files import FORMAT, Checkpoint, load_file, precision_of
from tdmpc2.checkpoints.sizes import facts_of, infer_sizes, size_keys
from tdmpc2.config import Config, parse_cfg
from tdmpc2.loading import config_of
from tdmpc2.quantization.recipes import RECIPES, Recipe, deployable, quantize_state
from tdmpc2.tasks import TaskSpec

#: Recipes by name; the matrices of ``mixed`` are chosen by :func:`tdmpc2.quantization.calibration.mixed_recipe`.
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


def is_copy(path: Path, payload: Mapping[str, Any], *, exactly: bool = True) -> bool:
    """True if a file holds just this, as one that an interrupted call has written.

    Args:
        path: the file.
        payload: what would be written.
        exactly: false: it may be of another recipe, whose matrices are not chosen yet.
    """
    try:
        there, new = load_file(path), load_file(payload)
    except ValueError:  # something else has this name
        return False
    if (there.config, there.step) != (new.config, new.step) or not exactly:
        return (there.config, there.step) == (new.config, new.step)
    return (
        there.extra == new.extra
        and there.model.keys() == new.model.keys()
        and all(torch.equal(tensor, new.model[name]) for name, tensor in there.model.items())
    )


def check_others(paths: Sequence[Path], checkpoint: Checkpoint, cfg: Config, targets: Iterable[Path]) -> None:
    """Raise ``ValueError`` unless these files can be measured beside a checkpoint.

    Args:
        paths: of the other files.
        checkpoint: what they are compared with.
        cfg: its own configuration.
        targets: files that will be written.
    """
    for index, path in enumerate(paths):
        other = load_file(path)
        if any(target.exists() and target.samefile(path) for target in targets):
            raise ValueError(f"--compare {path} would be replaced: --out DIR writes elsewhere")
        if any(path.samefile(before) for before in paths[:index]):
            raise ValueError(f"--compare {path} is named twice")
        if infer_sizes(other.model) != infer_sizes(checkpoint.model):
            raise ValueError(f"--compare {path}: not the same model as {checkpoint.origin}, its sizes differ")
        if other.config is None:
            continue
        own = config_of(other)
        if (cfg.task != _UNNAMED and own.task_names != cfg.task_names) or own.horizon != cfg.horizon:
            raise ValueError(
                f"--compare {path}: not the same model as {checkpoint.origin}: it is of {own.task} with horizon "
                f"{own.horizon}, that of {cfg.task} with horizon {cfg.horizon}"
            )


def check_stored(checkpoint: Checkpoint, name: str) -> None:
    """Raise ``ValueError`` unless a file that already has the name of a recipe holds what the name says."""
    if (stored := precision_of(checkpoint.model)) != name:
        raise ValueError(
            f"{checkpoint.origin} is called {name} but holds {stored} weights: rename it, or --out DIR writes elsewhere"
        )


def names_of(paths: Sequence[Path], taken: Iterable[str]) -> list[str]:
    """A name for each file: its own without ending, or as much of its path as tells it from the others."""
    for parts in range(1, max((len(path.absolute().parts) for path in paths), default=0) + 1):
        names = ["/".join(path.absolute().with_suffix("").parts[-parts:]) for path in paths]
        if len({*names, *taken}) == len(names) + len({*taken}):
            return names
    return [str(path) for path in paths]


def own_config(checkpoint: Checkpoint, task: str | None = None) -> dict[str, Any]:
    """A configuration to build the file's agent with.

    Args:
        checkpoint: the file.
        task: the task of a file with one task and no configuration; without it, that is called ``unnamed``.

    Raises:
        ValueError: the file has an unknown number of tasks and no configuration, or other sizes than its task.
    """
    sizes = infer_sizes(checkpoint.model)
    if checkpoint.config is None and not sizes["num_tasks"] and task is not None:
        return config_of(checkpoint, task=task).to_dict()
    if checkpoint.config is not None or sizes["num_tasks"]:
        return checkpoint.config or config_of(checkpoint).to_dict()
    if "num_channels" in sizes:
        return config_of(checkpoint).to_dict()  # refuses, and asks for the task: sizes do not tell those of images
    unnamed = TaskSpec(_UNNAMED, sizes["obs_dim"], sizes["action_dim"])
    found = {"num_bins": sizes["num_bins"], **size_keys(sizes), **facts_of(checkpoint.model)}
    return parse_cfg({"task": unnamed.name, "task_specs": (unnamed,), **found}).to_dict()


def full_payload(checkpoint: Checkpoint, task: str | None = None) -> dict[str, Any]:
    """The file in float32 without target heads, the base of all size ratios; ``task``: see :func:`own_config`."""
    return {"model": deployable(checkpoint.model), **_entries(checkpoint, task)}


def payload(checkpoint: Checkpoint, recipe: Recipe, task: str | None = None) -> dict[str, Any]:
    """Quantise a file by a recipe: the content of the new file; ``task``: see :func:`own_config`.

    Raises:
        ValueError: see :func:`~tdmpc2.quantization.recipes.quantize_state`.
    """
    model = quantize_state(checkpoint.model, recipe, checkpoint.origin)
    return {"model": model, **_entries(checkpoint, task), "recipe": recipe.entry()}


def _entries(checkpoint: Checkpoint, task: str | None) -> dict[str, Any]:
    config = own_config(checkpoint, task)
    named = checkpoint.config is not None or config["task"] != _UNNAMED
    entries = {"config": config if named else None, "format": FORMAT, "step": checkpoint.step}
    return entries | card_of_copy(checkpoint.card)


def serialised_bytes(content: Mapping[str, Any]) -> int:
    """Size of the file that holds this."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.tell()
