"""What one row of metrics costs the training loop: CSV alone, and with Weights & Biases (offline), turn by turn.

python benchmarks/logger.py --full

The call that uploads a checkpoint is timed every hundred rows. Results: `name`, and `median`, `p99` and `max` in ms.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks._harness import Run, make_parser, numbered, parse, report, take_turns
from tdmpc2.config import Config
from tdmpc2.tracking.logger import Logger

MINUTES = 0.125
FULL_MINUTES = 1
DISK_GB = 0.3

METRICS = {f"metric_{index}": torch.tensor(index / 3) for index in range(11)}  # as many as an update has
_UPLOAD_EVERY = 100


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=500, threads=1)
    parser.add_argument("--megabytes", type=int, default=8, help="size of the checkpoint (default: %(default)s)")
    args = parse(parser, argv, {"repeats": 2000}, megabytes=1)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        private = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
        private |= {f"WANDB_{kind}_DIR": name for kind in ("DATA", "CACHE", "CONFIG")}
        stack.enter_context(mock.patch.dict(os.environ, private))
        checkpoint = Path(name) / "model.pt"
        checkpoint.write_bytes(os.urandom(args.megabytes * 1_000_000))
        runs: dict[str, Run] = {}
        for label, project in (("CSV alone", None), ("CSV and W&B", "benchmark")):
            cfg = Config(task="walker-walk", work_dir=f"{name}/{project}", wandb_project=project)
            logger = stack.enter_context(Logger(cfg, total_steps=args.repeats, stream=io.StringIO()))
            runs[label] = numbered(partial(_log, logger))
        upload = {"upload": partial(logger.save_artifact, checkpoint, "student", "model")}
        times: dict[str, list[float]] = {}
        for first in range(0, args.repeats, _UPLOAD_EVERY):
            rows = take_turns(runs, min(_UPLOAD_EVERY, args.repeats - first), warm_up=0)
            for label, seconds in [*rows.seconds.items(), *take_turns(upload, 1, warm_up=0).seconds.items()]:
                times.setdefault(label, []).extend(1e3 * seconds)
    results = []
    for label, ms in times.items():
        median, high, most = map(float, np.percentile(ms, [50, 99, 100]))
        results.append({"name": label, "median": median, "p99": high, "max": most})
    columns = [("call", "name", ""), ("median ms", "median", ".3f"), ("99 %", "p99", ".3f"), ("most", "max", ".3f")]
    report("logger", args, results, columns)


def _log(logger: Logger, row: int) -> None:
    logger.log(row + 1, METRICS, data_wait=0.0)


if __name__ == "__main__":
    main()
