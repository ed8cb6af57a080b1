"""Every public checkpoint layout as pure functions on flat dicts name -> tensor.

docs/algorithm.md, "Checkpoint layouts" and "Quantised weights".

The world model's own state dict has layout (a), float32. No function changes the dict it is given; a tensor that needs
no conversion is returned as it is, not copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tdmpc2.config import MODEL_SIZES, WIDTHS, Config, parse_cfg
from tdmpc2.tasks import TASK_SETS, TASKS, TaskSpec, nearest, task_names

#: The encoder of states, which models of images do not have.
STATE_ENCODER = "_encoder.state"
#: The network that only models of ``episodic`` tasks have.
TERMINATION = "_termination"
#: The networks that act, by the name of their parameters in layout (a), with the parts of their input.
NETWORKS = {
    STATE_ENCODER: ("obs", "task"),
    "_dynamics": ("latent", "task", "action"),
    "_reward": ("latent", "task", "action"),
    "_pi": ("latent", "task"),
    "_Qs": ("latent", "task", "action"),
    TERMINATION: ("latent", "task"),
}
_PARTS = ("weight", "bias", "ln.weight", "ln.bias")  # (a) numbers the head tensors 4 * layer + position here
_PIXELS = "_encoder.rgb.2.weight"  # the first convolution
_GROUPS_B = ("_Qs.params", "_detach_Qs_params", "_target_Qs_params")
_EXTRAS_B = ("_action_masks", "log_std_min", "log_std_dif")
_HEAD_A = re.compile(r"(_Qs|_target_Qs)\.params\.(\d+)")
_HEAD_B = re.compile(r"(_Qs|_target_Qs)[._]params\.(\d+)\.(weight|bias|ln\.weight|ln\.bias)")
_LAYER_C = re.compile(r"(_encoder\.state|_dynamics\.0|_reward|_pi)\.(\d+)\.(weight|bias)")


_PREFIX = re.compile(r"(?:_orig_mod\.|module\.|model\.)+")  # of torch.compile, DataParallel and wrapper classes


# -- names ------------------------------------------------------------------------------------------------------------


def without_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same tensors without what wrappers put before every name, such as ``module.``."""
    first = _PREFIX.match(next(iter(state), ""))
    if first is None or not all(name.startswith(first[0]) for name in state):
        return dict(state)
    return {name.removeprefix(first[0]): value for name, value in state.items()}


def layout_of(state: Mapping[str, Any]) -> str:
    """``"a"``, ``"b"`` or ``"c"``.

    Raises:
        ValueError: none of them; the message shows some of the names found.
    """
    if "_detach_Qs_params.0.weight" in state or "_Qs.params.0.weight" in state:
        return "b"
    if "_dynamics.0.0.weight" in state:
        return "c"
    if "_Qs.params.0" in state or "_dynamics.0.weight" in state:
        return "a"
    raise ValueError(
        f"Not the weights of a TD-MPC2 model: found {_some(state) or 'nothing'}; "
        "expected names such as '_encoder.state.0.weight' and '_Qs.params.0'"
    )


def rename(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of any layout as stored, under their layout (a) names; (b)'s duplicates and metadata are dropped.

    Raises:
        ValueError: unknown layout, an entry that is not a tensor, or names of two layouts.
    """
    to_a = _NAME_TO_A[layout_of(state)]
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        # Builds of autumn 2024 stored layout (b)'s target heads a second time, as '_target_Qs.params'.
        duplicate = name.startswith("_target_Qs.params.") and "_target_Qs_params.0.weight" in state
        if (new_name := to_a(name)) is None or duplicate:
            continue
        if not isinstance(value, Tensor):
            raise ValueError(f"'{name}' is a {type(value).__name__}, not a tensor")
        if new_name in renamed:
            raise ValueError(f"'{name}' and another entry are both '{new_name}' in layout (a): two layouts mix")
        renamed[new_name] = value
    return renamed


def _name_from_b(name: str) -> str | None:
    if name.startswith("_detach_Qs") or name in _EXTRAS_B or name.endswith((".__batch_size", ".__device")):
        return None
    if match := _HEAD_B.fullmatch(name):
        return f"{match[1]}.params.{4 * int(match[2]) + _PARTS.index(match[3])}"
    return name


def _name_from_c(name: str) -> str:
    # Linear, LayerNorm and activation were three modules in a row; the encoder had one module before them, and the
    # dynamics net kept its last LayerNorm outside of the row.
    if name in ("_dynamics.1.weight", "_dynamics.1.bias"):
        return name.replace(".1.", ".2.ln.")
    if not (match := _LAYER_C.fullmatch(name)):
        return name
    layer, module = divmod(int(match[2]) - (match[1] == "_encoder.state"), 3)
    if module == 2:
        return name
    return f"{match[1].removesuffix('.0')}.{layer}.{'ln.' if module else ''}{match[3]}"


_NAME_TO_A: dict[str, Callable[[str], str | None]] = {"a": str, "b": _name_from_b, "c": _name_from_c}


# -- conversion -------------------------------------------------------------------------------------------------------


def to_layout_a(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Float32 layout (a) from any layout, half precision or quantised form.

    An int8 tensor is multiplied by the ``<name>.scale`` beside it, a ``torch.qint8`` one by its own scale. If there are
    no target heads at all, they are copies of the online heads.

    Raises:
        ValueError: unknown layout, an entry that is not a tensor of weights, or an int8 tensor without fitting scale.
    """
    stored = rename(state)
    scales = {f"{name}.scale" for name, tensor in stored.items() if tensor.dtype == torch.int8}
    new = {
        name: _dequantise(name, tensor.detach(), stored.get(f"{name}.scale"))
        for name, tensor in stored.items()
        if name not in scales
    }
    if not any(name.startswith("_target_Qs.") for name in new):
        online = [name for name in new if name.startswith("_Qs.")]
        new |= {f"_target{name}": new[name].clone() for name in online}
    return new


def _dequantise(name: str, tensor: Tensor, scale: Tensor | None) -> Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    if tensor.is_floating_point():
        return tensor.float()
    if tensor.dtype != torch.int8:
        raise ValueError(f"'{name}' holds {tensor.dtype}; weights are floating point or int8")
    if scale is None:
        raise ValueError(f"'{name}' is int8, but '{name}.scale' is missing: the file is incomplete, quantise it again")
    sizes = zip(reversed(scale.shape), reversed(tensor.shape), strict=False)
    if scale.ndim > tensor.ndim or any(have not in (1, want) for have, want in sizes):
        raise ValueError(f"'{name}.scale' {list(scale.shape)} does not broadcast to '{name}' {list(tensor.shape)}")
    return tensor.float() * scale.float()


def to_layout_b(
    state: Mapping[str, Any], action_masks: Tensor | None, log_std_min: float, log_std_dif: float
) -> dict[str, Any]:
    """Float32 layout (b), which opens in current TD-MPC2.

    Args:
        state: any layout.
        action_masks: [num_tasks, A], 1 for the actions a task has; ``None`` for a single-task model.
        log_std_min: lower bound of the policy's log standard deviation.
        log_std_dif: distance from the lower to the upper bound.
    """
    new: dict[str, Any] = {}
    for name, tensor in to_layout_a(state).items():
        if not (match := _HEAD_A.fullmatch(name)):
            new[name] = tensor
            continue
        layer, part = divmod(int(match[2]), 4)
        for group in _GROUPS_B[:2] if match[1] == "_Qs" else _GROUPS_B[2:]:
            new[f"{group}.{layer}.{_PARTS[part]}"] = tensor
    for group in _GROUPS_B:
        new[f"{group}.__batch_size"] = new["_Qs.params.0.weight"].shape[:1]
        new[f"{group}.__device"] = None
    if action_masks is not None:
        new["_action_masks"] = action_masks.float()
    for name, bound in (("log_std_min", log_std_min), ("log_std_dif", log_std_dif)):
        new[name] = torch.tensor(int(bound) if float(bound).is_integer() else bound)
    return new


# -- sizes ------------------------------------------------------------------------------------------------------------


def infer_sizes(state: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of the stored model, any layout, quantised or not.

    Returns:
        ``enc_dim, num_enc_layers, mlp_dim, latent_dim, num_q, task_dim, num_bins, obs_dim, action_dim, num_tasks``;
        the last and ``task_dim`` are 0 for a single-task model. A model of images has ``num_channels`` in the place of
        ``enc_dim, num_enc_layers`` and ``obs_dim``.

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
    if _PIXELS in tensors:
        encoder, observes = {"num_channels": shape(_PIXELS, 4)[0]}, {}
    else:
        enc_dim, encoder_input = shape(f"{STATE_ENCODER}.0.weight")
        layers = sum(bool(re.fullmatch(r"_encoder\.state\.\d+\.weight", name)) for name in tensors)
        encoder, observes = {"enc_dim": enc_dim, "num_enc_layers": layers}, {"obs_dim": encoder_input - task_dim}
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
        keys |= {"obs": "rgb", "num_channels": sizes["num_channels"]}
    keys["episodic"] = any(name.startswith(f"{TERMINATION}.") for name in state)
    if bounds := log_std_bounds(state):
        keys |= {"log_std_min": bounds[0], "log_std_max": sum(bounds)}
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
        listing = "; ".join(f"{kind}: {_some(names, 8)}" for kind, names in found.items() if names)
        raise ValueError(f"{origin} does not fit the model. {_likely_fix(state, expected)} {listing}")


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
    heads = [any(name.startswith(f"{TERMINATION}.") for name in names) for names in (state, expected)]
    if heads[0] and not heads[1]:
        return "It was trained with episodic=true, which has a termination head this model does not have."
    if heads[1] and not heads[0]:
        return "It was trained with episodic=false and has no termination head, which this model has."
    try:
        file, model = infer_sizes(state), infer_sizes(expected)
    except ValueError:
        return "It is incomplete or another architecture."
    return _fixes(file, model) or "It is incomplete or has extra tensors."


def _fixes(file: Mapping[str, int], model: Mapping[str, int]) -> str:
    """Say in which sizes a file and a model differ and what to set; nothing if they do not."""
    fixes = []
    if ("num_channels" in file) != ("num_channels" in model):
        return f"It was trained with obs={'rgb' if 'num_channels' in file else 'state'}: set that."
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
        listing = ", ".join(f"{key} {file[key]} instead of {model[key]}" for key in differing)
        remedy = " ".join(f"{key}={'null' if value is None else value}" for key, value in settings.items())
        fixes.append(f"Its sizes differ ({listing}): set {remedy}.")
    return " ".join(fixes)


def _tasks(sizes: Mapping[str, int]) -> str:
    number = sizes["num_tasks"]
    return f"{number} tasks ({task_set(number) or 'unknown set'})" if number else "a single task"


def _some(names: Iterable[object], limit: int = 4) -> str:
    listed = [str(name) for name in names]
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest
