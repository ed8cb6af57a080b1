"""Policy and planner as programs of ``torch.export``, ``.pt2`` files that PyTorch runs without this package.

They are traced from the plain functions, as ONNX files are. A program can be compiled further for one processor
(``torch._inductor.aoti_compile_and_package``), which C++ then loads without Python.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc2.acceleration.layers import prepare_for_compiler
from tdmpc2.export.graph import Step
from tdmpc2.export.request import Request
from tdmpc2.export.step_files import CARD, export_steps
from tdmpc2.support.files import json_text

ENDING = ".pt2"
_CARD_FILE = f"{CARD}.json"  # in the archive
_OF_THIS_MACHINE = ("stack_trace", "from_node", "source_fn_stack")  # what tracing notes of source files


def export(request: Request) -> bool:
    """Write the program of each step, and check them if that is asked for.

    Returns:
        False if a check found a difference that is too large.

    Raises:
        ValueError: bad input, existing files, or the disk refused.
    """
    return export_steps(request, ENDING, program_of, Program)


def program_of(step: Step, card: Mapping[str, Any]) -> bytes:
    """Trace a step: an archive with its weights and its card."""
    prepare_for_compiler(step)
    with torch.no_grad():
        program = torch.export.export(step.eval(), tuple(item.zeros() for item in step.inputs), strict=False)
    for node in list(program.graph.nodes):
        for name in _OF_THIS_MACHINE:
            node.meta.pop(name, None)
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # else it runs on this device alone
            program.graph.erase_node(node)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={_CARD_FILE: json_text(card)})
    return content.getvalue()


class Program:
    """One exported file, called with tensors.

    Args:
        path: the file, of our own writing: loading it trusts it.
    """

    def __init__(self, path: Path) -> None:
        extra = {_CARD_FILE: ""}
        self._run = torch.export.load(path, extra_files=extra).module()
        self.card: dict[str, Any] = json.loads(extra[_CARD_FILE])
        self._names = [item["name"] for item in self.card["inputs"]]

    def __call__(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Run the step on its inputs by name; those that it does not take are left out."""
        return list(self._run(*(tensors[name] for name in self._names)))
