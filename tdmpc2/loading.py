"""From a checkpoint file to an agent that acts: architecture and tasks come from the file itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike
from typing import Any

from tdmpc2.acceleration.cpu.networks import unsupported
from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints import sizes
from tdmpc2.checkpoints.files import Checkpoint, load_file, naming
from tdmpc2.checkpoints.shipped import is_name, shipped_file
from tdmpc2.config import RUN_KEYS, Config, parse_cfg
from tdmpc2.envs.modules import import_module_of
from tdmpc2.envs.task_sets import names_file, own_set
from tdmpc2.precision import execution
from tdmpc2.tasks import TASK_SETS, TASKS, listed, matching, nearest

_log = logging.getLogger("tdmpc2")


def load_agent(
    source: str | PathLike[str] | Mapping[str, Any] | Checkpoint,
    *,
    device: str = "auto",
    precision: str = "auto",
    compile: bool | str = "auto",
    quiet: bool = False,
    **overrides: Any,
) -> TDMPC2:
    """Build an agent with the architecture, tasks and weights of a file of any public layout or precision.

    Args:
        source: file, one on a hub as ``hf://user/name[@revision][/file]``, the name of a model that comes with the
            project (:mod:`tdmpc2.checkpoints.shipped`), or a dict as read from a file, or what
            :func:`~tdmpc2.checkpoints.files.load_file` read.
        device: where it computes; ``auto`` prefers an accelerator.
        precision: ``auto``, ``fp32``, ``bf16``, ``fp16`` or ``int8``; ``auto`` is the fastest that is correct for the
            file here. An agent below fp32 acts but does not train.
        compile: how it plans. ``auto`` is the fastest way that its use repays: the CPU kernels from the first plan on
            where the CPU has what they need; else plainly, and compiled by torch after 1,000 plans, which then
            takes a minute. ``True`` compiles in the first plan, as a control loop will want it; ``False`` never.
            :meth:`~tdmpc2.agent.TDMPC2.compile_planner` decides anew for a known number of plans.
        quiet: log neither what it computes in nor how it plans.
        overrides: keys of :class:`~tdmpc2.config.Config` that win over the file's, such as ``num_samples`` or
            ``task``; a task of a multi-task file selects that task. ``num_threads`` is for commands: in a program,
            threads are ``torch.set_num_threads``'s.

    Raises:
        ValueError: unreadable file, an unknown name, or a task the file does not have.
    """
    if not isinstance(source, (str, PathLike, Mapping, Checkpoint)):
        raise ValueError(f"load_agent({source!r:.60}): name a checkpoint file, or pass a dict as read from one")
    if isinstance(source, (str, PathLike)) and is_name(source):
        source = shipped_file(str(source))
    file = source if isinstance(source, Checkpoint) else load_file(source)
    cfg = config_of(file, device=device, precision=precision, compile=compile, **overrides)
    with naming(file.origin):
        sizes.check_sizes(file.model, cfg)  # before a model of these sizes takes its memory
        agent = TDMPC2(cfg)
        agent.model.load_state_dict(file.model)
    encoded = agent.cfg.mpc or agent.cfg.obs == "state"  # a policy of images acts without the kernels
    kernels = encoded and agent.cfg.compile != "false" and not unsupported(agent.cfg)
    with naming(file.origin):
        chosen = execution(precision, file, agent.device, kernels=kernels)
    if chosen.note and not quiet:
        _log.warning("%s: %s", file.origin, chosen.note)
    if chosen.name != "fp32":
        agent.set_precision(chosen.name, chosen.format_of, chosen.compute_dtype)
    agent.planner.speed_up_with_use(agent.cfg.compile, quiet=quiet)
    return agent


def config_of(file: Checkpoint, **overrides: Any) -> Config:
    """The configuration of a file's agent: the file's own keys, or what its tensors tell, changed by ``overrides``.

    Raises:
        ValueError: a task the file does not have, more than one, or an unknown key.
    """
    task = overrides.pop("task", None)
    if not isinstance(task, (str, type(None))):
        raise ValueError(f"task={task} must be one name; tasks=[...] chooses some of a task set")
    if file.config is None:
        with naming(file.origin):
            cfg = sizes.infer_config(file.model, task)
    else:
        keys = {key: value for key, value in file.config.items() if key not in RUN_KEYS}
        with naming(file.origin):
            cfg = parse_cfg(keys, file.origin, from_file=True)
        _check_table(cfg, file.origin)
    if task is not None and names_file(task):
        task = _name_of_set(task, cfg, file.origin)
    if task is not None and task != cfg.task:
        if task not in cfg.task_names or task in TASK_SETS:
            raise ValueError(
                f"task={task}: {file.origin} was trained on '{cfg.task}' ({listed(cfg.task_names)})."
                f"{nearest(task, (cfg.task, *cfg.task_names))}"
            )
        overrides.setdefault("tasks", (task,))
    elif task is not None and cfg.multitask:
        overrides.setdefault("tasks", None)
    chosen = overrides.get("tasks")
    several = [str(name) for name in chosen] if isinstance(chosen, (list, tuple)) else []
    chosen = matching(several, cfg.task_names, file.origin)
    strangers = [name for name in chosen if name not in cfg.task_names]
    if strangers:
        raise ValueError(
            f"tasks: '{strangers[0]}' is none of the tasks of {file.origin} ({listed(cfg.task_names)})."
            f"{nearest(str(strangers[0]), cfg.task_names)}"
        )
    for name in (task, *several):
        if name is not None and name in (cfg.task, *cfg.task_names):
            import_module_of(name)  # named by the user, unlike the tasks of the file
    return cfg.replace(**overrides)


def _name_of_set(path: str, cfg: Config, origin: str) -> str:
    """Read the name of a task set from its YAML file, and import the modules of its tasks.

    Raises:
        ValueError: the file cannot be read, or it is not the set that the checkpoint was trained on.
    """
    own = own_set(path)
    assert own is not None
    if (own.name, own.tasks) != (cfg.task, cfg.task_names):
        raise ValueError(
            f"task={path} is the task set '{own.name}' ({listed(own.tasks)}), but {origin} was trained on '{cfg.task}' "
            f"({listed(cfg.task_names)})"
        )
    for name in own.tasks:
        import_module_of(name)
    return own.name


def _check_table(cfg: Config, origin: str) -> None:
    """Raise ``ValueError`` where a file says of a known task what the table of tasks does not."""
    for spec in (padded.unpadded() for padded in cfg.task_specs):
        if (known := TASKS.get(spec.name, spec)) != spec:
            name = next(name for name, value in vars(known).items() if value != getattr(spec, name))
            said, true = getattr(spec, name), getattr(known, name)
            raise ValueError(
                f"{origin} says that {name} of '{spec.name}' is {said}, but it is {true}: the file is damaged, or its "
                "task is another one of that name"
            )
