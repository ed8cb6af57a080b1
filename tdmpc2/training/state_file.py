"""Reading ``state.pt``: every entry is checked against the agent that it is to continue, before any is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from tdmpc2.acceleration.compiled_update import UpdatePath
from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import FORMAT
from tdmpc2.checkpoints.reading import read_file
from tdmpc2.checkpoints.run_state import NEW_RUN
from tdmpc2.support.draws import load_generator
from tdmpc2.support.entries import Entry, check_entries, flag, nothing_or, number, one_of, record, text, whole
from tdmpc2.support.text import shown

#: Entries of the file. Files of version 0.1.0 lack those that may be missing.
STATE = {
    "format": whole(0, FORMAT).optional,
    "weights": record(),
    "training": record(),
    "step": whole(),
    "wandb_id": nothing_or(text(r"[\w.-]{1,128}", "a name of letters and digits")),
    "wall_seconds": nothing_or(number(0)).optional,
    "parts": record().optional,
}
#: Entries of its ``training``.
TRAINING = {
    "optim": record(),
    "pi_optim": record(),
    "scale": Entry(lambda v: isinstance(v, Tensor), "a number as a tensor"),
    "generator": Entry(lambda v: isinstance(v, Tensor), "the bytes of a generator"),
    "distillation": record().optional,
    "update_path": nothing_or(one_of(get_args(UpdatePath))).optional,
    "compiled": nothing_or(flag()).optional,  # of versions without fused layers
}
_DISTILLATION = {
    "updates": whole(),
    "loss": Entry(lambda v: isinstance(v, Tensor), "a number as a tensor"),
    "first_loss": Entry(lambda v: isinstance(v, Tensor), "a number as a tensor"),
    "projection": record().optional,
    "pca": record().optional,
}
_MOMENTS = ("exp_avg", "exp_avg_sq")
_SETTINGS = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")  # those that decide what an update is
_MOST_GENERATOR = 1 << 14  # bytes of a generator's state, of any kind of device


class State(NamedTuple):
    """Content of ``state.pt``."""

    weights: dict[str, Tensor]
    training: dict[str, Any]
    step: int
    wandb_id: str | None
    wall_seconds: float | None  # trained until then; None: the file does not say
    parts: Mapping[str, Any]  # states of the run's other parts by name

    def load_into(self, agent: TDMPC2) -> None:
        """Bring the agent to where it was."""
        with torch.no_grad():
            agent.model.load_state_dict(self.weights)
        agent.load_training_state(self.training)


def read_state(path: Path, agent: TDMPC2) -> State:
    """Read a training state and check it against the agent that is to go on from it.

    Args:
        path: ``state.pt`` of a run directory.
        agent: of the run's configuration; it is not changed.

    Raises:
        ValueError: it cannot be read, or an entry is missing or does not fit; the message names file, entry and remedy.
    """
    remedy = f"{NEW_RUN}, with checkpoint={path.with_name('model.pt')} if it is to start from that file's weights"
    content = check_entries(str(path), read_file(path), STATE, remedy)
    training = check_entries(f"{path}: training", content["training"], TRAINING, remedy)
    for origin, wrong in (
        ("weights", _wrong_tensors(content["weights"], agent.model.state_dict())),
        ("training: optim", _wrong_optimiser(training["optim"], agent.optim)),
        ("training: pi_optim", _wrong_optimiser(training["pi_optim"], agent.pi_optim)),
        ("training: scale", _wrong_scale(training["scale"], agent.scale)),
        ("training: generator", _wrong_generator(training["generator"], agent.generator)),
    ):
        if wrong:
            raise ValueError(f"{path}: {origin}: {wrong}. {remedy}")
    if "distillation" in training:
        origin = f"{path}: training: distillation"
        own = check_entries(origin, training["distillation"], _DISTILLATION, remedy)
        if wrong := _wrong_distillation(own, agent):
            raise ValueError(f"{origin}: {wrong}. {remedy}")
    return State(
        content["weights"], training, content["step"], content["wandb_id"], content.get("wall_seconds"),
        content.get("parts", {}),
    )  # fmt: skip


# -- what is wrong, in words; nothing if all is right -----------------------------------------------------------------


def _wrong_tensors(found: Mapping[str, Any], expected: Mapping[str, Tensor]) -> str:
    if odd := sorted(found.keys() ^ expected.keys()):
        return f"'{odd[0]}' is {'missing' if odd[0] in expected else 'none of this model'}"
    return next((f"'{name}' {wrong}" for name in expected if (wrong := _wrong_tensor(found[name], expected[name]))), "")


def _wrong_tensor(found: Any, expected: Tensor, least: float | None = None) -> str:
    if not isinstance(found, Tensor):
        return f"is {shown(found)}, expected a tensor"
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return (
            f"has shape {list(found.shape)} of {found.dtype}, expected {list(expected.shape)} of {expected.dtype}, as "
            "this run's configuration has it"
        )
    total = found.sum(dtype=torch.float32) if found.is_floating_point() else torch.zeros(())
    if not total.isfinite() and not found.isfinite().all():
        return "has values that are not finite"
    if least is not None and found.numel() and found.min() < least:
        return f"has the value {float(found.min()):g}, expected at least {least:g}"
    return ""


def _wrong_optimiser(found: Mapping[str, Any], optimiser: torch.optim.Optimizer) -> str:
    own = optimiser.state_dict()["param_groups"]
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    groups, moments = found.get("param_groups"), found.get("state")
    if not isinstance(groups, list) or not isinstance(moments, Mapping):
        return "it lacks param_groups or state"
    if len(groups) != len(own):
        return f"it has {len(groups)} groups of parameters, expected {len(own)}"
    for there, here in zip(groups, own, strict=True):
        if not isinstance(there, Mapping) or not _equal(there.get("params"), here["params"]):
            return "its groups are of other parameters than this run's"
        for key in _SETTINGS:
            value = there.get(key, here[key])
            if not _equal(value, here[key]):
                return f"{key} is {shown(value)}, but {shown(here[key])} in this run"
    for index, entry in moments.items():
        if type(index) is not int or not 0 <= index < len(parameters):
            return f"it has moments of parameter {shown(index)}, and there are {len(parameters)}"
        if not isinstance(entry, Mapping) or set(entry) != {"step", *_MOMENTS}:
            return f"the moments of parameter {index} are {shown(entry)}, expected step, exp_avg and exp_avg_sq"
        if wrong := _wrong_number(entry["step"]):
            return f"step of parameter {index} {wrong}"
        for name in _MOMENTS:
            least = 0.0 if name == "exp_avg_sq" else None
            if wrong := _wrong_tensor(entry[name], parameters[index].detach(), least):
                return f"{name} of parameter {index} {wrong}"
    return ""


def _equal(found: Any, expected: Any) -> bool:
    """Compare what a file holds, which may be a tensor, with a plain value or a sequence of them."""
    if isinstance(expected, (list, tuple)):
        same = isinstance(found, (list, tuple)) and len(found) == len(expected)
        return same and all(map(_equal, found, expected))
    return not isinstance(found, (Tensor, list, tuple)) and bool(found == expected)


def _wrong_number(value: Any, positive: bool = False) -> str:
    """Say what is wrong with a finite number from 0 on that is kept as a tensor."""
    if not isinstance(value, Tensor) or value.shape != () or value.dtype != torch.float32:
        kind = f"a tensor of shape {list(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else shown(value)
        return f"is {kind}, expected one float32"
    if not value.isfinite() or value < 0 or (positive and value == 0):
        return f"is {float(value):g}, expected a finite number {'above' if positive else 'from'} 0"
    return ""


def _wrong_scale(value: Tensor, expected: Tensor) -> str:
    """Say what is wrong with the running range of values, of all tasks or [T] of each."""
    if expected.ndim:
        return _wrong_tensor(value, expected, least=1.0)
    return _wrong_number(value, positive=True)


def _wrong_generator(value: Tensor, generator: torch.Generator) -> str:
    if value.dtype != torch.uint8 or value.ndim != 1 or not 0 < len(value) <= _MOST_GENERATOR:
        return f"is a tensor of shape {list(value.shape)}, {value.dtype}, expected the bytes of a generator"
    if value.shape == generator.get_state().shape:
        try:
            load_generator(torch.Generator(generator.device), value)
        except (RuntimeError, TypeError) as error:
            return f"is not the state of a generator ({shown(str(error))})"
    return ""


def _wrong_distillation(found: Mapping[str, Any], agent: TDMPC2) -> str:
    for name in ("loss", "first_loss"):
        if wrong := _wrong_number(found[name]):
            return f"{name} {wrong}"
    projection = agent.distillation.projection
    if projection is not None:
        wrong = _wrong_tensors(found.get("projection", {}), projection.state_dict())
        if wrong:
            return f"projection: {wrong}"
    if "pca" in found:
        mean, components = found["pca"].get("mean"), found["pca"].get("components")
        if not isinstance(mean, Tensor) or mean.ndim != 1 or len(found["pca"]) != 2:
            return "pca lacks its mean"
        expected = {"mean": torch.empty(len(mean)), "components": torch.empty(len(mean), agent.cfg.latent_dim)}
        if agent.teacher is not None and len(mean) != agent.teacher.cfg.latent_dim:
            return f"pca is of {len(mean)} latents, the teacher has {agent.teacher.cfg.latent_dim}"
        if wrong := _wrong_tensors({"mean": mean, "components": components}, expected):
            return f"pca: {wrong}"
    return ""
