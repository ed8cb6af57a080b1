"""Read, check and write chunk files, the form in which the MT30 and MT80 sets are published.

A chunk is a pickled ``TensorDict`` of batch shape [N, L + 1], N episodes of L steps. Row t of an episode holds the
observation after step t and the action and reward that led to it. Row 0 holds the first observation; its action and
reward are filler (NaN in files written here, anything in published ones) and are never used. Episodes of other lengths,
and those that terminate, are in files of another form (:mod:`tdmpc2.data.unequal`).
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import tensordict.utils
import torch
from tensordict import TensorDict
from tensordict._reductions import _make_td
from torch import Tensor

from tdmpc2.support.archives import Checksums, Record, is_archive, read_directory
from tdmpc2.support.files import replacing
from tdmpc2.support.reading import NotRegularError, open_regular
from tdmpc2.support.text import cut
from tdmpc2.tasks import TaskSpec

DTYPES = {"obs": torch.float32, "action": torch.float32, "reward": torch.float32, "task": torch.int32}
#: The same of a file whose episodes have lengths of their own.
UNEQUAL_DTYPES = {**DTYPES, "episode": torch.int32, "terminated": torch.bool}
_TASK_DTYPES = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)  # what others may have written

# Names that files of tensordict 0.2 up to now contain, under the paths they had in the version that wrote them.
_ALLOWED: list[Any] = [
    _make_td,
    TensorDict,
    (TensorDict, "tensordict.tensordict.TensorDict"),
    (dict, "tensordict.utils._StringOnlyDict"),
    (getattr(tensordict.utils, "_LockedSchema", tuple), "tensordict.utils._LockedSchema"),
]
_NAME = re.compile(r"chunk_(\d+)\.pt")
_RECORD = re.compile(r"[^/]+/data/\d+")  # a tensor's values, in the archive that a file is
_MOST_ACTION = 1e6  # beyond this even networks that normalise what they see compute nonsense
_AGAIN = "Download or collect the file again"


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
        return cls(
            rows=min(spec.episode_length for spec in specs) + 1,
            obs_dim=max(spec.obs_dim for spec in specs),
            action_dim=max(spec.action_dim for spec in specs),
            num_tasks=len(specs),
            longest=max(spec.episode_length for spec in specs),
        )


def chunk_paths(data_dir: str | os.PathLike[str], task: str = "mt30") -> list[Path]:
    """List the chunk files of a directory, ``chunk_2.pt`` before ``chunk_10.pt``.

    Args:
        data_dir: their directory.
        task: task or task set they should be of, for the advice where there are none.

    Raises:
        ValueError: no such directory, nothing in it, or a ``chunk_*.pt`` without a number.
    """
    root = Path(data_dir).expanduser()
    found = sorted(root.glob("chunk_*.pt"))
    if not found:
        problem = "has no chunk files" if root.is_dir() else "is not a directory"
        collected = f"{'' if task == 'mt30' else f'task={task} '}data_dir={data_dir}"
        published = ", or download the published set: Hugging Face dataset nicklashansen/tdmpc2, folder mt30, 4 files"
        raise ValueError(
            f"data_dir={data_dir} {problem}; expected chunk_0.pt, chunk_1.pt, ... in it. Make data with "
            f"`python collect.py {collected}`" + (f"{published}, 44 GB" if task == "mt30" else "")
        )
    numbered = []
    for path in found:
        if not (match := _NAME.fullmatch(path.name)):
            raise ValueError(f"{path} is not named chunk_<number>.pt: rename it, or move it away if it is a duplicate")
        numbered.append((int(match[1]), path))
    return [path for _, path in sorted(numbered)]


def read_chunk(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Map a chunk file into memory without running code from it.

    Rows are read from disk when they are touched; writing to the tensors does not change the file.

    Returns:
        obs [N, L+1, O], action [N, L+1, A] and reward [N, L+1] in float32, task [N, L+1] in int32 or the integers that
        the file has: :func:`episode_tasks` converts them. Where episodes have lengths of their own, [R, ...] instead of
        [N, L+1, ...], and the fields episode and terminated.

    Raises:
        ValueError: unreadable, truncated or shorter than it says, holds anything but tensors, or has other fields,
            types or shapes.
    """
    path = Path(path).expanduser()
    with torch.serialization.safe_globals(_ALLOWED):
        try:
            with open_regular(path) as file:
                if not is_archive(file) and _is_legacy(file):
                    raise ValueError(
                        f"{path} is in the form that torch wrote before version 1.6, which cannot be mapped into "
                        "memory: load it and save it again with torch.save(chunk, path)"
                    )
                records = [record for record in read_directory(path, file) if _RECORD.fullmatch(record.name)]
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            chunk = dict(data.items()) if isinstance(data, TensorDict) else {}
        except pickle.UnpicklingError as error:  # its text recommends to load unsafely: not passed on
            name = re.search(r"GLOBAL ([\w.]+)", str(error))
            reason = f"loading it would run {cut(name[1], 80)}" if name else "it is damaged or not a chunk"
            remedy = "Use published or collected files"
            if name and "LazyStackedTensorDict" in name[1]:
                remedy = "Episodes that were stacked lazily have to be joined before they are saved: .contiguous()"
            raise ValueError(f"{path} is refused: {reason}. {remedy}") from None
        except Exception as error:  # a damaged pickle fails in any way
            if isinstance(error, ValueError) and str(error).startswith(str(path)):
                raise
            raise unreadable(path, error) from error
    if not isinstance(data, TensorDict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not a TensorDict of {', '.join(DTYPES)}")
    check_fields(path, chunk)
    check_sizes(path, chunk, records)
    return chunk


def unreadable(path: Path, error: Exception) -> ValueError:
    """Say why a chunk file cannot be opened: something else in its place, no permission, or damage."""
    if isinstance(error, NotRegularError):
        return ValueError(str(error))
    if isinstance(error, PermissionError):
        return ValueError(f"{path} cannot be read: {error.strerror}")
    size = f" ({path.stat().st_size:,} bytes)" if path.is_file() else ""
    return ValueError(
        f"{path}{size} cannot be read as a chunk file: missing, truncated, or a Git LFS pointer in its place "
        f"[{type(error).__name__}: {cut(str(error))}]. {_AGAIN}"
    )


@contextmanager
def chunk_checksums(path: Path) -> Iterator[Checksums]:
    """Open the CRC-32s of a chunk file, to be compared while its episodes are used.

    Raises:
        ValueError: it is no archive.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_regular(path))
            records = read_directory(path, file)
        except (OSError, zipfile.BadZipFile) as error:
            raise unreadable(path, error) from error
        yield Checksums(path, file, records)


def _is_legacy(file: BufferedReader) -> bool:
    """Tell if a file is a row of pickles, the first of which is torch's magic number."""
    file.seek(0)
    return file.read(14)[2:] == b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


def write_chunk(path: str | os.PathLike[str], obs: Tensor, action: Tensor, reward: Tensor, task: Tensor) -> None:
    """Write a chunk so that ``path`` either does not exist or is complete, also after a kill or on a full disk.

    Equal data gives equal bytes.

    Args:
        path: ``.../chunk_<number>.pt``; its directory is made. A kill can leave a ``.chunk_*.tmp`` file beside it,
            which is never read.
        obs: [N, L+1, O] float32.
        action: [N, L+1, A] float32, NaN in row 0.
        reward: [N, L+1] float32, NaN in row 0.
        task: [N, L+1], or [N] for all rows, integers.

    Raises:
        ValueError: the file exists, the name or the data would be refused on reading, row 0 is not filler, or the
            disk refused; nothing is left behind.
    """
    path = Path(path).expanduser()
    if not _NAME.fullmatch(path.name):
        raise ValueError(f"{path} is not named chunk_<number>.pt and would not be found again")
    if task.dtype in _TASK_DTYPES:
        task = _int32(path, task)
    if task.ndim == 1 and reward.ndim == 2 and len(task) == len(reward):
        task = task[:, None].expand_as(reward)
    chunk = {"obs": obs, "action": action, "reward": reward, "task": task}
    check_fields(path, chunk)
    check_finite(path, chunk)
    episode_tasks(path, chunk["task"], num_tasks=torch.iinfo(torch.int32).max)
    for name in ("action", "reward"):
        if not chunk[name][:, 0].isnan().all():
            raise ValueError(f"{path}: row 0 of {name} must be NaN, no step led to it")
    _save(path, chunk)


def save_chunk(path: Path, chunk: Mapping[str, Tensor], first_rows: Tensor) -> None:
    """Write checked fields [R, ...] as :func:`write_chunk` does.

    Raises:
        ValueError: the file exists, its name is another, a first row of an episode is not filler, or the disk refused.
    """
    if not _NAME.fullmatch(path.name):
        raise ValueError(f"{path} is not named chunk_<number>.pt and would not be found again")
    for name in ("action", "reward"):
        if not chunk[name][first_rows].isnan().all():
            raise ValueError(f"{path}: row 0 of {name} must be NaN, no step led to it")
    _save(path, chunk)


def _save(path: Path, chunk: Mapping[str, Tensor]) -> None:
    with replacing(path, overwrite=False) as temporary, open(temporary, "wb") as file:
        torch.save(TensorDict({k: _own_storage(v) for k, v in chunk.items()}, batch_size=chunk["reward"].shape), file)


# -- checks: each raises a ValueError that names the file and, for values, the episode and row ------------------------


def check_fields(path: Path, chunk: Mapping[str, Any]) -> None:
    """Require exactly obs, action, reward and task, with their types and consistent shapes, or the unequal form's."""
    form = UNEQUAL_DTYPES if "episode" in chunk else DTYPES
    if set(chunk) != set(form):
        raise ValueError(f"{path} has the fields {', '.join(sorted(chunk))}; a chunk has {', '.join(form)}")
    for name, dtype in form.items():
        allowed = _TASK_DTYPES if name == "task" else (dtype,)
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

    So are tensors refused that show few stored values as many: a file of some kilobytes could claim any size.
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
            f"{', '.join(f'{n:,}' for n in claimed)} bytes and holds {', '.join(f'{n:,}' for n in found)}. {_AGAIN}"
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
            raise ValueError(f"{path}: the task id changes in episode {episode}, row {row}. {_AGAIN}")
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
            raise ValueError(f"{path}: {name} is {value} in episode {episode}, row {row + first_row}. {_AGAIN}")


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


def _int32(path: Path, task: Tensor) -> Tensor:
    converted = task.to(torch.int32)
    if not torch.equal(converted.long(), task.long()):
        raise ValueError(f"{path}: task ids must be below 2^31, one is {int(task.max())}")
    return converted


def _own_storage(tensor: Tensor) -> Tensor:
    # A view would drag its whole storage into the file.
    tensor = tensor.detach().cpu().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
