"""Size, errors, regret and speed of every recipe, side by side in one run.

python benchmarks/quantization.py [STUDENT_fp16.pt] [--own model.pt] --full

The published int8 file of the student, if it lies beside it, is one more row. What is measured is what quantising
reports.

Results: `student`, `name`, `file_bytes`, `size_ratio` (to float32), `latent_db`, `reward_db`, `value_db`, `policy_db`
(null: exact), `regret`, `plan_ms` (one environment, by the CPU kernels where there are any) and `layer_speedup`: one
layer with 512 rows (the second of the dynamics, 384 x 384 in the 1M model, with LayerNorm and Mish) in the format the
recipe computes it in, by the CPU kernels or else compiled, against the float32 layer as PyTorch computes it eagerly.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import Run, make_parser, parse, print_table, report, take_turns
from benchmarks._inputs import student
from tdmpc2.acceleration.cpu import library
from tdmpc2.acceleration.cpu.networks import PackedLayer, linear, normed_linear
from tdmpc2.checkpoints.files import load_file
from tdmpc2.nn.layers import NormedLinear
from tdmpc2.quantization.calibration import COUNT
from tdmpc2.quantization.command import quantize
from tdmpc2.quantization.copies import NAMES, full_payload, stem_of, target_files
from tdmpc2.quantization.measure import Candidate, Settings, load_agents
from tdmpc2.quantization.report import report_files
from tdmpc2.support.runtime import can_compile

MINUTES = 1.5
FULL_MINUTES = 5
DISK_GB = 0.1

ROWS = 512
ERRORS = ("latent", "reward", "value", "policy")


def fast_layer(layer: NormedLinear, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the fastest way to compute a layer here."""
    if device.type == "cpu" and not library.reason():
        packed = PackedLayer(linear(layer))
        return lambda x: normed_linear(x, packed)
    return torch.compile(layer, dynamic=False) if can_compile(device) else layer


@torch.no_grad()
def layer_speedups(candidates: list[Candidate], settings: Settings) -> dict[str, float]:
    """Measure the speed of the second layer of the dynamics in each file against float32, in turns; medians."""
    agents = load_agents(candidates, settings)
    device = next(iter(agents.values())).device
    layers = {name: agent.model._dynamics[1] for name, agent in agents.items()}
    plain = layers["fp32"]
    assert isinstance(plain, NormedLinear)
    x = torch.nn.functional.mish(torch.randn(ROWS, plain.weight.shape[1], device=device))
    runs: dict[str, Run] = {"eager": partial(plain, x)}
    runs |= {name: partial(fast_layer(layer, device), x) for name, layer in layers.items()}  # type: ignore[arg-type]
    times = take_turns(runs, 10 * settings.repeats, warm_up=3, device=device)
    return {name: times.ms("eager") / times.ms(name) for name in layers}


def measure(source: Path, others: list[Path], settings: Settings, rows_of_inputs: int) -> list[dict[str, Any]]:
    """Measure all recipes of a file, and other files of the same model."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        quantize(source, out, NAMES, settings, count=rows_of_inputs, others=others)
        rows = json.loads(report_files(out, stem_of(source))["json"].read_text(encoding="utf-8"))["recipes"]
        candidates = [Candidate("fp32", full_payload(load_file(source)), 0)]
        candidates += [Candidate(name, path, 0) for name, path in target_files(source, out, NAMES).items()]
        candidates += [Candidate(path.stem, path, 0) for path in others]
        speedups = layer_speedups(candidates, settings)
    kept = ("name", "computes_in", "file_bytes", "size_ratio", "weight_bytes", "regret", "iteration_ms", "plan_ms")
    return [
        {key: row[key] for key in kept}
        | {f"{name}_db": row["errors"][name] for name in ERRORS}
        | {"layer_speedup": speedups[row["name"]]}
        for row in rows
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=5, device="auto")
    parser.add_argument("checkpoint", nargs="?", type=Path, help="(default: a trained student that is here, or random)")
    parser.add_argument("--own", type=Path, help="one more file to measure")
    parser.add_argument(
        "--plans",
        type=int,
        default=12,
        help="observations planned for, for the regret (default: %(default)s, 48 with --full)",
    )
    parser.add_argument("--rows", type=int, default=COUNT, help="inputs to measure errors on (default: %(default)s)")
    args = parse(parser, argv, {"repeats": 20, "plans": 48}, plans=2, rows=20)
    settings = Settings(args.device, args.repeats, args.plans)
    results: list[dict[str, Any]] = []
    with student(args) as path:
        published = path.with_name(path.name.replace("_fp16.pt", "_int8.pt"))
        others = [published] if published != path and published.exists() else []
        for source, beside in [(path, others), *([(args.own, [])] if args.own else [])]:
            rows = measure(source, beside, settings, args.rows)
            print_table(rows, [(source.name, "name", ""), ("layer speedup", "layer_speedup", ".2f")])
            results += [{"student": source.name, **row} for row in rows]
    report("quantization", args, results)


if __name__ == "__main__":
    main()
