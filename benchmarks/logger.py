"""What one row of metrics costs the training loop: CSV alone, and with Weights & Biases (offline), turn by turn.

python benchmarks/logger.py --rows 2000

Also the call that uploads a checkpoint. The last line is JSON with all of it, in milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich import box, get_console
from rich.table import Table

from tdmpc2.config import Config
from tdmpc2.tracking.logger import Logger

METRICS = {f"metric_{index}": torch.tensor(index / 3) for index in range(11)}  # as many as an update has


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--megabytes", type=int, default=8, help="size of the checkpoint")
    args = parser.parse_args()
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        os.environ |= {f"WANDB_{kind}_DIR": name for kind in ("DATA", "CACHE", "CONFIG")}
        checkpoint = Path(name) / "model.pt"
        checkpoint.write_bytes(os.urandom(args.megabytes * 1_000_000))
        loggers = {}
        for label, project in (("CSV alone", None), ("CSV and W&B", "benchmark")):
            cfg = Config(task="walker-walk", work_dir=f"{name}/{project}", wandb_project=project)
            loggers[label] = stack.enter_context(Logger(cfg, total_steps=args.rows, stream=io.StringIO()))
        for step in range(1, args.rows + 1):
            for label, logger in loggers.items():
                began = time.perf_counter()
                logger.log(step, METRICS, data_wait=0.0)
                times.setdefault(label, []).append(time.perf_counter() - began)
            if step % 100 == 0:
                began = time.perf_counter()
                loggers["CSV and W&B"].save_artifact(checkpoint, "student", "model")
                times.setdefault(f"W&B, {args.megabytes} MB checkpoint", []).append(time.perf_counter() - began)
    table = Table("ms", "median", "99 %", "most", title="Time of one call", box=box.SIMPLE)
    result = {}
    for label, seconds in times.items():
        median, high, most = 1e3 * np.percentile(seconds, [50, 99, 100])
        result[label] = {"median": median, "p99": high, "max": most}
        table.add_row(label, *(f"{value:.3f}" for value in (median, high, most)))
    get_console().print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
