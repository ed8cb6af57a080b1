"""Look at checkpoint files, convert them to another layout, write their cards, and publish them.

tdmpc2 checkpoint inspect x.pt
tdmpc2 checkpoint convert x.pt layout=b out=y.pt
tdmpc2 checkpoint convert x_int8.pt --layout safetensors --out x_int8.safetensors
tdmpc2 checkpoint card x.pt run=logs/mt30/1/default evaluation=[logs/mt30/1/eval-x] out=y.pt
tdmpc2 checkpoint push x.pt hf://user/name --dry-run
tdmpc2 checkpoint push x.pt published/name

A file may also be a model that comes with the project, by its name, or one on a hub, hf://user/name[@revision][/file],
which is downloaded once.
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
    "card": Verb(
        "write into a file what it was trained on and what was measured of it",
        (
            _FILE,
            Option("run", "directories of the runs that trained it one after another", (), Path, many=True),
            Option("evaluation", "directories with results.json of this very file", (), Path, many=True),
            Option("data", "episodes that it was trained on", (), many=True, aliases=("data_dir",)),
            Option("heldout", "heldout.json of this very file, for its trust figures", kind=Path),
            Option("command", "line that made it; by default the one that the run tells"),
            Option("commit", "of the code that made it"),
            Option("processor", "that it was trained on"),
            Option("start", "where its first weights came from; by default what the run tells"),
            Option("license", "of the weights, as a hub spells it"),
            Option("out", "file to write; by default the file itself, which overwrite has to allow", kind=Path),
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
            Option("license", "of the weights, as the hub spells it; by default what the file's card says"),
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

    checkpoint = load_file(values["file"], identify=verb in ("inspect", "card"))
    {"inspect": _inspect, "convert": _convert, "card": _card, "push": _push}[verb](checkpoint, values)


def _inspect(checkpoint: Checkpoint, _: dict[str, Any]) -> None:
    from tdmpc2.checkpoints.card import card_lines
    from tdmpc2.checkpoints.files import describe

    for label, text in describe(checkpoint).items():
        print(escaped(f"{label:22}{text}"))
    if checkpoint.card is not None:
        print(*card_lines(checkpoint.card, checkpoint.sha256), sep="\n")


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


def _card(checkpoint: Checkpoint, values: dict[str, Any]) -> None:
    from tdmpc2.checkpoints.card import card_lines
    from tdmpc2.checkpoints.files import convert, save_file
    from tdmpc2.checkpoints.hub import is_path
    from tdmpc2.studies.cards import new_card, with_card

    out = values["out"] or Path(values["file"])
    if values["out"] is None and not is_path(values["file"]):
        raise ValueError(
            f"out is missing: {values['file']} is no file of yours and stays as it is; out=FILE is a new one"
        )
    if values["out"] is None and not values["overwrite"]:
        raise ValueError("out is missing: out=FILE for a new file, or overwrite=true to write into the file itself")
    said = {key: values[key] for key in ("command", "commit", "processor", "start", "license") if values[key]}
    card = new_card(
        checkpoint,
        runs=values["run"],
        evaluations=values["evaluation"],
        data=values["data"],
        heldout=values["heldout"],
        said=said,
    )
    described = with_card(checkpoint, card)
    if out.suffix == ".safetensors":
        payload = convert(_with_config(described), "safetensors")
    else:
        entries = {"config": checkpoint.config, "step": checkpoint.step, **described.extra}
        payload = {"model": checkpoint.model, **{key: value for key, value in entries.items() if value is not None}}
    save_file(out, payload, overwrite=values["overwrite"])
    print(f"{out}: card written")
    print(*card_lines(card), sep="\n")


def _push(checkpoint: Checkpoint, values: dict[str, Any]) -> None:
    from tdmpc2.checkpoints.hub import is_hub_name
    from tdmpc2.checkpoints.publishing import Push, preview, push

    if not is_hub_name(values["to"]):
        for name in ("private", "message"):
            if values[name]:
                raise ValueError(f"{name} says nothing of a folder: leave it out, or name hf://user/name")
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
