"""The files that finished runs leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tdmpc2.config import Config

PNG = b"\x89PNG\r\n\x1a\n"


def write_run(
    root: Path, seed: int, score: float | None, *, weight: float | None = None, step: int = 100, **changes: Any
) -> Path:
    """Write the files that a run leaves behind; without a weight it has no teacher."""
    name = "none" if weight is None else f"weight_{weight}"
    directory = root / str(seed) / "-".join([name, *map(str, changes.values())])
    directory.mkdir(parents=True)
    settings = {"steps": 100, "eval_freq": 50, "seed": seed, "exp_name": directory.name, **changes}
    config = Config(**settings, **({} if weight is None else {"distillation_weight": weight}))
    teacher = None if weight is None else "ab" * 32
    record = {**config.to_dict(), "teacher_sha256": teacher, "data": {"checksum": "c"}}
    (directory / "run.json").write_text(json.dumps(record))
    (directory / "train.csv").write_text(f"step,reward_loss,value_loss\n50,2.0,3.0\n{step},{seed / 2},1.5\n")
    (directory / "speed.csv").write_text("step,seconds,it_per_s\n50,1800.0,1.0\n100,5400.0,1.0\n")
    if score is not None:
        (directory / "evaluations.json").write_text(json.dumps({"50": score + 1, "100": score}))
        (directory / "eval_tasks.csv").write_text(
            f"step,task,episodes,return,success\n50,cup-spin,1,1.0,0\n100,cup-spin,1,{10 * score},0\n"
        )
    return directory
