"""Quantise a checkpoint: write its copies, measure them, report; what ``tdmpc2 quantize`` does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import get_console

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import Checkpoint, load_file, save_file
from tdmpc2.config import typed_values
from tdmpc2.loading import config_of, load_agent
from tdmpc2.play.rollout import check_playable
from tdmpc2.quantization import calibration, copies
from tdmpc2.quantization import measure as measuring
from tdmpc2.quantization import report as reports
from tdmpc2.quantization.recipes import RECIPES, module_errors
from tdmpc2.support.runtime import set_num_threads
from tdmpc2.support.tables import terminal_table
from tdmpc2.tasks import nearest


def quantize(
    source: Path,
    out: Path,
    names: Sequence[str],
    settings: measuring.Settings,
    *,
    data: str | None = None,
    count: int = calibration.COUNT,
    limit_db: float = calibration.LIMIT_DB,
    others: Sequence[Path] = (),
    force: bool = False,
) -> None:
    """Write the files and the report; whatever can be refused is, before the first file is written.

    Args:
        source: fp32, bf16 or fp16 checkpoint of any layout.
        out: directory of all that is written.
        names: recipes.
        settings: of the measurement.
        data: directory of data to measure on; None: played episodes.
        count: rows of inputs to measure on.
        limit_db: see :func:`tdmpc2.quantization.calibration.mixed_recipe`.
        others: more files of the same model to measure.
        force: replace existing files, but never ``source``.

    Files that an interrupted call has written, as this one would, are kept.

    Raises:
        ValueError: bad input, existing files, or the disk refused.
    """
    checkpoint, task = load_file(source), settings.overrides.get("task")
    targets = copies.target_files(source, out, names)
    report_files = reports.report_files(out, copies.stem_of(source))
    if any(path.exists() for path in report_files.values()):  # otherwise an earlier call may have been interrupted
        copies.check_free([*targets.values(), *report_files.values()], force)
    config = {"config": copies.own_config(checkpoint, task)}
    payloads = _payloads(checkpoint, names, targets, task)
    _kept(targets, payloads, force, unknown=("mixed",))
    full = copies.full_payload(checkpoint, task)
    copies.check_others(others, checkpoint, config_of(load_file(full | config)), targets.values())
    agent, inputs = _agent_with_inputs(full | config, settings, data, count)

    found: list[calibration.Sensitivity] = []
    mixed: frozenset[str] = frozenset()
    if "mixed" in targets:
        found = calibration.sensitivities(agent.model, inputs)
        recipe = calibration.mixed_recipe(found, limit_db)
        mixed, payloads["mixed"] = recipe.int8, copies.payload(checkpoint, recipe, task)
    _write(source, targets, payloads, force)

    candidates = [measuring.Candidate("fp32", full | config, copies.serialised_bytes(full))]
    candidates += [_candidate(name, targets.get(name, source), payloads[name], config) for name in names]
    candidates += _others(others, ("fp32", *names), config)
    rows = measuring.measure(candidates, inputs, settings)
    modules = {name: module_errors(checkpoint.model, payloads[name]["model"]) for name in targets}
    report = reports.Report(str(source), inputs, settings, rows, found, mixed, limit_db, modules)
    for cells in reports.tables(report):
        get_console().print(terminal_table(cells))
    print("\n".join(reports.write_report(report, report_files)))


def _payloads(
    checkpoint: Checkpoint, names: Sequence[str], targets: Mapping[str, Path], task: str | None
) -> dict[str, Any]:
    """Make the content of each copy; of a name that is the source's own, check that the source is such a copy."""
    for name in names:
        if name not in targets:
            copies.check_stored(checkpoint, name)
    # What mixed will be is not known yet, but what cannot be fp16 cannot be mixed.
    return {name: copies.payload(checkpoint, RECIPES.get(name, RECIPES["fp16"]), task) for name in names}


def _write(source: Path, targets: Mapping[str, Path], payloads: Mapping[str, Any], force: bool) -> None:
    """Write the copies but for those that are there as they would be written, and say what became of each."""
    kept = _kept(targets, payloads, force)
    for name, payload in payloads.items():
        if name not in targets:
            print(f"{name}: not written, {source} itself has that name; --out DIR writes it elsewhere")
        elif name in kept:
            print(f"kept {targets[name]}, which is what would be written")
        else:
            save_file(targets[name], payload, overwrite=force)
            print(f"wrote {targets[name]}")


def _candidate(name: str, path: Path, payload: dict[str, Any], config: dict[str, Any]) -> measuring.Candidate:
    """Describe a copy that has been written; ``config`` is for one whose task would have to be named."""
    content = {**payload, **config} if payload["config"] is None else path
    return measuring.Candidate(name, content, path.stat().st_size)


def _kept(
    targets: Mapping[str, Path], payloads: Mapping[str, Any], force: bool, unknown: Sequence[str] = ()
) -> list[str]:
    """Name the files that are there as they would be written; others are refused, unless ``force`` replaces all."""
    there = [name for name, path in targets.items() if path.exists() and not force]
    kept = [name for name in there if copies.is_copy(targets[name], payloads[name], exactly=name not in unknown)]
    copies.check_free((path for name, path in targets.items() if name not in kept), force)
    return kept


def _agent_with_inputs(
    payload: dict[str, Any], settings: measuring.Settings, data: str | None, count: int
) -> tuple[TDMPC2, calibration.Inputs]:
    """Load the float32 agent and what it is measured on."""
    agent = load_agent(payload, device=settings.device, **settings.overrides)
    set_num_threads(agent.cfg.num_threads)
    if settings.episodes:
        check_playable(agent.cfg)
    agent.model.requires_grad_(False)
    if data:
        return agent, calibration.stored_inputs(agent.cfg, data, count).to(agent.device)
    return agent, calibration.played_inputs(agent.model, count).to(agent.device)


def _others(paths: Sequence[Path], taken: Iterable[str], config: dict[str, Any]) -> list[measuring.Candidate]:
    """Describe more files of the same model; ``config`` is for those that hold none."""
    candidates = []
    for name, path in zip(copies.names_of(paths, taken), paths, strict=True):
        other = load_file(path)
        content = path if other.config is not None else {"model": other.model, **other.extra, **config}
        candidates.append(measuring.Candidate(name, content, path.stat().st_size))
    return candidates


def recipe_names(names: Iterable[str]) -> list[str]:
    """Return the names, each once.

    Raises:
        ValueError: one of them is not a recipe; the message suggests the nearest one.
    """
    unique = list(dict.fromkeys(names))
    for name in unique:
        if name not in copies.NAMES:
            known = ", ".join(copies.NAMES)
            raise ValueError(f"recipes: '{name}' is not one of {known}.{nearest(name, copies.NAMES)}")
    return unique


def overrides_of(texts: Mapping[str, str]) -> dict[str, Any]:
    """Read the values of configuration keys as YAML.

    Raises:
        ValueError: an unknown key, or ``precision``, which is the recipe's.
    """
    if "precision" in texts:
        raise ValueError(f"precision={texts['precision']}: the precision is the recipe's; choose some with recipes=...")
    return typed_values(texts)
