"""Write a checkpoint in fp16, int8 and mixed precision, and measure what that costs.

tdmpc2 quantize x.pt
tdmpc2 quantize checkpoint=x.pt recipes=bf16,int8 evaluate=10 tasks=[walker-walk] num_samples=256
tdmpc2 quantize --checkpoint x.pt --data data/mt30 --out quantised --force

The files are x_fp16.pt, x_int8.pt and x_mixed.pt beside x.pt, and x_quantization.md, .json and .png. Keys of the
configuration such as num_samples=256 set how the copies plan while they are measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tdmpc2.commands.options import Option
from tdmpc2.commands.plain import read_options
from tdmpc2.config import key_names
from tdmpc2.support.cli import one_line_errors

OPTIONS = (
    Option("checkpoint", "fp32, bf16 or fp16 file of any layout", kind=Path, required=True, bare=True),
    Option("recipes", "some of fp16, bf16, int8, mixed", ("fp16", "int8", "mixed"), many=True),
    Option("data", "measure on rows of this episode store or directory of chunk files", aliases=("data_dir",)),
    Option("rows", "inputs to measure on", 240, int, least=1),
    Option("evaluate", "score so many episodes of each task", 0, int, least=0, aliases=("eval_episodes",)),
    Option("compare", "files of the same model to measure as well", (), Path, many=True),
    Option("limit", "error of mixed in dB", -40.0, float),
    Option("out", "directory of the new files; by default that of the checkpoint, or this one", kind=Path),
    Option("force", "replace existing files, but never the checkpoint itself", False, bool),
    Option("device", "where the copies are measured", "auto"),
    Option("repeats", "turns of the timing", 20, int, least=1),
    Option("plans", "inputs planned for, for the regret", 48, int, least=0),
)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--set"]  # once stood before keys
    values, keys = read_options("quantize", __doc__, words, OPTIONS, key_names())
    from tdmpc2.checkpoints.hub import is_path, local_file
    from tdmpc2.quantization.command import overrides_of, quantize, recipe_names
    from tdmpc2.quantization.measure import Settings

    named = values["checkpoint"]
    source = local_file(named)  # where it has a name, what is made of it is written here, not where it lies
    quantize(
        source,
        values["out"] or (source.parent if is_path(named) else Path()),
        recipe_names(values["recipes"]),
        Settings(values["device"], values["repeats"], values["plans"], values["evaluate"], overrides_of(keys)),
        data=values["data"],
        count=values["rows"],
        limit_db=values["limit"],
        others=[local_file(path) for path in values["compare"]],
        force=values["force"],
    )
