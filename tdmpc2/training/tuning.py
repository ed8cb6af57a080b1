"""Starting a run from the weights of a file, also of one for many tasks: docs/algorithm.md, "Fine-tuning"."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints import layouts
from tdmpc2.checkpoints.files import Checkpoint, load_file, naming, precision_of
from tdmpc2.checkpoints.hub import why_missing
from tdmpc2.checkpoints.sizes import infer_sizes
from tdmpc2.config import PARTS, WIDTHS, Config, is_nothing, parse_cfg
from tdmpc2.loading import config_of
from tdmpc2.tasks import TASK_SETS, TaskSpec

_SIZES = ("model_size", *WIDTHS)
#: Keys that say what the weights of a file mean, besides their sizes.
_MEANING = (
    "obs", "episodic", "simnorm_dim", "num_channels", "num_bins", "vmin", "vmax", "log_std_min", "log_std_max",
    "discount_denom", "discount_min", "discount_max",
)  # fmt: skip


def keys_from_checkpoint(keys: Mapping[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """Complete the keys of a run by what the file that it starts from decides.

    What was typed stays, and a contradiction to the file is said when its weights are loaded. One task that is to be
    learned online from a file of many takes over the whole task set: ``tasks`` names the one, which is appended to the
    set if the file does not know it.

    Args:
        keys: of a configuration, as composed.
        typed: those of them that the user chose.

    Raises:
        ValueError: the file cannot be read, or has no room for the task.
    """
    path = keys.get("checkpoint")
    if is_nothing(path) or why_missing(str(path)):
        return dict(keys)  # a missing file is found before the run, with whatever else is missing
    file = load_file(str(path))
    with naming(file.origin):
        of_many = bool(infer_sizes(file.model)["num_tasks"])
    new = dict(keys)
    tuned: dict[str, Any] = {}
    if of_many and keys.get("task") not in (None, *TASK_SETS):
        alone = parse_cfg({key: keys[key] for key in ("task", "data_dir", "mode", "obs") if key in keys})
        if alone.mode == "online" and not alone.multitask:
            tuned = _one_of_many(config_of(file), alone, file.origin)
    own = config_of(file, task=None if of_many or file.config else keys.get("task"))
    for names in (_SIZES, *((name,) for name in _MEANING)):
        if not set(names) & set(typed):
            new |= {name: getattr(own, name) for name in names}
    if not of_many:
        new["task_dim"] = keys.get("task_dim")
    return new | tuned


def _one_of_many(own: Config, alone: Config, origin: str) -> dict[str, Any]:
    """Find the keys by which one task is learned by the model of a file of many."""
    (spec,) = alone.task_specs
    if alone.obs != own.obs:
        raise ValueError(f"obs={alone.obs}: {origin} was trained with obs={own.obs}: set that, or leave out checkpoint")
    if spec.obs_dim > own.obs_dim or spec.action_dim > own.action_dim:
        raise ValueError(
            f"task={spec.name} has observations of {spec.obs_dim} numbers and actions of {spec.action_dim}, and "
            f"{origin} takes at most {own.obs_dim} and {own.action_dim}: fine-tune a file whose tasks are as large, or "
            "leave out checkpoint to learn the task from the beginning"
        )
    known = {one.name: one.unpadded() for one in own.task_specs}
    if known.get(spec.name, spec) != spec:
        raise ValueError(f"{origin} knows another task called '{spec.name}': {_sizes(known[spec.name])}, not as here")
    appended = replace(spec, padding=own.task_specs[0].padding)
    specs = own.task_specs if spec.name in known else (*own.task_specs, appended)
    return {"task": own.task, "task_specs": specs, "tasks": (spec.name,), "mode": "online"}


def _sizes(spec: TaskSpec) -> str:
    return f"{spec.obs_dim} observed numbers, {spec.action_dim} actions, episodes of {spec.episode_length} steps"


def load_start(agent: TDMPC2, cfg: Config) -> str | None:
    """Load the weights that a run starts from, if it names a file; optimisers and value scale stay new.

    Parts that ``reset`` names stay the agent's own, new ones. Weights in half precision are widened. Those in int8 are
    refused: they are rounded to 255 steps, and the file that they were made from is the better start. A termination
    head that the file lacks is the agent's own, new one.

    Args:
        agent: of the run's configuration.
        cfg: ``checkpoint``.

    Returns:
        The task that the run appends to those of the file, if it does. Its row of the embedding is the agent's own.

    Raises:
        ValueError: the file cannot be read, is quantised to int8, or does not fit.
    """
    if cfg.checkpoint is None:
        return None
    file = load_file(cfg.checkpoint)
    with naming(file.origin):
        precision = precision_of(file.model)
        if precision in ("int8", "mixed"):
            raise ValueError(
                f"its weights are quantised ({precision}), which is for acting: train from the file it was made from, "
                "or from its fp16 file"
            )
        weights = layouts.to_layout_a(file.model)
        new = _appended(cfg, file)
        if new is not None and "task_embedding" in cfg.reset:
            raise ValueError(f"it does not know {new}, whose row begins anew anyway: leave task_embedding out of reset")
        if new is not None:
            rows = weights["_task_emb.weight"]
            weights["_task_emb.weight"] = torch.cat([rows, agent.model._task_emb.weight.detach()[len(rows) :].cpu()])
        head = _new_head(agent, weights)
        if head and "termination" in cfg.freeze:
            raise ValueError("it has no termination head, so that freeze=termination would keep random weights")
        agent.load(_begun_anew(agent, weights | head, cfg))
    return new


def _begun_anew(agent: TDMPC2, weights: Mapping[str, Tensor], cfg: Config) -> dict[str, Tensor]:
    """Put the agent's own weights in the place of the parts that ``reset`` names, whatever shapes the file has there.

    Of the embedding the rows of the run's tasks begin anew; those of others stay, since nothing would train them.
    """
    modules = tuple(f"{name}." for part in cfg.reset for name in PARTS[part])
    kept = {name: tensor for name, tensor in weights.items() if not (modules and name.startswith(modules))}
    own = _own(agent, *(name for part in cfg.reset for name in PARTS[part]))
    if "task_embedding" in cfg.reset and "_task_emb.weight" in weights:  # without, the agent says what differs
        rows, new = weights["_task_emb.weight"].clone(), own["_task_emb.weight"].cpu()
        if rows.shape == new.shape:  # otherwise the agent says what differs when it loads them
            rows[list(cfg.task_ids)] = new[list(cfg.task_ids)].to(rows.dtype)
        own["_task_emb.weight"] = rows
    return kept | own


def _new_head(agent: TDMPC2, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take over the agent's own termination head where the tasks of the file do not terminate, and this one does."""
    if not agent.cfg.episodic or any(name.startswith(f"{layouts.TERMINATION}.") for name in weights):
        return {}
    return _own(agent, layouts.TERMINATION)


def _own(agent: TDMPC2, *modules: str) -> dict[str, Tensor]:
    """Collect the weights that some modules of the agent have already, which are new."""
    own = agent.model.state_dict().items()
    return {name: tensor for name, tensor in own if name.startswith(tuple(f"{module}." for module in modules))}


def _appended(cfg: Config, file: Checkpoint) -> str | None:
    """Find the task that a configuration has beyond those of a file."""
    if cfg.tuned_task is None or file.task_specs != cfg.task_specs[:-1]:
        return None
    return cfg.tuned_task if cfg.tuned_task == cfg.task_specs[-1].name else None
