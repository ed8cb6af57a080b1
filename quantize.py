"""Write a checkpoint in fp16, int8 and mixed precision, and say what that costs.

python quantize.py --checkpoint x.pt [--out DIR] [--force]    ->  x_fp16.pt, x_int8.pt, x_mixed.pt
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich import get_console
from rich.box import SIMPLE
from rich.table import Table

from tdmpc2 import cli, layouts
from tdmpc2.checkpoint import FORMAT, Checkpoint, load_file, save_file
from tdmpc2.config import Config, parse_cfg
from tdmpc2.loading import config_of
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.quantization import RECIPES, deployable, module_errors, output_errors, quantize_state, random_play
from tdmpc2.tasks import TaskSpec


def quantize(source: Path, out: Path, force: bool) -> None:
    """Everything is computed, and every file to write is known to be free, before the first one is written."""
    checkpoint = load_file(source)
    targets = target_files(source, out, force)
    cfg = model_config(checkpoint)
    config = checkpoint.config or (cfg.to_dict() if cfg.multitask else None)
    common = {"config": config, "format": FORMAT, "step": checkpoint.step}
    models = {name: quantize_state(checkpoint.model, RECIPES[name], checkpoint.origin) for name in targets}
    reference = build(cfg, checkpoint.model)
    inputs = random_play(cfg)
    outputs = {name: output_errors(reference, build(cfg, model), *inputs[:3]) for name, model in models.items()}
    modules = {name: module_errors(checkpoint.model, model) for name, model in models.items()}

    for name, target in targets.items():
        save_file(target, {"model": models[name], **common, "recipe": name}, overwrite=force)
        print(f"wrote {target}")
    for name in RECIPES.keys() - targets:
        print(f"{name}: not written, {source} itself has that name; --out DIR writes it elsewhere")

    base = serialised_bytes({"model": deployable(checkpoint.model), **common})
    rows = [["fp32", f"{base:,}", "100.0%"]]  # without target heads, as all of them
    for name, target in targets.items():
        size = target.stat().st_size
        rows.append([name, f"{size:,}", f"{size / base:.1%}", *map(decibels, outputs[name].values())])
    title = f"Output errors in dB, on {inputs.source}"
    show(title, ["recipe", "bytes", "of fp32", *next(iter(outputs.values()))], rows)
    rows = []
    for module, (parameters, *_) in next(iter(modules.values())).items():
        cells = [text for of in modules.values() for text in (f"{of[module].bytes:,}", decibels(of[module].error_db))]
        rows.append([module, f"{parameters:,}", *cells])
    headings = [f"{name}_{what}" for name in targets for what in ("bytes", "dB")]
    show("Weight errors in dB", ["module", "parameters", *headings], rows)


def target_files(source: Path, out: Path, force: bool) -> dict[str, Path]:
    """The file of each recipe, without one that would be ``source`` itself.

    Raises:
        ValueError: some exist and ``force`` is false.
    """
    stem = re.sub(r"_(fp32|bf16|fp16|int8|mixed)$", "", source.stem)
    targets = {name: out / f"{stem}_{name}.pt" for name in RECIPES}
    targets = {name: path for name, path in targets.items() if not (path.exists() and path.samefile(source))}
    existing = [str(path) for path in targets.values() if path.exists()]
    if existing and not force:
        raise ValueError(f"There is already {', '.join(existing)}: --force replaces, --out DIR writes elsewhere")
    return targets


def model_config(checkpoint: Checkpoint) -> Config:
    """As for loading, but the one task of a file that does not name it stays unnamed."""
    sizes = layouts.infer_sizes(checkpoint.model)
    if checkpoint.config or sizes["num_tasks"]:
        return config_of(checkpoint)
    unnamed = TaskSpec("unnamed", sizes["obs_dim"], sizes["action_dim"])
    widths = {"num_bins": sizes["num_bins"], **layouts.size_keys(sizes)}
    return parse_cfg({"task": unnamed.name, "task_specs": (unnamed,), **widths})


def build(cfg: Config, state: Mapping[str, Any]) -> WorldModel:
    model = WorldModel(cfg).requires_grad_(False)
    model.load_state_dict(state)
    return model


def serialised_bytes(payload: Mapping[str, Any]) -> int:
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.tell()


def show(title: str, headings: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for index, heading in enumerate(headings):
        table.add_column(heading.replace("_", "\n"), justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    get_console().print(table)


def decibels(value: float) -> str:
    return "exact" if value == float("-inf") else f"{value:.1f}"


@cli.one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write fp16, int8 and mixed copies of a checkpoint beside it.")
    parser.add_argument("--checkpoint", required=True, help="fp32, bf16 or fp16 file of any layout")
    parser.add_argument("--out", help="directory of the new files (default: that of the checkpoint)")
    parser.add_argument("--force", action="store_true", help="replace existing files, but never the checkpoint itself")
    args = parser.parse_args(argv)
    source = Path(args.checkpoint).expanduser()
    quantize(source, Path(args.out).expanduser() if args.out else source.parent, args.force)


if __name__ == "__main__":
    main()
