"""A replay buffer on disk: each save writes the episodes that are new since the last one, to a file of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc2.checkpoints.files import save_file
from tdmpc2.checkpoints.reading import file_sha256, read_identified
from tdmpc2.checkpoints.run_state import START_NEW, part_of
from tdmpc2.data.ring import ReplayRing, RingEpisode
from tdmpc2.distributed import ProcessGroup
from tdmpc2.support.entries import SHA256, Entry, check_entries, list_of, record, text, whole
from tdmpc2.support.files import delete_leftovers

_REMEDY = f"The replay buffer of the run cannot be restored without it: {START_NEW}"
_STATE = {"files": list_of(record()), "dropped": whole(), "next": whole()}
#: Names cannot lead out of the directory.
_FILE = {
    "name": text(r"episodes_\d{1,12}\.pt", "the name of a file beside it"),
    "sha256": SHA256,
    "first": whole(),
    "last": whole(),
}


def _tensor(dtype: torch.dtype, dims: int) -> Entry:
    return Entry(lambda v: isinstance(v, Tensor) and v.dtype == dtype and v.ndim == dims, f"a tensor of {dtype}")


_CONTENT = {
    "format": whole(),
    "rows": _tensor(torch.int32, 2),
    "rows_of": _tensor(torch.int64, 1),
    "task": _tensor(torch.int64, 1),
    "terminated": _tensor(torch.bool, 1),
}


class SavedRing:
    """The files of a replay buffer; a part of a run that is saved and continued with it.

    A save costs what is new in it, however much the buffer holds. ``state.pt`` lists the files that belong to it, and
    no file that it lists is ever written again, so a kill leaves at worst files that nothing lists, and temporary ones,
    which are deleted here: the run has to hold the lock of its directory. Files whose episodes have all been dropped
    are deleted one save later, when no ``state.pt`` lists them any more.

    Args:
        ring: what is saved.
        directory: of the files; made when there is something to save.
        task_ids: the tasks that episodes may be of; None: any.
        group: processes whose rings hold the same; the main one writes and reads the files for all.
    """

    def __init__(
        self,
        ring: ReplayRing,
        directory: Path,
        task_ids: Collection[int] | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self.ring, self._directory, self._task_ids = ring, directory, task_ids
        self._group = group or ProcessGroup()
        self._files: list[dict[str, Any]] = []  # name, sha256, and the numbers first to last - 1 of its episodes
        self._next = 0  # number of the next file
        if self._group.main:
            delete_leftovers(directory, "episodes_*.pt")

    def state(self) -> Mapping[str, Any]:
        """Write the new episodes to a file, and list all files whose episodes are still there."""
        ring = self.ring
        if not self._group.main:
            return {}
        listed = {file["name"] for file in self._files}  # by the state.pt that is on disk now
        self._files = [file for file in self._files if file["last"] > ring.num_dropped]
        first = max(self._files[-1]["last"] if self._files else 0, ring.num_dropped)
        if first < ring.num_added:
            self._files.append(self._write(first))
        kept = listed | {file["name"] for file in self._files}
        for path in self._directory.glob("episodes_*.pt"):
            if path.name not in kept:
                path.unlink()
        return {"files": self._files, "dropped": ring.num_dropped, "next": self._next}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Fill the ring with the episodes of a former :meth:`state`.

        Raises:
            ValueError: the state or a file of it is damaged, or a file is missing, another one or of other tasks.
        """
        self._files, dropped = listed_files(part_of(self._directory.parent, "replay"), state)
        self._next = state["next"]
        self.ring.skip(dropped)
        for file in self._files:
            content = self._group.from_main(partial(read_content, self._directory, file, self.ring.row_format.words))
            for number, episode in enumerate(_episodes(content), file["first"]):
                if self._task_ids is not None and episode.task not in self._task_ids:
                    raise ValueError(
                        f"{self._directory / file['name']} has an episode of task id {episode.task}, which is none of "
                        f"this run's ({', '.join(map(str, self._task_ids))}). {_REMEDY}"
                    )
                if number >= dropped:
                    self.ring.add_rows(episode)

    def _write(self, first: int) -> dict[str, Any]:
        ring = self.ring
        episodes = [ring.episode(number) for number in range(first, ring.num_added)]
        path = self._directory / f"episodes_{self._next}.pt"
        payload = {
            "rows": torch.cat([episode.rows for episode in episodes]),
            "rows_of": torch.tensor([len(episode.rows) for episode in episodes]),
            "task": torch.tensor([episode.task for episode in episodes]),
            "terminated": torch.tensor([episode.terminated for episode in episodes]),
        }
        save_file(path, payload, overwrite=True)
        self._next += 1
        return {"name": path.name, "sha256": file_sha256(path), "first": first, "last": ring.num_added}


def listed_files(origin: str, state: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Read from the state of a :class:`SavedRing` which files belong to it.

    Returns:
        Name, sha256 and first to last - 1 of the episodes of each file, and the number of the oldest that is alive.

    Raises:
        ValueError: the state, which is from ``origin``, is damaged.
    """
    state = check_entries(origin, state, _STATE, _REMEDY)
    return [check_entries(f"{origin}: files", file, _FILE, _REMEDY) for file in state["files"]], state["dropped"]


def read_episodes(directory: Path, file: Mapping[str, Any], words: int) -> list[RingEpisode]:
    """Read the episodes of a file that :func:`listed_files` names, as :func:`read_content` does."""
    return _episodes(read_content(directory, file, words))


def read_content(directory: Path, file: Mapping[str, Any], words: int) -> dict[str, Any]:
    """Read a file that :func:`listed_files` names, whose records have ``words`` words: all episodes end to end.

    Raises:
        ValueError: it is missing, damaged, or another file than the one that was saved.
    """
    path = directory / file["name"]
    if not path.exists():
        raise ValueError(f"{path} is missing. {_REMEDY}")
    content, checksum = read_identified(path)
    if checksum != file["sha256"]:
        raise ValueError(f"{path} is not the file that was saved with the run. {_REMEDY}")
    content = check_entries(str(path), content, _CONTENT, _REMEDY)
    lengths = content["rows_of"].tolist()
    numbers = {len(lengths), len(content["task"]), len(content["terminated"]), file["last"] - file["first"]}
    if content["rows"].shape != (sum(lengths), words) or len(numbers) > 1 or min(lengths, default=2) < 2:
        raise ValueError(f"{path} has rows of another form than this run's. {_REMEDY}")
    return content


def _episodes(content: Mapping[str, Any]) -> list[RingEpisode]:
    lengths = content["rows_of"].tolist()
    parts = zip(content["rows"].split(lengths), content["task"].tolist(), content["terminated"], strict=True)
    return [RingEpisode(rows, task, bool(terminated)) for rows, task, terminated in parts]
