"""Both forms of one data set, for tests of ``tdmpc2 data``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc2.data.store.meta import StoreFile, StoreMeta
from tdmpc2.data.store.store import header
from tests.helpers.data import SPECS, L, save_raw

TASKS = [0, 0, 1, 0, 1, 0, 0, 1, 1]  # task 2 has no episode
FORMS = ("chunks", "store")


def episodes(tasks: list[int] = TASKS, seed: int = 0) -> dict[str, Tensor]:
    """Make random episodes in the padded form, as a recording has them."""
    generator = torch.Generator().manual_seed(seed)
    n, task = len(tasks), torch.tensor(tasks, dtype=torch.int32)
    own_obs = torch.arange(4) < torch.tensor([s.obs_dim for s in SPECS])[task.long(), None]
    own_action = torch.arange(2) < torch.tensor([s.action_dim for s in SPECS])[task.long(), None]
    obs = torch.randn(n, L + 1, 4, generator=generator) * own_obs[:, None]
    action = (2 * torch.rand(n, L + 1, 2, generator=generator) - 1) * own_action[:, None]
    reward = torch.rand(n, L + 1, generator=generator)
    action[:, 0] = reward[:, 0] = torch.nan
    return {"obs": obs, "action": action, "reward": reward, "task": task[:, None].expand(n, L + 1).clone()}


def write_chunks(root: Path, data: dict[str, Tensor], sizes: tuple[int, ...] = (4, 5)) -> Path:
    """Write chunk files of some episodes each, unchecked, with the record of collecting that names the tasks."""
    root.mkdir(parents=True)
    parts = [
        dict(zip(data, values, strict=True)) for values in zip(*(v.split(sizes) for v in data.values()), strict=True)
    ]
    for number, part in enumerate(parts):
        save_raw(root / f"chunk_{number}.pt", {name: values.clone() for name, values in part.items()})
    record = {"format": 1, "task": "three", "tasks": [asdict(spec) for spec in SPECS], "collections": []}
    (root / "collect.json").write_text(json.dumps(record))
    return root


def write_store(root: Path, data: dict[str, Tensor], dtype: str = "float32", block: int = 2) -> Path:
    """Write a store as its format describes it, unchecked and without the importer."""
    root.mkdir(parents=True)
    meta = StoreMeta("three", SPECS, len(data["task"]), dtype, block=block)
    rows = meta.row_format.join(data["obs"], data["action"], data["reward"]).numpy()
    arrays = {"rows.npy": (rows, meta.row_format.record, rows.shape[:2])}
    task = data["task"][:, 0].numpy().astype("<i4")
    arrays["task.npy"] = (task, task.dtype, task.shape)
    files = {}
    for name, (values, dtype_, shape) in arrays.items():
        content = header(shape, dtype_) + values.tobytes()
        (root / name).write_bytes(content)
        sums = [hashlib.sha256(values[i : i + block].tobytes()).hexdigest() for i in range(0, len(values), block)]
        files[name] = StoreFile(len(content), tuple(sums))
    (root / "meta.json").write_text(StoreMeta(**{**meta.__dict__, "files": files}).to_json())
    return root


def write(root: Path, form: str, data: dict[str, Tensor]) -> Path:
    return write_chunks(root, data) if form == "chunks" else write_store(root, data)


def facts_of(run_data: Callable[..., tuple[int, str, str]], *arguments: object) -> dict[str, Any]:
    code, out, _ = run_data("inspect", *arguments, "--json")
    assert code == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(out, parse_constant=refuse)


def flip(path: Path, position: int) -> None:
    """Change one bit; a negative position counts from the end."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def problems_of(run_data: Any, *arguments: object) -> list[str]:
    code, out, _ = run_data("verify", *arguments)
    assert code == 1
    *problems, last = out.splitlines()
    assert last.endswith(f": {len(problems)} problem{'s' * (len(problems) > 1)}")
    return problems
