"""Configurations as they come in: composed from YAML and a command line, or recorded by a run."""

from __future__ import annotations

import logging
import typing
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from tdmpc2.config.config import Config
from tdmpc2.config.presets import with_preset
from tdmpc2.config.tables import KEYS, check_keys
from tdmpc2.config.values import convert, is_nothing
from tdmpc2.tasks import TASK_SETS

_log = logging.getLogger("tdmpc2")


def parse_cfg(
    cfg: DictConfig | Mapping[str, Any], origin: str = "the configuration", *, from_file: bool = False
) -> Config:
    """Resolve and validate a composed configuration. Builds no environment for tasks of the table.

    Says in one line each which keys were given but have no effect. The module of a task that is named here is imported.

    Args:
        cfg: keys of :class:`Config`; missing keys take their defaults.
        origin: where the keys came from, for error messages.
        from_file: they are not the user's own words: no module is imported for them.

    Raises:
        ValueError: unknown key, wrong type or value out of range.
    """
    if not isinstance(cfg, (Mapping, DictConfig)):
        raise ValueError(f"{origin} is {cfg!r:.60}, not a set of keys and their values")
    resolved = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    values: dict[str, Any] = {str(name): value for name, value in typing.cast(dict, resolved).items()}
    check_keys((name for name in values if name != "task_specs"), origin)
    composed = KEYS.keys() <= values.keys()  # by Hydra: it has all keys, also those that nobody typed
    typed = {name for name in KEYS.keys() & values.keys() if not composed or values[name] != KEYS[name].default}
    values = with_preset(values, typed)
    task = convert(KEYS["task"], str, values.get("task", Config.task)).strip()
    if task not in TASK_SETS and not values.get("task_specs"):
        from gymnasium.error import UnregisteredEnv

        from tdmpc2.envs import task_spec
        from tdmpc2.envs.task_sets import OwnSet, own_set

        try:
            found = (None if from_file else own_set(task)) or OwnSet(task, (task,))
            values["task_specs"] = found.padded([task_spec(name, from_file=from_file) for name in found.tasks])
            task = found.name
        except (UnregisteredEnv, ModuleNotFoundError, ValueError) as error:
            raise ValueError(f"task={task} in {origin}: {error}") from error
    config = Config(**{**values, "task": task})
    for line in _without_effect(config, values):
        _log.warning("%s: %s", origin, line)
    return config


def _without_effect(config: Config, given: Mapping[str, Any]) -> list[str]:
    lines = []
    if not config.multitask and given.get("task_dim"):
        lines.append(f"task_dim={given['task_dim']} has no effect: the single task {config.task} needs no embedding")
    return lines


def from_record(record: Mapping[str, Any]) -> Config:
    """Read the configuration in a run's ``run.json``, which may be older than some keys.

    Raises:
        ValueError: a value that is not allowed (any more).
    """
    known = {name: value for name, value in record.items() if name in KEYS or name == "task_specs"}
    if known.get("mpc") is False:  # they were accepted, and had no effect
        known |= dict.fromkeys(("collect_num_samples", "collect_iterations"))
    if known.get("obs", "state") != "state":  # where it is not yet recorded nothing was fitted
        known = {"fit_encoder": False, **known}
    return Config(**known)


def completed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a ``run.json`` with the keys that are newer than it; entries that are not keys stay as they are.

    Raises:
        ValueError: a value that is not allowed (any more).
    """
    return {**record, **from_record(record).to_dict()}


def has_teacher(value: Any) -> bool:
    """True if the composed ``teacher_config`` describes a teacher; false for ``null``, ``none`` and ``~``.

    Raises:
        ValueError: it is neither a set of keys nor one of these words.
    """
    if is_nothing(value):
        return False
    if not isinstance(value, (Mapping, DictConfig)):
        raise ValueError(
            f"teacher_config={value} is neither null (no teacher) nor a set of keys: "
            f"a teacher's file is named by teacher_config.checkpoint={value}"
        )
    return True


def typed_values(texts: Mapping[str, str]) -> dict[str, Any]:
    """Read the values of keys that were typed without Hydra, as YAML.

    Args:
        texts: key -> what stood behind its equals sign.

    Raises:
        ValueError: an unknown key, or a text that is no YAML.
    """
    check_keys(texts, "the command line")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={text}" for key, text in texts.items()]))
    except (OmegaConfBaseException, YAMLError) as error:
        said = " ".join(f"{key}={text}" for key, text in texts.items())
        raise ValueError(f"{said} cannot be read: {' '.join(str(error).split())}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
