"""Policy and planner as ONNX files, each with a card in its metadata.

The graphs are traced from the plain functions, so they compute the same as :func:`tdmpc2.planner.plan` and
:meth:`~tdmpc2.nn.world_model.WorldModel.pi`. int8 weights are stored as int8 with a scale for each row and widened to
float32 when a session is made, which is the recipe ``int8-weight-only``. ONNX Runtime's own products of int8 would
quantise the inputs with one scale for all rows, and overflow on some processors.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tdmpc2.acceleration.layers import prepare_for_compiler
from tdmpc2.export.graph import Step
from tdmpc2.export.request import Request
from tdmpc2.export.step_files import CARD, export_steps
from tdmpc2.support.extras import install_hint, missing_packages
from tdmpc2.support.files import json_text

OPSET = 18  # the lowest that has all that is needed: Mish and LayerNormalization; older runtimes read it as well
_LARGEST_CONSTANT = 64  # bytes of what is computed once for all; weights are to stay as they are
ENDING = ".onnx"


def export(request: Request) -> bool:
    """Write one file for each step of :data:`~tdmpc2.export.graph.STEPS`, say so, and check them if that is asked for.

    Returns:
        False if a check found a difference that is too large.

    Raises:
        ValueError: bad input, existing files, or the disk refused.
        ModuleNotFoundError: a package is missing.
    """
    require_packages()
    from tdmpc2.export.check import Runtime

    return export_steps(request, ENDING, lambda step, card: model_of(step, card).SerializeToString(), Runtime)


def require_packages() -> None:
    """Raise ``ModuleNotFoundError``, saying how to get them, if packages are missing."""
    if missing := missing_packages("export"):
        raise ModuleNotFoundError(f"export --to onnx needs {', '.join(missing)}: {install_hint('export')}")


def model_of(step: Step, card: dict[str, Any]) -> Any:
    """Trace a step: an ``onnx.ModelProto`` with its weights and its card.

    Args:
        step: to export.
        card: see :func:`tdmpc2.export.card.card_of` and :func:`tdmpc2.export.step_files.step_facts`.
    """
    names = [item.name for item in step.inputs]
    prepare_for_compiler(step)  # ONNX Runtime has no fast Mish either
    with torch.no_grad(), _quietly():
        program = torch.onnx.export(
            step.eval(),
            tuple(item.zeros() for item in step.inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=[item.name for item in step.outputs],
            optimize=False,
            verbose=False,
        )
        assert program is not None
        _simplify(program.model)
        model = program.model_proto
    _strip(model)
    model.producer_name, model.doc_string = "tdmpc2", f"TD-MPC2: {step.purpose}"
    model.graph.name = step.name
    del model.metadata_props[:]
    model.metadata_props.add(key=CARD, value=json_text(card))
    return model


def read_card(path: Path) -> dict[str, Any]:
    """Read the card of a file that :func:`export` wrote.

    Raises:
        ValueError: it is another file.
    """
    import onnx

    try:
        entries = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
        return dict(json.loads(entries[CARD]))
    except Exception as error:
        raise ValueError(f"{path} is no ONNX file of `tdmpc2 export` [{type(error).__name__}]") from error


def _simplify(model: Any) -> None:
    """Compute shapes and small constants once, and equal parts of the graph once; weights stay as they are."""
    from onnx_ir.passes import common
    from onnxscript.optimizer import optimize_ir

    optimize_ir(model, input_size_limit=_LARGEST_CONSTANT, output_size_limit=_LARGEST_CONSTANT)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)


def _strip(model: Any) -> None:
    """Take out what tracing notes of this machine's source files; the graph does not need it."""
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's remarks for developers from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.__trace", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
