"""One file for each step of :data:`~tdmpc2.export.graph.STEPS`, whatever form it has: named, written and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tdmpc2.envs import check_task
from tdmpc2.export.card import card_of
from tdmpc2.export.graph import STEPS, Step
from tdmpc2.export.request import Request, load
from tdmpc2.support.files import replacing, size_text

CARD = "tdmpc2"  # name of the card in a file
#: A file that runs: tensors by name -> outputs.
Runs = Callable[[Mapping[str, Tensor]], list[Tensor]]


def export_steps(
    request: Request, ending: str, written: Callable[[Step, dict[str, Any]], bytes], run: Callable[[Path], Runs]
) -> bool:
    """Write the file of each step, say so, and check them if that is asked for.

    Args:
        request: what is exported.
        ending: of the files.
        written: step and its card -> the file's bytes.
        run: opens a file in the runtime it is for.

    Returns:
        False if a check found a difference that is too large.

    Raises:
        ValueError: bad input, existing files, or the disk refused.
    """
    paths = target_files(request, ending)
    request.check_free(paths.values())
    source = load(request)
    steps = [step(source.model, num_envs=request.envs) for step in STEPS]
    if request.check and not request.data:
        for task_id in steps[0].task_ids:
            check_task(source.cfg.task_specs[task_id].name)  # what cannot be played is named before a minute of writing
    contents = []  # all of them before the first is replaced: a plan takes a minute, in which one may lose patience
    for step in steps:
        card = {**card_of(source.cfg, source.file, step.task_ids, request.precision), **step_facts(step)}
        contents.append(written(step, card))
    for step, content in zip(steps, contents, strict=True):
        with replacing(paths[step.name], overwrite=request.force) as temporary:
            temporary.write_bytes(content)
        size = size_text(paths[step.name].stat().st_size)
        print(f"wrote {paths[step.name]}: {step.purpose}, {request.precision}, {size}")
    if not request.check:
        return True
    from tdmpc2.export.check import check, compare

    return check(compare(request, source, steps, {name: run(path) for name, path in paths.items()}))


def target_files(request: Request, ending: str) -> dict[str, Path]:
    """The file of each step: beside the checkpoint, in the directory ``out``, or named like the file ``out``."""
    out = request.out
    if out is not None and out.suffix and out.suffix != ending and not out.is_dir():
        raise ValueError(f"out={out} must end in {ending}, or be a directory")
    if out is not None and out.suffix == ending:
        return {step.name: out.with_name(f"{out.stem}_{step.name}{ending}") for step in STEPS}
    folder = request.default_folder if out is None else out
    stem = request.stem("" if request.precision == "fp32" else request.precision)
    return {step.name: folder / f"{stem}_{step.name}{ending}" for step in STEPS}


def step_facts(step: Step) -> dict[str, Any]:
    """List what a card says of one step: its name, inputs and outputs."""
    return {
        "step": step.name,
        "envs": step.num_envs,
        "inputs": [_entry(step, item) for item in step.inputs],
        "outputs": [item._asdict() for item in step.outputs],
    }


def _entry(step: Step, item: Any) -> dict[str, Any]:
    entry = item._asdict()
    return {**entry, "below": step.cfg.num_q} if item.draw == "distinct" else entry
