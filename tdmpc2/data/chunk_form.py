"""The form of chunk files: fields, types and sizes, and what their values may be.

Each check raises a ``ValueError`` that names the file and, for values, the episode and row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tdmpc2.support.archives import Record
from tdmpc2.tasks import TaskSpec, padded_sizes

DTYPES = {"obs": torch.float32, "action": torch.float32, "reward": torch.float32, "task": torch.int32}
#: The same of a file whose episodes have lengths of their own.
UNEQUAL_DTYPES = {**DTYPES, "episode": torch.int32, "terminated": torch.bool}
TASK_DTYPES = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)  # what others may have written
_MOST_ACTION = 1e6  # beyond this even networks that normalise what they see compute nonsense
AGAIN = "Download or collect the file again"


class Layout(NamedTuple):
    """Sizes that all chunks of a task set share."""

    rows: int  # L + 1
    obs_dim: int  # O, padded
    action_dim: int  # A, padded
    num_tasks: int
    longest: int  # most steps of an episode, where episodes have lengths of their own

    @classmethod
    def of(cls, specs: Sequence[TaskSpec]) -> Layout:
        """Compute the layout of a task set. Where lengths differ (MT80), long episodes are cut to the shortest."""
        obs_dim, action_dim = padded_sizes(specs)
        return cls(
            rows=min(spec.episode_length for spec in specs) + 1,
            obs_dim=obs_dim,
            action_dim=action_dim,
            num_tasks=len(specs),
            longest=max(spec.episode_length for spec in specs),
        )


def check_fields(path: Path, chunk: Mapping[str, Any]) -> None:
    """Require exactly obs, action, reward and task, with their types and consistent shapes, or the unequal form's."""
    form = UNEQUAL_DTYPES if "episode" in chunk else DTYPES
    if set(chunk) != set(form):
        raise ValueError(f"{path} has the fields {', '.join(sorted(chunk))}; a chunk has {', '.join(form)}")
    for name, dtype in form.items():
        allowed = TASK_DTYPES if name == "task" else (dtype,)
        value = chunk[name]
        if type(value) is not Tensor or value.layout != torch.strided or value.dtype not in allowed:
            found = f"a {type(value).__name__}, not a tensor" if not isinstance(value, Tensor) else str(value.dtype)
            if isinstance(value, Tensor) and value.layout != torch.strided:
                found = f"{value.layout}, which is not stored in full: save it with .to_dense()"
            raise ValueError(f"{path}: {name} is {found}, expected {dtype}")
    shapes = {name: tuple(chunk[name].shape) for name in form}
    rows, dims = ("[R", 1) if form is UNEQUAL_DTYPES else ("[N, L+1", 2)
    batch = shapes["reward"]
    if (
        any(len(shape) != dims + (name in ("obs", "action")) for name, shape in shapes.items())
        or any(shape[:dims] != batch for shape in shapes.values())
        or min(batch) < 1
        or batch[-1] < 2
    ):
        raise ValueError(
            f"{path} has shapes {shapes}; expected obs {rows}, O], action {rows}, A], reward {rows}], task {rows}] "
            "with at least one episode of one step"
        )


def check_sizes(path: Path, chunk: Mapping[str, Tensor], records: Sequence[Record]) -> None:
    """Require that all values are in the file: reading mapped ones beyond its end ends the process.

    Expanded views are refused, too: with them a file of some kilobytes could claim any size.
    """
    for name, tensor in chunk.items():
        there = tensor.untyped_storage().nbytes()
        if tensor.nbytes > there - tensor.storage_offset() * tensor.element_size():
            raise ValueError(
                f"{path}: {name} shows {there:,} stored bytes as {tensor.nbytes:,}: save it with .contiguous()"
            )
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in chunk.values()}
    claimed = [size for _, size in sorted(storages.items())]
    found = [record.size for record in records]
    size = path.stat().st_size
    if len(found) != len(claimed) or any(there < needed for there, needed in zip(found, claimed, strict=True)):
        raise ValueError(
            f"{path} ({size:,} bytes) is shorter than it says: it claims arrays of "
            f"{', '.join(f'{n:,}' for n in claimed)} bytes and holds {', '.join(f'{n:,}' for n in found)}. {AGAIN}"
        )


def check_layout(path: Path, chunk: Mapping[str, Tensor], layout: Layout) -> None:
    """Require the sizes of a task set; lengths that are those of the episodes' own are checked with their index."""
    length = layout.rows - 1 if "episode" in chunk else chunk["reward"].shape[1] - 1
    for what, found, expected in (
        ("episodes of length", length, layout.rows - 1),
        ("observations of size", chunk["obs"].shape[-1], layout.obs_dim),
        ("actions of size", chunk["action"].shape[-1], layout.action_dim),
    ):
        if found != expected:
            raise ValueError(f"{path} has {what} {found}, but the task set has {expected}. Is it data of another task?")


def episode_tasks(path: Path, task: Tensor, num_tasks: int, first_episode: int = 0) -> Tensor:
    """Find the task id of each episode, [N] int64, in those of its rows, [N, L+1]; messages count from the first."""
    ids = task[:, 0].long()
    for first in range(0, len(task), 4096):  # bounds the memory of the comparison
        changes = task[first : first + 4096] != task[first : first + 4096, :1]
        if changes.any():
            episode, row = changes.nonzero()[0].tolist()
            episode += first_episode + first
            raise ValueError(f"{path}: the task id changes in episode {episode}, row {row}. {AGAIN}")
    unknown = (ids < 0) | (ids >= num_tasks)
    if unknown.any():
        episode = int(unknown.nonzero()[0])
        raise ValueError(
            f"{path}: the task id is {ids[episode]} in episode {first_episode + episode}, row 0, but the task set has "
            f"ids 0 to {num_tasks - 1}. Is it data of another task set?"
        )
    return ids


def check_finite(path: Path, chunk: Mapping[str, Tensor], episodes: Sequence[int] | Tensor | None = None) -> None:
    """Require finite values in every used row: all of obs, action and reward from row 1 on, and actions of sense.

    Args:
        path: file the rows come from, for the message.
        chunk: obs, action and reward of some episodes.
        episodes: their numbers in the file, for the message; 0, 1, ... by default.
    """
    if chunk["action"][:, 1:].numel():
        low, high = chunk["action"][:, 1:].aminmax()
        if low < -_MOST_ACTION or high > _MOST_ACTION:
            check_actions(path, chunk, episodes, _MOST_ACTION)
    for name, first_row in (("obs", 0), ("action", 1), ("reward", 1)):
        used = chunk[name][:, first_row:]
        if torch.isfinite(used.sum()):  # forty times faster than elementwise; false also where only the sum overflows
            continue
        bad = (~torch.isfinite(used)).nonzero()
        if len(bad):
            index, row, *_ = bad[0].tolist()
            episode = index if episodes is None else int(episodes[index])
            value = used[tuple(bad[0])].item()
            raise ValueError(f"{path}: {name} is {value} in episode {episode}, row {row + first_row}. {AGAIN}")


def check_actions(
    path: Path, chunk: Mapping[str, Tensor], episodes: Sequence[int] | Tensor | None = None, most: float = 1.0001
) -> None:
    """Require actions within [-``most``, ``most``] in every used row; the arguments are those of :func:`check_finite`.

    They lie in [-1, 1], but for rounding: the policy can give no other ones.
    """
    used = chunk["action"][:, 1:]
    outside = used.abs() > most
    if outside.any():
        index, row, entry = outside.nonzero()[0].tolist()
        episode = index if episodes is None else int(episodes[index])
        raise ValueError(
            f"{path}: action is {used[index, row, entry].item():g} in episode {episode}, row {row + 1}, but actions "
            "lie in [-1, 1]: scale them, as 2 * (action - low) / (high - low) - 1"
        )
