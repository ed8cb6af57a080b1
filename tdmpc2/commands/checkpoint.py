"""Look at checkpoint files, convert them to another layout, and publish them.

tdmpc2 checkpoint inspect x.pt
tdmpc2 checkpoint convert x.pt layout=b out=y.pt
tdmpc2 checkpoint convert x_int8.pt --layout safetensors --out x_int8.safetensors
tdmpc2 checkpoint push x.pt hf://user/name --dry-run
tdmpc2 checkpoint push x.pt published/name

A file may also be one on a hub, hf://user/name[@revision][/file]: it is downloaded once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmpc2.commands.options import Option
from tdmpc2.commands.plain import Verb, read_verb
from tdmpc2.support.cli import one_line_errors
from tdmpc2.support.text import escaped

if TYPE_CHECKING:
    from tdmpc2.checkpoints.files import Checkpoint

_FILE = Option("file", "checkpoint of any layout and precision", required=True, bare=True, aliases=("checkpoint",))
VERBS = {
    "inspect": Verb("print what a file holds", (_FILE,)),
    "convert": Verb(
        "write a copy in another layout",
        (
            _FILE,
            Option(
                "layout", "a: this project, b: current TD-MPC2, both in float32; safetensors: as precise as the file",
                required=True, choices=("a", "b", "safetensors"),
            ),
            Option("out", "file to write", kind=Path, required=True),
            Option("overwrite", "replace the file if it exists", False, bool),
        ),
    ),
    "push": Verb(
        "publish a file with a card, on a hub or in a folder",
        (
            _FILE,
            Option("to", "hf://user/name[@revision], or a folder to write", required=True, bare=True),
            Option("private", "a new repository is for its owner alone", False, bool),
            Option("message", "of the commit"),
            Option("license", "of the weights, as the hub spells it", "mit"),
            Option("dry_run", "write nothing, and show what would be", False, bool),
            Option("overwrite", "replace the files of a folder", False, bool),
        ),
    ),
}  # fmt: skip


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    verb, values = read_verb("checkpoint", __doc__, argv, VERBS)
    from tdmpc2.checkpoints.files import load_file

    checkpoint = load_file(values["file"], identify=verb == "inspect")
    {"inspect": _inspect, "convert": _convert, "push": _push}[verb](checkpoint, values)


def _inspect(checkpoint: Checkpoint, _: dict[str, Any]) -> None:
    from tdmpc2.checkpoints.files import describe

    for label, text in describe(checkpoint).items():
        print(escaped(f"{label:22}{text}"))


def _convert(checkpoint: Checkpoint, values: dict[str, Any]) -> None:
    from tdmpc2.checkpoints.files import convert, precision_of, save_file

    layout, out = values["layout"], values["out"]
    if layout != "safetensors":
        save_file(out, convert(checkpoint, layout), overwrite=values["overwrite"])
        print(f"{out}: layout ({layout}), fp32")
        return
    if out.suffix != ".safetensors":
        raise ValueError(f"out={out} must end in .safetensors, by which the format is known")
    save_file(out, convert(_with_config(checkpoint), layout), overwrite=values["overwrite"])
    print(f"{out}: layout (a) in the safetensors format, {precision_of(checkpoint.model)}")


def _push(checkpoint: Checkpoint, values: dict[str, Any]) -> None:
    from tdmpc2.checkpoints.publishing import Push, preview, push

    how = Push(values["private"], values["message"] or Push().message, values["license"])
    complete = _with_config(checkpoint)
    if values["dry_run"]:
        print("\n".join(preview(complete, values["to"], how)))
    else:
        print(f"pushed: {push(complete, values['to'], how, overwrite=values['overwrite'])}")


def _with_config(checkpoint: Checkpoint) -> Checkpoint:
    """Complete a file of many tasks that stores no configuration by the one that its tensors tell."""
    from tdmpc2.checkpoints.files import naming
    from tdmpc2.checkpoints.sizes import infer_sizes
    from tdmpc2.config import RUN_KEYS
    from tdmpc2.loading import config_of

    with naming(checkpoint.origin):
        of_many = bool(infer_sizes(checkpoint.model)["num_tasks"])
    if checkpoint.config is not None or not of_many:
        return checkpoint
    keys = config_of(checkpoint).to_dict()
    return dataclasses.replace(checkpoint, config={key: value for key, value in keys.items() if key not in RUN_KEYS})
