"""Numbers recorded from the reference's online agents, and agents rebuilt from them.

Whatever a file holds follows from its arrays: sizes, discount, number of updates and plans. Another folder of such
files is read by setting TDMPC2_GOLDEN to the folder above ``online``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import MODEL_SIZES, Config
from tdmpc2.tasks import TaskSpec
from tests.helpers.reference import SHARED

Recorded = dict[str, torch.Tensor]


def golden_folder() -> Path:
    """Return the folder that the files of ``online/`` are read from."""
    return Path(os.environ.get("TDMPC2_GOLDEN", SHARED / "golden")) / "online"


def agent_files() -> list[tuple[Path, int]]:
    """List the files of agents with their latent sizes; those of environments have another form."""
    found = []
    for path in sorted(golden_folder().glob("*.npz")):
        with np.load(path) as arrays:
            if "meta/weight_seed" in arrays:
                found.append((path, arrays["fwd/z"].shape[1]))
    return found


def read(path: Path) -> Recorded:
    with np.load(path) as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays}


def config_of(g: Recorded, **keys: Any) -> Config:
    """Return the configuration of the agent that a file was recorded from."""
    pixels = g["fwd/obs"].ndim == 4
    found = {"latent_dim": g["fwd/z"].shape[1], "num_q": len(g["fwd/q"])}
    if not pixels:
        layers = {name for name in g if re.fullmatch(r"weight_sum/_encoder\.state\.\d+\.weight", name)}
        found["num_enc_layers"] = len(layers)
    (size,) = (size for size, widths in MODEL_SIZES.items() if found.items() <= widths.items())
    length = round(5 / (1 - float(g["discount"])))
    spec = TaskSpec("recorded", 1 if pixels else g["fwd/obs"].shape[1], g["fwd/action"].shape[1], length)
    episodic = "fwd/termination" in g
    return Config(
        task="recorded", task_specs=(spec,), model_size=size, obs="rgb" if pixels else "state", episodic=episodic,
        dropout=0.0, device="cpu", **keys,
    )  # fmt: skip


def weights_of(g: Recorded, cfg: Config) -> Recorded:
    """Draw the initial weights, which are given by a seed and a rule."""
    names = sorted(name.partition("/")[2] for name in g if name.startswith("weight_sum/"))
    shapes = {name: tensor.shape for name, tensor in TDMPC2(cfg).model.state_dict().items()}
    assert set(names) == set(shapes)
    draw = np.random.default_rng(int(g["meta/weight_seed"]))
    weights = {name: torch.from_numpy(_rule(name, draw.standard_normal(tuple(shapes[name])))).float() for name in names}
    if "meta/termination_bias" in g:
        weights["_termination.2.bias"].fill_(float(g["meta/termination_bias"]))
    return weights


def _rule(name: str, x: np.ndarray) -> np.ndarray:
    head = re.fullmatch(r"_(?:target_)?Qs\.params\.(\d+)", name)
    number = int(head[1]) if head else -1
    if name.endswith(".ln.weight") or number in (2, 6):
        return 1 + 0.1 * x
    if name.endswith("bias") or number in (1, 3, 5, 7, 9):
        return 0.1 * x
    if x.ndim == 4:
        return 2 * x / np.sqrt(x[0].size)
    last = name == "_reward.2.weight" or number == 8
    factor = 1.5 if last else 6.0 if name == "_termination.2.weight" else 1.0
    return factor * x / np.sqrt(x.shape[-1])
