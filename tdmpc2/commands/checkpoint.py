"""Look at checkpoint files and convert them to another layout.

tdmpc2 checkpoint inspect x.pt
tdmpc2 checkpoint convert x.pt layout=b out=y.pt
tdmpc2 checkpoint convert x.pt --layout a --out y.pt --overwrite
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tdmpc2.commands.options import Option
from tdmpc2.commands.plain import Verb, read_verb
from tdmpc2.support.cli import one_line_errors
from tdmpc2.support.text import escaped

_FILE = Option("file", "checkpoint of any layout and precision", required=True, bare=True, aliases=("checkpoint",))
VERBS = {
    "inspect": Verb("print what a file holds", (_FILE,)),
    "convert": Verb(
        "write a float32 copy in layout (a) or (b)",
        (
            _FILE,
            Option("layout", "a: this project; b: current TD-MPC2", required=True, choices=("a", "b")),
            Option("out", "file to write", kind=Path, required=True),
            Option("overwrite", "replace the file if it exists", False, bool),
        ),
    ),
}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    verb, values = read_verb("checkpoint", __doc__, argv, VERBS)
    from tdmpc2.checkpoints.files import convert, describe, load_file, save_file

    checkpoint = load_file(values["file"], identify=verb == "inspect")
    if verb == "inspect":
        for label, text in describe(checkpoint).items():
            print(escaped(f"{label:22}{text}"))
        return
    layout, out = values["layout"], values["out"]
    save_file(out, convert(checkpoint, layout), overwrite=values["overwrite"])
    print(f"{out}: layout ({layout}), fp32")
