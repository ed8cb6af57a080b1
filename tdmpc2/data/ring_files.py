"""A replay buffer on disk: each save writes the episodes that are new since the last one, to a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tdmpc2.checkpoints.files import file_sha256, read_file, save_file
from tdmpc2.data.ring import ReplayRing, RingEpisode


class SavedRing:
    """The files of a replay buffer; a part of a run that is saved and continued with it.

    A save costs what is new in it, however much the buffer holds. ``state.pt`` lists the files that belong to it, and
    no file that it lists is ever written again, so a kill leaves at worst files that nothing lists. Files whose
    episodes have all been dropped are deleted one save later, when no ``state.pt`` lists them any more.

    Args:
        ring: what is saved.
        directory: of the files; made when there is something to save.
    """

    def __init__(self, ring: ReplayRing, directory: Path) -> None:
        self.ring, self._directory = ring, directory
        self._files: list[dict[str, Any]] = []  # name, sha256, and the numbers first to last - 1 of its episodes
        self._next = 0  # number of the next file

    def state(self) -> Mapping[str, Any]:
        """Write the new episodes to a file, and list all files whose episodes are still there."""
        ring = self.ring
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
            ValueError: a file is missing, damaged or another one.
        """
        self._files, self._next = [dict(file) for file in state["files"]], int(state["next"])
        self.ring.skip(int(state["dropped"]))
        for file in self._files:
            path = self._directory / file["name"]
            if not path.exists():
                raise ValueError(f"{path} is missing: the replay buffer of the run cannot be restored without it")
            if file_sha256(path) != file["sha256"]:
                raise ValueError(f"{path} is damaged or another file: the replay buffer of the run cannot be restored")
            content = read_file(path)
            lengths = content["rows_of"].tolist()
            parts = zip(content["rows"].split(lengths), content["task"].tolist(), content["terminated"], strict=True)
            for number, (rows, task, terminated) in enumerate(parts, file["first"]):
                if number >= state["dropped"]:
                    self.ring.add_rows(RingEpisode(rows, task, bool(terminated)))

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
