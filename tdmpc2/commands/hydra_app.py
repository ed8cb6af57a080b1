"""Commands whose configuration Hydra composes: train, evaluate, collect."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdmpc2.commands.completion import complete
from tdmpc2.commands.overrides import parse, read_line
from tdmpc2.commands.pages import Row, Section, page, show, wants_help
from tdmpc2.commands.yaml_files import bounded_yaml
from tdmpc2.config import (
    PLANNER_KEYS,
    PRESETS,
    RUN_KEYS,
    Config,
    as_typed,
    help_rows,
    register_defaults,
    run_directory,
    with_preset,
)
from tdmpc2.support.cli import is_expected, one_line, one_line_errors
from tdmpc2.support.files import read_json
from tdmpc2.support.names import LONGEST, safe_name

#: Hydra changes no directory and leaves no files; a multirun's own record goes beside the runs.
_HYDRA = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.sweep.dir=logs/multirun",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)
_PLAIN_SWEEP = re.compile(r"[\w.]+=[\w.+-]+(,[\w.]+=[\w.+-]+)*", re.ASCII)
_NOTE = (
    "Hydra's options: --multirun (-m) runs once for each of key=a,b; --cfg job prints the whole configuration; "
    "-sc install=bash prints what completes keys with the tab key; --hydra-help lists the rest."
)


class RunFailed(CompactHydraException):
    """A run of a multirun failed, and its error is printed; the other runs go on."""


@dataclass(frozen=True)
class App:
    """Command line of one command: its help, its configuration file and its groups.

    Attributes:
        name: of the command.
        doc: docstring of its module, for its help page.
        config: file that Hydra composes, without ``.yaml``.
        folder: where it lies below the directory of the configuration files.
        groups: configurations composed under a name of their own; keys without a name are the first one's.
        bare: key that a value without one is for.
    """

    name: str
    doc: str | None
    config: str
    folder: str = "."
    groups: tuple[str, ...] = ()
    bare: str | None = None


def launch(app: App, run: Callable[[DictConfig], None], argv: Sequence[str] | None = None) -> None:
    """Run a command on the configuration files of the package, as ``tdmpc2 train`` does."""
    directory = str((yaml_directory() / app.folder).resolve())
    launch_script(app, hydra.main(config_name=app.config, config_path=directory, version_base="1.3")(run), argv)


@one_line_errors
def launch_script(app: App, main: Callable[[], Any], argv: Sequence[str] | None = None) -> None:
    """Run a function decorated by ``hydra.main``, as ``train.py`` does.

    Args:
        app: how its command line is read.
        main: the decorated function.
        argv: words; None: those the program was called with.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if wants_help(words):
        show(help_page(app))
    line = read_line(words, app.groups, app.bare)
    register_defaults()
    if line.completion:
        complete(app.groups, [*line.flags, *line.overrides], main)
        return
    print_notes()
    _note_unread(app, line.overrides)
    with _arguments([*line.flags, *_HYDRA, _exclude_fixed(line.overrides), *line.overrides]):
        try:
            with bounded_yaml():
                main()
        except RunFailed:
            sys.exit(1)
        except (HydraException, OmegaConfBaseException) as error:
            if not is_expected(ValueError()):
                raise
            raise ValueError(" ".join(str(error).split())) from error


def job(function: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Print errors of use in one line; in a multirun the line names the run, and the other runs go on."""

    @wraps(function)
    def naming_the_run(cfg: DictConfig) -> None:
        try:
            function(cfg)
        except Exception as error:  # of any kind: one job's error is a line, and the sweep goes on
            if isinstance(error, BrokenPipeError) or not (HydraConfig.initialized() and (name := sweep_name())):
                raise
            print(f"error: {name}: {one_line(error)}", file=sys.stderr, flush=True)
            if is_expected(error):
                raise RunFailed(f"{name} failed: {error}") from None
            raise

    @wraps(function)
    def wrapped(cfg: DictConfig) -> None:
        if HydraConfig.initialized() and sweep_name():
            naming_the_run(cfg)
        else:
            one_line_errors(function)(cfg)

    return wrapped


def yaml_directory() -> Path:
    """Directory of ``generic.yaml`` and ``student_config``: the wheel's copy, or the root of a clone."""
    copy = Path(__file__).parent / "yaml"
    return copy if copy.is_dir() else Path(__file__).resolve().parents[2]


def help_page(app: App) -> str:
    """The help of a command: purpose, examples, and the keys that matter to it."""
    sections: dict[str, list[Row]] = {}
    for row in help_rows(app.name):
        values = "" if row.values.startswith("text") else f" [{row.values}]"
        sections.setdefault(row.section, []).append(Row(row.key, row.default, f"{row.explanation}{values}"))
    return page(app.name, app.doc, [Section(heading, rows) for heading, rows in sections.items()], _NOTE)


def print_notes() -> None:
    """Print the library's notes as plain lines."""
    log = logging.getLogger("tdmpc2")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
    log.propagate = False


@contextlib.contextmanager
def _arguments(words: Sequence[str]) -> Iterator[None]:
    """Let Hydra read these words and raise its errors instead of printing them over several lines."""
    before, full = sys.argv[1:], os.environ.get("HYDRA_FULL_ERROR")
    sys.argv[1:] = words
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv[1:] = before
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]


def _exclude_fixed(overrides: Sequence[str]) -> str:
    """The setting that leaves overrides with one value for all runs of a multirun out of ``job.override_dirname``."""
    parsed = parse(overrides)
    swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
    fixed = [override.key_or_group for override in parsed if override.key_or_group not in swept]
    return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]"


def _note_unread(app: App, overrides: Sequence[str]) -> None:
    """Say which typed keys are of other commands, such as ``dry_run=true`` for an evaluation."""
    groups = [f"{group}." for group in app.groups]
    typed: dict[str, None] = {}
    for name in (override.key_or_group for override in parse(overrides)):
        typed[next((name.removeprefix(group) for group in groups if name.startswith(group)), name)] = None
    read = {row.key for row in help_rows(app.name)}
    note_unread(app.name, [name for name in typed if name in RUN_KEYS and name not in read])


def note_unread(reader: str, names: Sequence[str]) -> None:
    """Say that a command, or a way to learn, does not read some typed keys; nothing where there are none."""
    if names:
        it = "them" if len(names) > 1 else "it"
        logging.getLogger("tdmpc2").warning("%s: %s does not read %s", ", ".join(names), reader, it)


def load_keys(cfg: DictConfig) -> dict[str, Any]:
    """The keys a checkpoint is loaded with: how it is run, and whatever was set on the command line."""
    names = RUN_KEYS | typed_names() | PRESETS.get(str(cfg.get("planner")), {}).keys()
    values = composed(cfg)
    if cfg.get("checkpoint") is not None:
        _note_ignored({name: value for name, value in values.items() if name not in names})
    return {name: value for name, value in values.items() if name in names}


def _note_ignored(values: Mapping[str, Any]) -> None:
    """Say which keys of the configuration files say how to play and do not count beside a checkpoint."""
    fields = Config.__dataclass_fields__
    names = [name for name in ("tasks", *PLANNER_KEYS) if name in values and values[name] != fields[name].default]
    if names:
        said = ", ".join(f"{name}={as_typed(values[name])}" for name in names)
        logging.getLogger("tdmpc2").warning(
            "%s of the configuration files: not used, since a checkpoint says how it plays; what is typed counts",
            said,
        )


def typed_names() -> set[str]:
    """The keys that were set on the command line, the student's without their group, the teacher's with it."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    return {override.key_or_group.removeprefix("student_config.") for override in parse(words)}


def sweep_name() -> str | None:
    """In a multirun, a directory name made of the run's swept overrides; otherwise None.

    Values of plain letters can be read in it; of others, such as paths, and of long ones there is a hash as well, so
    that no two runs share a name.
    """
    swept = _swept()
    if swept is None:
        return None
    if _PLAIN_SWEEP.fullmatch(swept) and len(swept) <= LONGEST:
        return swept.replace(",", "-").replace("=", "_")
    return safe_name(swept).replace("--", "-") if swept else "default"


def _swept() -> str | None:
    """The run's swept overrides as one text."""
    settings = HydraConfig.get()
    if settings.mode is None or settings.mode.name != "MULTIRUN":
        return None
    return re.sub(r"(^|,)student_config\.", r"\1", str(settings.job.override_dirname))


def _name_in_older_versions(swept: str) -> str:
    return re.sub(r"[^\w.+-]", "-", swept.replace("=", "_"), flags=re.ASCII)


def composed(cfg: DictConfig) -> dict[str, Any]:
    """The keys as plain values, a preset of the planner as the keys that it stands for.

    In a multirun ``exp_name`` is filled in, so that its runs do not share a directory.
    """
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    values = with_preset({str(key): value for key, value in plain.items()}, typed_names())
    if values.get("exp_name") is None and (swept := _swept()) is not None:
        older = _name_in_older_versions(swept)
        directory = run_directory(str(values.get("task")), int(values.get("seed") or 0), older)
        values["exp_name"] = older if _has_run_of(directory / "run.json", swept, values) else sweep_name()
    return values


def _has_run_of(path: Path, swept: str, values: Mapping[str, Any]) -> bool:
    """Tell if a run was begun with the swept values: names of older versions are also those of other values."""
    if not path.exists():
        return False
    try:
        recorded = read_json(path)
    except ValueError:
        return True  # opening the run says what is wrong with it
    keys = [key for key in re.findall(r"(?:^|,)([\w.@]+)=", swept) if key in values and key in recorded]
    return all(_same_value(recorded[key], values[key]) for key in keys)


def _same_value(recorded: Any, value: Any) -> bool:
    if isinstance(recorded, str) and isinstance(value, str):
        return recorded == value or os.path.abspath(recorded) == os.path.abspath(os.path.expanduser(value))
    return str(recorded) == str(value)
