"""Sizes of the model in a file, told by the shapes of its tensors: its configuration, and why it fits no other."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tdmpc2.checkpoints.layouts import PIXELS, STATE_ENCODER, TERMINATION, rename, some
from tdmpc2.config import MODEL_SIZES, WIDTHS, Config, parse_cfg
from tdmpc2.tasks import TASK_SETS, TASKS, TaskSpec, nearest, task_names


def infer_sizes(state: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of the stored model, any layout, quantised or not.

    Returns:
        ``enc_dim, num_enc_layers, mlp_dim, latent_dim, num_q, task_dim, num_bins, obs_dim, action_dim, num_tasks``;
        the last and ``task_dim`` are 0 for a single-task model. A model of images has ``num_channels``, in the place of
        ``enc_dim, num_enc_layers`` and ``obs_dim`` if it observes nothing else.

    Raises:
        ValueError: unknown layout, or a tensor that tells a size is missing.
    """
    tensors = rename(state)

    def shape(name: str, dimensions: int = 2) -> torch.Size:
        if name not in tensors:
            raise ValueError(f"The sizes of the model cannot be told: '{name}' is missing")
        if tensors[name].ndim != dimensions or not tensors[name].numel():
            raise ValueError(
                f"The sizes of the model cannot be told: '{name}' has the shape {list(tensors[name].shape)}, expected "
                f"{dimensions} dimensions"
            )
        return tensors[name].shape

    num_tasks, task_dim = shape("_task_emb.weight") if "_task_emb.weight" in tensors else (0, 0)
    encoder, observes = {}, {}
    if PIXELS in tensors:
        encoder["num_channels"] = shape(PIXELS, 4)[0]
    if PIXELS not in tensors or any(name.startswith(f"{STATE_ENCODER}.") for name in tensors):
        enc_dim, encoder_input = shape(f"{STATE_ENCODER}.0.weight")
        layers = sum(bool(re.fullmatch(r"_encoder\.state\.\d+\.weight", name)) for name in tensors)
        encoder |= {"enc_dim": enc_dim, "num_enc_layers": layers}
        observes = {"obs_dim": encoder_input - task_dim}
    sizes = {
        **encoder,
        "mlp_dim": shape("_dynamics.0.weight")[0],
        "latent_dim": shape("_dynamics.2.weight")[0],
        "num_q": shape("_Qs.params.0", 3)[0],
        "task_dim": task_dim,
        "num_bins": shape("_reward.2.weight")[0],
        **observes,
        "action_dim": shape("_pi.2.weight")[0] // 2,
        "num_tasks": num_tasks,
    }
    if small := [key for key in ("obs_dim", "action_dim") if sizes.get(key, 1) < 1]:
        raise ValueError(f"The sizes of the model cannot be told: {small[0]} would be {sizes[small[0]]}")
    return sizes


def log_std_bounds(state: Mapping[str, Any]) -> tuple[float, float] | None:
    """Lower bound of the policy's log standard deviation and distance to the upper one, as layout (b) stores them.

    Raises:
        ValueError: they are not finite numbers.
    """
    bounds = []
    for name in ("log_std_min", "log_std_dif"):
        if name not in state:
            return None
        value = torch.as_tensor(state[name]).float()
        if value.numel() != 1 or not value.isfinite():
            raise ValueError(f"'{name}' has the shape {list(value.shape)}, expected one finite number")
        bounds.append(float(value))
    return bounds[0], bounds[1]


def size_keys(sizes: Mapping[str, int]) -> dict[str, int | None]:
    """The configuration keys that build these sizes: ``model_size``, or ``model_size=None`` and every width."""
    task = task_set(sizes["num_tasks"]) or ("mt30" if sizes["num_tasks"] else "single")
    specs = (TaskSpec("single", sizes.get("obs_dim", 1), sizes["action_dim"]),) if task == "single" else ()
    own = {key: sizes[key] for key in WIDTHS if key in sizes}
    for size in MODEL_SIZES:
        config = Config(task=task, task_specs=specs, model_size=size)
        if all(getattr(config, key) == value for key, value in own.items()):
            return {"model_size": size}
    return {"model_size": None, **own}


def facts_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration keys beside sizes that the tensors of a file tell: ``episodic``, and bounds of the policy."""
    keys: dict[str, Any] = {"episodic": any(name.startswith(f"{TERMINATION}.") for name in state)}
    if bounds := log_std_bounds(state):
        keys |= {"log_std_min": bounds[0], "log_std_max": sum(bounds)}
    return keys


def task_set(num_tasks: int) -> str | None:
    """The task set with that many tasks, if there is one."""
    return next((name for name, names in TASK_SETS.items() if len(names) == num_tasks), None)


def infer_config(state: Mapping[str, Any], task: str | None = None) -> Config:
    """The configuration of a file that stores none.

    Args:
        state: any layout. The log-std bounds of layout (b) are used.
        task: needed for a single-task model; for a multi-task one it only has to be among its tasks.

    Raises:
        ValueError: the task set or task cannot be told, or ``task`` does not fit the file.
    """
    sizes = infer_sizes(state)
    seen = f"observations of {sizes['obs_dim']}" if "obs_dim" in sizes else "images"
    seen = f"images, {seen}" if _observed(sizes) == "rgb+state" else seen
    needs = f"{seen} and actions of {sizes['action_dim']} entries"
    own = task_set(sizes["num_tasks"])
    if sizes["num_tasks"] and own is None:
        known = ", ".join(f"{name} ({len(names)})" for name, names in TASK_SETS.items())
        raise ValueError(f"The file has {sizes['num_tasks']} tasks and no configuration; known task sets: {known}")
    if own is not None:
        if stranger := next((name for name in task_names(task or own) if name not in TASK_SETS[own]), None):
            hint = nearest(stranger, TASK_SETS[own])
            raise ValueError(f"task={task}: '{stranger}' is not among the tasks of the file ({own}).{hint}")
    elif task is None or task in TASK_SETS:
        dims = (sizes.get("obs_dim"), sizes["action_dim"])
        fitting = [spec.name for spec in TASKS.values() if (spec.obs_dim, spec.action_dim) == dims]
        example = f", for example task={fitting[0]}" if fitting else ""
        given = "it has no configuration" if task is None else f"task={task} is a task set"
        raise ValueError(f"The file holds a single-task model with {needs}, and {given}: name its task{example}")
    keys: dict[str, Any] = {"task": own or task, "num_bins": sizes["num_bins"], **size_keys(sizes)}
    if "num_channels" in sizes:
        keys |= {"obs": _observed(sizes), "num_channels": sizes["num_channels"]}
    keys |= facts_of(state)
    config = parse_cfg(keys, origin="the checkpoint")
    if (config.obs_dim, config.action_dim) != (sizes.get("obs_dim", config.obs_dim), sizes["action_dim"]):
        raise ValueError(f"task={config.task} has {config.obs_dim} and {config.action_dim}, but the file needs {needs}")
    return config


# -- comparison -------------------------------------------------------------------------------------------------------


def check_state(state: Mapping[str, Any], expected: Mapping[str, Tensor], origin: str) -> None:
    """Compare names and shapes of two layout (a) dicts.

    Args:
        state: what was loaded.
        expected: the model's own state dict.
        origin: what was loaded, for the message.

    Raises:
        ValueError: they differ; the message lists how and names the likely fix.
    """
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {list(state[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if missing or unexpected or shapes:
        found = {"missing": missing, "unexpected": unexpected, "shapes": shapes}
        listing = "; ".join(f"{kind}: {some(names, 8)}" for kind, names in found.items() if names)
        fix = _likely_fix(state, expected) or f"It is incomplete or another architecture: {listing}"
        raise ValueError(f"{origin} does not fit the model. {fix}")


def check_sizes(state: Mapping[str, Any], config: Config) -> None:
    """Compare the sizes of a stored model with those that a configuration builds, without building it.

    Raises:
        ValueError: they differ, or the file's cannot be told; the message names the likely fix.
    """
    file = infer_sizes(state)
    model = {key: getattr(config, key) for key in file if key != "num_tasks"}
    model["num_tasks"] = len(config.task_specs) if config.multitask else 0
    if fixes := _fixes(file, model):
        raise ValueError(f"the state dict does not fit the model. {fixes}")


def _likely_fix(state: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Say what to set where that explains the difference; nothing if the names and shapes have to."""
    heads = [any(name.startswith(f"{TERMINATION}.") for name in names) for names in (state, expected)]
    if heads[0] and not heads[1]:
        return "It was trained with episodic=true, which has a termination head this model does not have."
    if heads[1] and not heads[0]:
        return "It was trained with episodic=false and has no termination head, which this model has."
    with contextlib.suppress(ValueError):
        return _fixes(infer_sizes(state), infer_sizes(expected))
    return ""


def _fixes(file: Mapping[str, int], model: Mapping[str, int]) -> str:
    """Say in which sizes a file and a model differ and what to set; nothing if they do not."""
    fixes = []
    if _observed(file) != _observed(model):
        return f"It was trained with obs={_observed(file)}: set that."
    if file["num_tasks"] != model["num_tasks"]:
        task = task_set(file["num_tasks"])
        remedy = "name its one task" if not file["num_tasks"] else f"set task={task}" if task else "use its task set"
        fixes.append(f"It has {_tasks(file)}, the model {_tasks(model)}: {remedy}.")
    elif any(file.get(key) != model.get(key) for key in ("obs_dim", "action_dim")):
        wants, has = (f"{sizes.get('obs_dim', 'images')} and {sizes['action_dim']}" for sizes in (file, model))
        fixes.append(f"Its observations and actions have {wants} entries, the model's {has}: set the task it is of.")
    differing = [key for key in (*WIDTHS, "num_bins") if file.get(key) != model.get(key)]
    file_keys, model_keys = ({**size_keys(sizes), "num_bins": sizes["num_bins"]} for sizes in (file, model))
    settings = {key: value for key, value in file_keys.items() if model_keys.get(key) != value}
    if differing and settings:
        remedy = " ".join(f"{key}={'null' if value is None else value}" for key, value in settings.items())
        fixes.append(f"{_difference(file, model, differing)}: set {remedy}.")
    return " ".join(fixes)


def _difference(file: Mapping[str, int], model: Mapping[str, int], differing: Sequence[str]) -> str:
    """Name the model sizes where both have one, which says it all, or else the widths."""
    own, here = (size_keys(sizes)["model_size"] for sizes in (file, model))
    if own is not None and here is not None and own != here:
        return f"It has model_size={own}, the model {here}"
    return f"Its sizes differ ({', '.join(f'{key} {file[key]} instead of {model[key]}' for key in differing)})"


def _observed(sizes: Mapping[str, int]) -> str:
    """Name what a model of these sizes observes, as the key ``obs`` does."""
    if "num_channels" not in sizes:
        return "state"
    return "rgb+state" if "obs_dim" in sizes else "rgb"


def _tasks(sizes: Mapping[str, int]) -> str:
    number = sizes["num_tasks"]
    return f"{number} tasks ({task_set(number) or 'unknown set'})" if number else "a single task"
