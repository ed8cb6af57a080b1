"""Episodes whose rows can be recognised, stores of random episodes, and data that must be refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.store.meta import StoreFile, StoreMeta
from tdmpc2.data.store.store import EpisodeStore, header
from tdmpc2.tasks import TaskSpec

L = 6
SPECS = (TaskSpec("three-two", 3, 2, L), TaskSpec("four-one", 4, 1, L), TaskSpec("two-two", 2, 2, L))
ALL = (0, 1, 2)


def fields(
    tasks: list[int], first: int = 0, length: int = L, obs_dim: int = 4, action_dim: int = 2
) -> dict[str, Tensor]:
    """Make episodes ``first``, ``first + 1``, ... of tasks: obs[e, t] = (e, t, ...), reward[e, t] = 100 e + t."""
    episode = torch.arange(first, first + len(tasks), dtype=torch.float32)[:, None].expand(-1, length + 1)
    row = torch.arange(length + 1, dtype=torch.float32).expand(len(tasks), -1)
    obs, action = torch.zeros(*row.shape, obs_dim), torch.zeros(*row.shape, action_dim)
    obs[..., 0], obs[..., 1] = episode, row
    reward = 100 * episode + row
    action[..., 0] = reward
    action[:, 0] = reward[:, 0] = torch.nan
    task = torch.tensor(tasks, dtype=torch.int32)[:, None].expand_as(row).clone()
    return {"obs": obs, "action": action, "reward": reward, "task": task}


def in_memory(tasks: list[int], length: int = L) -> EpisodeDataset:
    data = fields(tasks, length=length)
    return EpisodeDataset.of(data["obs"], data["action"], data["reward"], data["task"][:, 0].long())


def save_raw(path: Path, data: dict[str, Any]) -> Path:
    """Save a file as others may have written it, without the checks of ``write_chunk``."""
    torch.save(TensorDict(data, batch_size=data["reward"].shape[:1]), path)
    return path


BAD_LAYOUTS = {
    "episode length": (fields([0], length=L + 1), f"episodes of length {L + 1}, but the task set has {L}"),
    "obs size": (fields([0], obs_dim=5), "observations of size 5, but the task set has 4"),
    "action size": (fields([0], action_dim=1), "actions of size 1, but the task set has 2"),
    "task id": (fields([0, 3]), "task id is 3 in episode 1, row 0, but the task set has ids 0 to 2"),
}


def _set(name: str, index: tuple[int, ...], value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(data: dict[str, Tensor]) -> None:
        data[name][index] = value

    return change


def _cast(name: str, dtype: torch.dtype) -> Callable[[dict[str, Tensor]], None]:
    return lambda data: data.update({name: data[name].to(dtype)})


BAD_FIELDS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda data: data.pop("action"), "has the fields obs, reward, task"),
    "extra": (lambda data: data.update(terminated=data["reward"]), "has the fields .*terminated"),
    "obs float64": (_cast("obs", torch.float64), "obs is torch.float64, expected torch.float32"),
    "reward float16": (_cast("reward", torch.float16), "reward is torch.float16"),
    "task float": (_cast("task", torch.float32), "task is torch.float32, expected torch.int32"),
    "rank": (lambda data: data.update(reward=data["reward"][..., None]), r"shapes .*'reward': \(3, 7, 1\)"),
    "rows differ": (lambda data: data.update(action=data["action"][:, 1:]), r"shapes .*'action': \(3, 6, 2\)"),
    "no episode": (lambda data: data.update({k: v[:0] for k, v in data.items()}), "at least one episode"),
    "no step": (lambda data: data.update({k: v[:, :1] for k, v in data.items()}), "at least one episode"),
}
BAD_VALUES: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "nan obs": (_set("obs", (1, 4, 2), torch.nan), "obs is nan in episode 1, row 4"),
    "nan first obs": (_set("obs", (2, 0, 0), torch.nan), "obs is nan in episode 2, row 0"),
    "inf action": (_set("action", (2, 1, 1), torch.inf), "action is inf in episode 2, row 1"),
    "nan first reward": (_set("reward", (1, 1), torch.nan), "reward is nan in episode 1, row 1"),
    "inf reward": (_set("reward", (0, L), -torch.inf), f"reward is -inf in episode 0, row {L}"),
    "task changes": (_set("task", (1, 3), 2), "task id changes in episode 1, row 3"),
    "negative task": (_set("task", (1,), -1), "task id is -1 in episode 1, row 0"),
}


EPISODES = 7


def make_store(
    path: Path, cfg: Config, episodes: int = EPISODES, dtype: str = "float32", seed: int = 0
) -> EpisodeStore:
    """Make a store of random episodes of the tasks in turn."""
    meta = StoreMeta(cfg.task, cfg.task_specs, episodes, dtype)
    shape, layout = (episodes, meta.layout.rows), meta.layout
    generator = torch.Generator().manual_seed(seed)
    task = np.arange(episodes, dtype="<i4") % layout.num_tasks
    obs = torch.randn(*shape, layout.obs_dim, generator=generator)
    action = torch.rand(*shape, layout.action_dim, generator=generator) * 2 - 1
    reward = torch.rand(shape, generator=generator)
    action[:, 0] = reward[:, 0] = torch.nan
    rows = meta.row_format.join(obs, action, reward).numpy()
    path.mkdir(parents=True)
    files = {}
    for name, start, content in (
        ("rows.npy", header(shape, meta.row_format.record), rows.tobytes()),
        ("task.npy", header(shape[:1], task.dtype), task.tobytes()),
    ):
        (path / name).write_bytes(start + content)
        files[name] = StoreFile(len(start) + len(content), (hashlib.sha256(content).hexdigest(),))
    (path / "meta.json").write_text(replace(meta, files=files).to_json())
    return EpisodeStore.open(path)
