"""What the command-line scripts share: Hydra's settings, checked overrides, errors without a traceback."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig, OmegaConf

from tdmpc2.config import RUN_KEYS, check_keys, defaults, key_names
from tdmpc2.tasks import nearest

P = ParamSpec("P")

#: Hydra changes no directory and leaves no files; a multirun's own record goes beside the runs.
_HYDRA = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.sweep.dir=logs/multirun",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)
_OVERRIDE = re.compile(r"(?:\+\+?|~)?(?P<key>[A-Za-z_][\w./@]*)=.*", re.DOTALL)


def run(main: Callable[[], None], groups: Sequence[str] = ()) -> None:
    """Run a Hydra main function with checked overrides.

    Args:
        main: the decorated function.
        groups: configurations composed under a name of their own (train.py); none if the keys stand alone.
    """
    store = ConfigStore.instance()
    store.store(name="base", node=defaults())
    store.store(name="base", group="student_config", node=defaults())
    log = logging.getLogger("tdmpc2")
    log.addHandler(logging.StreamHandler())  # remarks of the library, as plain lines
    log.propagate = False
    given = sys.argv[1:]
    one_line_errors(check_overrides)(given, groups)
    # Hydra takes only overrides that stand in a row; the user's own hydra settings come last and win.
    first = next((index for index, text in enumerate(given) if _OVERRIDE.fullmatch(text)), len(given))
    sys.argv[1:] = [*given[:first], *_HYDRA, _exclude_fixed(given), *given[first:]]
    main()


def one_line_errors(function: Callable[P, None]) -> Callable[P, None]:
    """Print an error of use or of the disk in one line and exit with code 2; TDMPC2_TRACEBACK=1 shows it whole.

    In a multirun the line names the run, the other runs go on, and Hydra ends with code 1 after the last one.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            print("Stopped by Ctrl-C", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            expected = isinstance(error, (ValueError, OSError, ModuleNotFoundError))
            expected = expected and os.environ.get("TDMPC2_TRACEBACK") != "1"
            if HydraConfig.initialized() and (name := sweep_name()):
                print(f"error: {name}: {error}", file=sys.stderr, flush=True)  # Hydra shows only the first, at the end
                if expected:
                    raise CompactHydraException(f"{name} failed: {error}") from None
            if not expected:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return wrapped


def check_overrides(arguments: Sequence[str], groups: Sequence[str]) -> None:
    """Compare the overrides of a command line with the configuration's keys before Hydra composes it.

    Raises:
        ValueError: an unknown key; the message suggests the nearest one.
    """
    for argument in arguments:
        match = _OVERRIDE.fullmatch(argument)
        if match is None or match["key"] == "hydra" or match["key"].startswith(("hydra.", "hydra/")):
            continue
        group, _, key = match["key"].partition(".")
        if not groups:
            check_keys([match["key"]], "the command line")
        elif group.partition("@")[0] not in groups:
            options = [f"{name}.{key}" for name in groups for key in key_names()]
            prefixed = f" Did you mean '{groups[0]}.{match['key']}'?" if match["key"] in key_names() else ""
            raise ValueError(
                f"Unknown key '{match['key']}' on the command line.{prefixed or nearest(argument, options)}"
            )
        elif key:
            check_keys([key], f"{group} on the command line")


def _exclude_fixed(arguments: Sequence[str]) -> str:
    """The setting that leaves overrides with one value for all runs of a multirun out of ``job.override_dirname``."""
    fixed: list[str] = []
    with contextlib.suppress(HydraException):  # Hydra parses them again and reports what is wrong
        overrides = OverridesParser.create().parse_overrides([text for text in arguments if _OVERRIDE.fullmatch(text)])
        swept = {override.key_or_group for override in overrides if override.is_sweep_override()}
        fixed = [override.key_or_group for override in overrides if override.key_or_group not in swept]
    return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]"


def load_keys(cfg: DictConfig) -> dict[str, Any]:
    """The keys a checkpoint is loaded with: how it is run, and whatever was set on the command line."""
    overrides = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    names = RUN_KEYS.union(override.key_or_group for override in overrides)
    return {name: value for name, value in composed(cfg).items() if name in names}


def sweep_name() -> str | None:
    """In a multirun, a directory name made of the run's swept overrides; otherwise None."""
    hydra = HydraConfig.get()
    if hydra.mode is None or hydra.mode.name != "MULTIRUN":
        return None
    swept = re.sub(r"(^|,)student_config\.", r"\1", hydra.job.override_dirname).replace("=", "_")
    return re.sub(r"[^\w.+-]", "-", swept, flags=re.ASCII) or "default"  # what stands unquoted in an override


def composed(cfg: DictConfig) -> dict[str, Any]:
    """The keys as plain values; in a multirun ``exp_name`` is filled in, so that its runs do not share a directory."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    values = {str(key): value for key, value in plain.items()}
    if values.get("exp_name") is None:
        values["exp_name"] = sweep_name()
    return values
