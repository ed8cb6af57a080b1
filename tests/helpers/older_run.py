"""A distilled run of six steps that version 0.1.0 (commit 685bc23) made and left unfinished: golden/run_0.1.0.zip.

Made with that commit checked out at OLD by

    PYTHONPATH=OLD python tests/helpers/older_run.py tests/golden/run_0.1.0.zip

The archive has its teacher, its run directory after step 6, and the losses of that version up to step 12.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdmpc2.config import Config
from tdmpc2.data.chunks import write_chunk
from tdmpc2.training.offline import train

SIZES: dict[str, Any] = {
    "model_size": None, "enc_dim": 8, "mlp_dim": 8, "latent_dim": 8, "task_dim": 4, "num_q": 2, "num_samples": 16,
    "num_elites": 4, "num_pi_trajs": 4, "iterations": 1, "tasks": ("pendulum-spin", "cartpole-balance"),
    "batch_size": 8, "log_freq": 1, "eval_freq": 0, "device": "cpu", "num_threads": 1,
}  # fmt: skip
TARGETS: dict[str, Any] = {"distillation_targets": ("reward", "value 0.2"), "distillation_schedule": "gap"}
SAVED_AT, LAST = 6, 12


def config(directory: Path, name: str, steps: int, **changes: Any) -> Config:
    return Config(data_dir=str(directory / "data"), work_dir=str(directory / name), steps=steps, **SIZES, **changes)


def write_data(directory: Path) -> None:
    """Write two episodes of each task; a RandomState draws the same numbers in every version of numpy."""
    draw = np.random.RandomState(7)
    obs = torch.from_numpy(draw.standard_normal((4, 501, 24)).astype(np.float32))
    action = torch.from_numpy(draw.uniform(-1, 1, (4, 501, 6)).astype(np.float32))
    reward = torch.from_numpy(draw.uniform(0, 1, (4, 501)).astype(np.float32))
    task = Config().task_names
    ids = torch.tensor([task.index(name) for name in SIZES["tasks"] for _ in range(2)])
    action[..., 1:] = 0  # both tasks have one action
    action[:, 0] = reward[:, 0] = torch.nan
    write_chunk(directory / "data" / "chunk_0.pt", obs, action, reward, ids)


def make(archive: Path) -> None:
    archive = archive.absolute()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # so that the record of the run names no directory of this machine
        root = Path()
        write_data(root)
        teacher = Config(checkpoint=str(train(config(root, "teacher", 4, seed=5), None)))
        whole = train(config(root, "whole", LAST, **TARGETS), teacher).parent
        part = train(config(root, "run", SAVED_AT, **TARGETS), teacher).parent
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
            out.write(root / "teacher" / "model.pt", "teacher.pt")
            out.write(whole / "train.csv", "expected.csv")
            for path in ("run.json", "state.pt", "train.csv", "speed.csv"):
                out.write(part / path, f"run/{path}")


def unpack(directory: Path) -> tuple[Config, Config]:
    """Put data, teacher and run into a directory and return the configurations that continue the run."""
    archive = Path(__file__).parents[1] / "golden" / "run_0.1.0.zip"
    shutil.unpack_archive(archive, directory)
    write_data(directory)
    return config(directory, "run", LAST, **TARGETS), Config(checkpoint=str(directory / "teacher.pt"))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
