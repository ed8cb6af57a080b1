"""Write a model in a form that robots run: without PyTorch, without this program.

tdmpc2 export checkpoint=model.pt --to onnx
tdmpc2 export model.pt task=walker-walk num_samples=128 iterations=3 --check
tdmpc2 export model.pt --to onnx --tasks walker-walk pendulum-spin --precision int8 --out robot.onnx
tdmpc2 export model.pt --to native --precision int8 --out robot

`onnx` writes two files, one that acts by the policy alone and one that plans. Keys of the planner such as
num_samples=128 are fixed in what is written. `pt2` writes the same two as programs that PyTorch runs without this
package. `native` writes a folder that CMake builds into a library for C and C++, which computes the same actions as
this program.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from tdmpc2.commands.options import Option
from tdmpc2.commands.plain import read_options
from tdmpc2.config import PLANNER_KEYS
from tdmpc2.support.cli import one_line_errors


class Format(NamedTuple):
    """A form that models can be written in."""

    purpose: str
    function: str  # module:function of (Request), which writes the files; it returns False where a check failed
    precisions: tuple[str, ...]  # what --precision may be


FORMATS = {
    "onnx": Format("policy and planner as files for ONNX Runtime", "tdmpc2.export.onnx_file:export", ("fp32", "int8")),
    "pt2": Format("programs of torch.export", "tdmpc2.export.program_file:export", ("fp32", "int8")),
    "native": Format("a folder of C++ sources and a model", "tdmpc2.export.native:export", ("fp32", "bf16", "int8")),
}
PRECISIONS = tuple(dict.fromkeys(name for row in FORMATS.values() for name in row.precisions))

OPTIONS = (
    Option("checkpoint", "file of any layout and precision", kind=Path, required=True, bare=True),
    Option("to", "form to write", "onnx", choices=tuple(FORMATS)),
    Option("task", "one task: the model then takes no number of a task"),
    Option("tasks", "these tasks, in this order; by default all of the file", (), many=True),
    Option("precision", "of the weights", "fp32", choices=PRECISIONS),
    Option("envs", "environments that are acted in at once", 1, int, least=1),
    Option("out", "where to write; by default beside the checkpoint", kind=Path),
    Option("force", "replace existing files, but never the checkpoint itself", False, bool),
    Option("check", "compare what was written with this program, on observations", False, bool),
    Option(
        "data",
        "check on this episode store or directory of chunk files; by default some are played",
    ),
    Option("steps", "of each task to check on, one after the other; by default 8", kind=int, least=1),
)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with code 1 if a check finds a difference that is too large."""
    values, keys = read_options("export", __doc__, argv, OPTIONS, PLANNER_KEYS)
    chosen = FORMATS[values["to"]]
    if values["precision"] not in chosen.precisions:
        known = ", ".join(chosen.precisions)
        raise ValueError(f"precision={values['precision']}: --to {values['to']} writes {known}")
    if values["task"] is not None and values["tasks"]:
        raise ValueError("task=NAME writes one task and tasks=[...] several: name one of the two keys")
    for name in ("data", "steps"):
        if values[name] is not None and not values["check"]:
            raise ValueError(f"{name} is what a check goes by: add --check")
    if values["steps"] is None:
        del values["steps"]
    from tdmpc2.checkpoints.hub import is_path, local_file
    from tdmpc2.export.request import Request
    from tdmpc2.quantization.command import overrides_of

    module, _, function = chosen.function.partition(":")
    del values["to"]
    folder = (
        values["checkpoint"].parent if is_path(values["checkpoint"]) else Path.cwd()
    )  # never where a hub's file lies
    values["checkpoint"] = local_file(values["checkpoint"])
    right = getattr(import_module(module), function)(Request(**values, folder=folder, overrides=overrides_of(keys)))
    sys.exit(0 if right else 1)
