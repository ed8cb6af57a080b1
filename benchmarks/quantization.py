"""Size, errors, regret and speed of every recipe, side by side in one run.

python benchmarks/quantization.py [STUDENT_fp16.pt] [--own model.pt] --repeats 20

STUDENT is the published one by default; where it is not there, --checkpoint (a demo's student) takes its place. Its
published int8 file, if it lies beside it, is one more row. What is measured is what `python quantize.py` reports.

The last line is JSON: `recipes`, a list with `name`, `file_bytes`, `size_ratio` (to float32), `latent_db`, `reward_db`,
`value_db`, `policy_db` (null: exact), `regret`, `plan_ms` (one environment, by the CPU kernels where there are any) and
`layer_speedup`: one layer with 512 rows (the second of the dynamics, 384 x 384 in the 1M model, with LayerNorm and
Mish) in the format the recipe computes it in, by the CPU kernels or else compiled, against the float32 layer as PyTorch
computes it eagerly. `own` is the same for the file of --own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box, get_console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdmpc2.acceleration.cpu import library
from tdmpc2.acceleration.cpu.networks import PackedLayer, linear, normed_linear
from tdmpc2.checkpoints.files import load_file
from tdmpc2.nn.layers import NormedLinear
from tdmpc2.quantization.command import quantize
from tdmpc2.quantization.files import NAMES, full_payload, stem_of, target_files
from tdmpc2.quantization.measure import Candidate, Settings, load_agents
from tdmpc2.quantization.report import report_files
from tdmpc2.support.runtime import can_compile, set_num_threads

PUBLISHED = Path("../shared/checkpoints/mt30_1M_steps_045dist_fp16.pt")
ROWS = 512
ERRORS = ("latent", "reward", "value", "policy")


def fast_layer(layer: NormedLinear, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The fastest way to compute a layer here."""
    if device.type == "cpu" and not library.reason():
        packed = PackedLayer(linear(layer, 1))
        return lambda x: normed_linear(x, packed)
    return torch.compile(layer, dynamic=False) if can_compile(device) else layer


@torch.no_grad()
def layer_speedups(candidates: list[Candidate], settings: Settings) -> dict[str, float]:
    """Speed of the second layer of the dynamics in each file against float32, computed in turns; medians."""
    agents = load_agents(candidates, settings)
    device = next(iter(agents.values())).device
    layers = {name: agent.model._dynamics[1] for name, agent in agents.items()}
    plain = layers["fp32"]
    assert isinstance(plain, NormedLinear)
    x = torch.nn.functional.mish(torch.randn(ROWS, plain.weight.shape[1], device=device))
    runs: dict[str, Callable[[], Any]] = {"eager": partial(plain, x)}
    runs |= {name: partial(fast_layer(layer, device), x) for name, layer in layers.items()}  # type: ignore[arg-type]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(10 * settings.repeats + 3):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values[3:])) for name, values in seconds.items()}
    return {name: medians["eager"] / medians[name] for name in layers}


def measure(source: Path, others: list[Path], settings: Settings) -> list[dict[str, Any]]:
    """All recipes of a file, and other files of the same model."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        quantize(source, out, NAMES, settings, others=others)
        rows = json.loads(report_files(out, stem_of(source))["json"].read_text(encoding="utf-8"))["recipes"]
        candidates = [Candidate("fp32", full_payload(load_file(source)), 0)]
        candidates += [Candidate(name, path, 0) for name, path in target_files(source, out, NAMES).items()]
        candidates += [Candidate(path.stem, path, 0) for path in others]
        speedups = layer_speedups(candidates, settings)
    kept = ("name", "computes_in", "file_bytes", "size_ratio", "weight_bytes", "regret", "sweep_ms", "plan_ms")
    return [
        {key: row[key] for key in kept}
        | {f"{name}_db": row["errors"][name] for name in ERRORS}
        | {"layer_speedup": speedups[row["name"]]}
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", nargs="?", type=Path, default=PUBLISHED, help=f"default: {PUBLISHED}")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("demo/student/model.pt"), help="if STUDENT is not there"
    )
    parser.add_argument("--own", type=Path, help="one more file to measure")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--plans", type=int, default=48, help="observations planned for, for the regret")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    threads = set_num_threads(args.threads)
    student = args.student
    if not student.exists():
        print(f"{student} is not here: measuring {args.checkpoint}")
        student = args.checkpoint
    published = student.with_name(student.name.replace("_fp16.pt", "_int8.pt"))
    others = [published] if published != student and published.exists() else []
    settings = Settings(args.device, args.repeats, args.plans)
    result = {"recipes": measure(student, others, settings)}
    if args.own:
        result["own"] = measure(args.own, [], settings)

    for title, rows in result.items():
        table = Table("file", "layer speedup", title=title, box=box.SIMPLE)
        for row in rows:
            table.add_row(row["name"], f"{row['layer_speedup']:.2f}")
        get_console().print(table)
    facts = {"device": args.device, "threads": threads, "torch": torch.__version__, "repeats": args.repeats}
    print(json.dumps({**facts, "student": student.name, **result}))


if __name__ == "__main__":
    main()
