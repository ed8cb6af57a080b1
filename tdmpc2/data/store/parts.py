"""The sources that episodes are imported from, read the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.chunks import chunk_checksums, read_chunk
from tdmpc2.data.index import EpisodeIndex, padded
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.unequal import VALUES, chunk_episodes, chunk_index

#: Compares with recorded checksums what some episodes [n] are read from.
Verify = Callable[[Tensor], None]


class Content(Protocol):
    """The episodes of one file, in whatever form."""

    def read(self, index: EpisodeIndex, episodes: Tensor) -> dict[str, Tensor]:
        """Read episodes as :meth:`Part.read` does, given the index of all."""

    def verifying(self, index: EpisodeIndex) -> AbstractContextManager[Verify]:
        """Give a function as :meth:`Part.verifying` does."""


@dataclass(frozen=True)
class Part:
    """Episodes of one file.

    Attributes:
        path: a chunk file, the rows of a store, or a file of a run's replay buffer.
        index: task, length and end of each episode.
        content: reads them.
        others: files beside ``path`` that it reads.
    """

    path: Path
    index: EpisodeIndex
    content: Content
    others: tuple[Path, ...] = ()

    @classmethod
    def of_chunk(cls, path: Path, layout: Layout) -> Part:
        """Open a chunk file.

        Raises:
            ValueError: see :func:`~tdmpc2.data.unequal.chunk_index`.
        """
        return cls(path, chunk_index(path, layout), _Chunk(path))

    @classmethod
    def of_store(cls, store: EpisodeStore) -> Part:
        """Take the episodes of an open store."""
        return cls(store.path / "rows.npy", store.index, _Store(store, store.verifier()))

    def read(self, episodes: Tensor) -> dict[str, Tensor]:
        """Read obs [n, L+1, O], action [n, L+1, A] and reward [n, L+1] of some episodes, [n] int64, ascending; float32.

        Where episodes have lengths of their own, L is the longest one's, and zeros follow the end of the others.
        """
        return self.content.read(self.index, episodes)

    def verifying(self) -> AbstractContextManager[Verify]:
        """Give a function that compares what some episodes [n] are read from with the recorded checksums.

        Episodes come in ascending order. A chunk file is verified whole, at the end of the block, since its checksums
        are of whole arrays; in a store, only the blocks that hold one of the episodes are. Nothing is verified twice.

        Raises:
            ValueError: damage, at one of the calls or at the end.
        """
        return self.content.verifying(self.index)


@dataclass
class _Chunk:
    path: Path
    verified: bool = False

    def read(self, index: EpisodeIndex, episodes: Tensor) -> dict[str, Tensor]:
        return chunk_episodes(read_chunk(self.path), index, episodes)

    @contextmanager
    def verifying(self, index: EpisodeIndex) -> Iterator[Verify]:
        if self.verified:
            yield lambda _: None
            return
        with chunk_checksums(self.path) as sums:
            yield lambda episodes: sums.advance((int(episodes[-1]) + 1) / len(index))
            sums.finish()
        self.verified = True


@dataclass(frozen=True)
class _Store:
    store: EpisodeStore
    verify: Verify

    def read(self, index: EpisodeIndex, episodes: Tensor) -> dict[str, Tensor]:
        first, count = int(episodes[0]), len(episodes)
        contiguous = int(episodes[-1]) - first + 1 == count
        read = self.store.read
        rows = read(first, count) if contiguous else torch.cat([read(int(episode), 1) for episode in episodes])
        if rows.ndim == 2:
            rows = padded(rows, index.lengths[episodes])
        values = self.store.meta.row_format.split(rows)
        return {name: value.float() for name, value in zip(VALUES, values, strict=True)}

    @contextmanager
    def verifying(self, index: EpisodeIndex) -> Iterator[Verify]:
        yield self.verify
