"""Measure what offline data holds: returns per task, ranges of values, values that are wrong.

Episodes are read in blocks, so that the memory it takes does not grow with the data.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.index import EpisodeIndex, used_rows
from tdmpc2.data.placement import choose_place
from tdmpc2.data.reward_range import beyond_bins
from tdmpc2.data.rows import RowFormat
from tdmpc2.data.source import FIRST_ROW, Source
from tdmpc2.support.runtime import available_memory, resolve_device
from tdmpc2.tasks import TaskSpec
from tdmpc2.tracking.progress import Progress

SAMPLE = 2000  # episodes that a quick audit reads
_BLOCK = 256  # episodes read at a time: 16 MB of MT30


@dataclass
class Finding:
    """Values of one kind that should not be there: how many, in how many episodes, and where the first one is."""

    values: int = 0
    episodes: int = 0
    first: str = ""


class _Field(NamedTuple):
    """One field of a block of n episodes."""

    path: Path
    episodes: Tensor  # [n]
    name: str
    first_row: int  # of the values in the episode
    values: Tensor  # [n, R, D]
    own: Tensor  # [n, D]: entries the episode's task has
    used: Tensor  # [n, R]: rows the episode has


class Audit:
    """Facts about episodes, gathered block by block.

    Args:
        specs: tasks of the set, in id order.

    Attributes:
        episodes: how many were read.
        findings: by what is wrong, such as ``action outside [-1, 1]``.
        ranges: obs, action, reward -> smallest and largest finite value per task, [T] each, without padded entries.
        free_filler: episodes whose action and reward in row 0 are not all NaN.
    """

    def __init__(self, specs: tuple[TaskSpec, ...]) -> None:
        layout, count = Layout.of(specs), len(specs)
        sizes = {"obs": [spec.obs_dim for spec in specs], "action": [spec.action_dim for spec in specs]}
        padded = {"obs": layout.obs_dim, "action": layout.action_dim, "reward": 1}
        self._own = {  # [T, D]: entries a task has
            name: torch.arange(size) < torch.tensor(sizes.get(name, [1] * count))[:, None]
            for name, size in padded.items()
        }
        self.ranges = {
            name: (
                torch.full((count,), torch.inf, dtype=torch.float32),
                torch.full((count,), -torch.inf, dtype=torch.float32),
            )
            for name in padded
        }
        self.findings = {f"{name} not finite": Finding() for name in padded}
        self.findings["action outside [-1, 1]"] = Finding()
        self.findings |= {f"{name} padding not zero": Finding() for name in ("obs", "action")}
        self.episodes = self.free_filler = 0
        self._task: list[Tensor] = []
        self._returns: list[Tensor] = []

    @property
    def returns(self) -> dict[int, np.ndarray]:
        """Task id -> returns of its episodes, [n] float64; those with rewards that are not finite are left out."""
        task, returns = torch.cat(self._task), torch.cat(self._returns)
        finite = returns.isfinite()
        return {i: returns[finite & (task == i)].numpy() for i in task.unique().tolist()}

    def add(self, path: Path, episodes: Tensor, index: EpisodeIndex, block: dict[str, Tensor]) -> None:
        """Measure a block of n episodes.

        Args:
            path: file they are from.
            episodes: their numbers in it, [n].
            index: task and length of each.
            block: obs [n, L+1, O], action [n, L+1, A] and reward [n, L+1], float32; zeros follow the end of an episode.
        """
        task = index.task
        self.episodes += len(episodes)
        self._task.append(task)
        self._returns.append(block["reward"][:, 1:].sum(1, dtype=torch.float64))
        filler = block["action"][:, 0].isnan().all(1) & block["reward"][:, 0].isnan()
        self.free_filler += int((~filler).sum())
        used = used_rows(index.lengths, block["reward"].shape[1])
        last = torch.minimum(torch.arange(used.shape[1]), index.lengths[:, None])[..., None]
        for name, first_row in FIRST_ROW.items():
            values = block[name].reshape(*used.shape, -1)
            if not used.all():  # a last row again instead of zeros, which are no values of the episode
                values = values.gather(1, last.expand_as(values))
            values = values[:, first_row:]
            field = _Field(path, episodes, name, first_row, values, self._own[name][task], used[:, first_row:])
            low, high = values.aminmax(dim=1)  # [n, D]; NaN where any value is
            bad = ~(low.isfinite() & high.isfinite())
            self._find(f"{name} not finite", field, bad, lambda v, own: ~v.isfinite())
            if name == "action":
                outside = field.own & ((low < -1) | (high > 1) | bad)
                self._find("action outside [-1, 1]", field, outside, lambda v, own: own & v.isfinite() & (v.abs() > 1))
            if name != "reward":
                filled = ~field.own & ((low != 0) | (high != 0))
                self._find(f"{name} padding not zero", field, filled, lambda v, own: ~own & (v != 0))
            if (some := bad.any(1)).any():
                finite = values[some].isfinite()
                low[some] = values[some].where(finite, torch.inf).amin(1)
                high[some] = values[some].where(finite, -torch.inf).amax(1)
            smallest, largest = self.ranges[name]
            smallest.scatter_reduce_(0, task, low.where(field.own, torch.inf).amin(1), "amin")
            largest.scatter_reduce_(0, task, high.where(field.own, -torch.inf).amax(1), "amax")

    def _find(self, kind: str, field: _Field, where: Tensor, is_wrong: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Count the wrong values in those episodes where any entry of ``where`` [n, D] is true."""
        some = where.any(1)
        if not some.any():
            return
        values = field.values[some]
        wrong = is_wrong(values, field.own[some, None]) & field.used[some, :, None]
        finding = self.findings[kind]
        finding.values += int(wrong.sum())
        finding.episodes += int(wrong.any(2).any(1).sum())
        if not finding.first and wrong.any():
            index, row, entry = wrong.nonzero()[0].tolist()
            place = field.name if field.name == "reward" else f"{field.name}[{entry}]"
            finding.first = (
                f"{field.path.name}, episode {field.episodes[some][index]}, row {row + field.first_row}: "
                f"{place} is {values[index, row, entry]:g}"
            )


def audit(source: Source, sample: int | None = None) -> Audit:
    """Measure all episodes, or ``sample`` evenly spaced ones; progress goes to standard error."""
    total = sum(len(part.index) for part in source.parts)
    count = total if sample is None else min(sample, total)
    chosen = torch.arange(count) * total // count
    result = Audit(source.specs)
    first = 0
    with Progress(count, "Inspecting", unit="episodes", stream=sys.stderr) as bar:
        for part in source.parts:
            own = chosen[(chosen >= first) & (chosen < first + len(part.index))] - first
            first += len(part.index)
            for episodes in own.split(_BLOCK) if len(own) else ():
                result.add(part.path, episodes, part.index.take(episodes), part.read(episodes))
                bar.update(len(episodes), part.path.name)
    return result


# -- reporting --------------------------------------------------------------------------------------------------------


def describe(source: Source, measured: Audit) -> dict[str, Any]:
    """Gather what ``inspect`` prints as plain values; a range without a finite value is None."""
    layout, index = source.layout, source.index
    counts = torch.bincount(index.task, minlength=layout.num_tasks).tolist()
    returns = measured.returns
    tasks = [
        {
            "id": index,
            "name": spec.name,
            "episodes": counts[index],
            "return": _statistics(returns.get(index)),
            **{name: _range(low[index], high[index]) for name, (low, high) in measured.ranges.items()},
        }
        for index, spec in enumerate(source.specs)
    ]
    return {
        "path": str(source.path),
        "form": source.form,
        "task": source.task,
        "dtype": source.dtype,
        "episodes": len(index),
        "rows": index.num_rows,
        "episode_length": int(index.lengths.max()),
        "shortest": int(index.lengths.min()),
        "terminated": int(index.terminated.sum()),
        "obs_dim": layout.obs_dim,
        "action_dim": layout.action_dim,
        "bytes": sum(source.files.values()),
        "bytes_free": shutil.disk_usage(source.path).free,
        "files": [
            {"name": name, "bytes": size, "episodes": _episodes_in(source, name)} for name, size in source.files.items()
        ],
        "store": str(store) if (store := source.path / "store").exists() else None,
        "memory": _memory(layout, index),
        "tasks": tasks,
        "audited_episodes": measured.episodes,
        "ranges": {name: _range(low.min(), high.max()) for name, (low, high) in measured.ranges.items()},
        "findings": {kind: asdict(finding) for kind, finding in measured.findings.items()},
        "filler_not_nan": measured.free_filler,
        "warnings": _warnings(source.specs, *measured.ranges["reward"]),
    }


def _warnings(specs: Sequence[TaskSpec], low: Tensor, high: Tensor) -> list[str]:
    """Name the tasks with rewards, [T] smallest and largest, beyond the bins that a model has unless told otherwise."""
    lines = (beyond_bins(Config(), torch.stack(ends), spec.name) for *ends, spec in zip(low, high, specs, strict=True))
    return [line for line in lines if line]


def _statistics(returns: np.ndarray | None) -> dict[str, float] | None:
    if returns is None or not len(returns):
        return None
    marks = zip(("min", "p10", "median", "p90", "max"), np.quantile(returns, (0, 0.1, 0.5, 0.9, 1)), strict=True)
    return {"mean": float(returns.mean()), **{name: float(value) for name, value in marks}}


def _range(low: Tensor, high: Tensor) -> list[float] | None:
    return [float(low), float(high)] if low <= high else None


def _episodes_in(source: Source, name: str) -> int | None:
    return next((len(part.index) for part in source.parts if part.path.name == name), None)


def _memory(layout: Layout, index: EpisodeIndex) -> dict[str, Any]:
    """Compute what the episodes take in memory, what is free, and where ``data_device=auto`` would put them."""
    device = resolve_device("auto")
    free = {"cpu": available_memory(torch.device("cpu"))}
    if device.type == "cuda":
        free["cuda"] = available_memory(device)
    facts: dict[str, Any] = {"free": free}
    for dtype in ("float32", "float16"):
        record = RowFormat(layout.obs_dim, layout.action_dim, dtype).record
        size = index.num_rows * record.itemsize + len(index) * 8  # and the task id
        fits = [place for place in free if size <= free[place]]
        facts[dtype] = {"bytes": size, "fits": fits, "auto": choose_place("auto", device, size)}
    return facts
