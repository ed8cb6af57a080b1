"""Episodes of other programs as rows of an episode store: read one by one, checked, imported as any data.

What others call T observations and one more is what a row is here: row 0 has the first observation, row t + 1 what the
t-th action led to. Nothing is dropped and nothing is made up but the two values of row 0 that are not used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.data_target import DataTarget
from tdmpc2.data.index import EpisodeIndex
from tdmpc2.data.store.importer import import_selection
from tdmpc2.data.store.meta import StoreMeta
from tdmpc2.data.store.parts import Part, Verify
from tdmpc2.data.store.selection import Selection, file_facts
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.support.text import cut
from tdmpc2.tasks import TaskSpec

Floats = NDArray[np.float32]
_ABOVE_ONE = 1e-5  # what rounding can add to an action at its limit


class Episode(NamedTuple):
    """An episode of T steps, in float32."""

    obs: Floats  # [T+1, O]
    action: Floats  # [T, A], in [-1, 1]
    reward: Floats  # [T]


class Foreign(Protocol):
    """Opened data of another program, of one task."""

    @property
    def path(self) -> Path:
        """Its file, for messages."""

    @property
    def files(self) -> Sequence[Path]:
        """All its files, by which a change is noticed."""

    @property
    def lengths(self) -> Sequence[int]:
        """Steps of each episode."""

    @property
    def terminated(self) -> Sequence[bool]:
        """Tell of each episode if its last step ended it for good."""

    def opened(self) -> AbstractContextManager[object]:
        """Keep its file open for the episodes that are read in a block; one with checksums is compared at the end."""

    def read(self, number: int) -> Episode:
        """Read an episode; raises ``ValueError`` if it is damaged or of other sizes."""


def import_foreign(
    source: Foreign, target: DataTarget, out: Path, dtype: str = "float32", quiet: bool = False
) -> EpisodeStore:
    """Write the episodes of another program into a new store, with the memory of some of them at a time.

    A kill is continued as that of other imports.

    Raises:
        ValueError: ``out`` exists, an episode has other sizes than the task, a value that is not finite or an action
            beyond its bounds, or the disk refused.
    """
    lengths, ends = torch.tensor(list(source.lengths)), torch.tensor(list(source.terminated), dtype=torch.bool)
    if not len(lengths):
        raise ValueError(f"{source.path} holds no episodes")
    layout = Layout.of(target.specs)
    index = EpisodeIndex(torch.full_like(lengths, target.task_id), lengths, ends)
    index.check_lengths(source.path, target.spec.episode_length, f"Is it data of another task than {target.spec.name}?")
    known = [file_facts(*source.files), lengths.tolist(), ends.tolist()]
    taken = hashlib.sha256(json.dumps(known).encode()).hexdigest()
    rows = None if index.is_equal(layout.rows - 1) else index.num_rows
    meta = StoreMeta(target.name, target.specs, len(index), dtype, selection=taken, rows=rows)
    part = Part(source.path, index, _Content(source, target.spec, layout), tuple(source.files))
    kept = torch.arange(len(index))
    return import_selection(Selection(meta, [part], kept, index, [source.path], str(source.path)), out, quiet)


@dataclass(frozen=True)
class _Content:
    """The episodes as the importer reads them, padded to the sizes of the task set."""

    source: Foreign
    spec: TaskSpec
    layout: Layout

    def read(self, index: EpisodeIndex, episodes: Tensor) -> dict[str, Tensor]:
        longest = int(index.lengths[episodes].max())
        shape = (len(episodes), longest + 1)
        obs, action = torch.zeros(*shape, self.layout.obs_dim), torch.zeros(*shape, self.layout.action_dim)
        reward = torch.zeros(shape)
        for place, number in enumerate(episodes.tolist()):
            origin = f"{self.source.path}, episode {number}"
            with naming_damage(origin):
                episode = checked(self.source.read(number), origin, self.spec)
            steps = int(index.lengths[number])
            obs[place, : steps + 1, : self.spec.obs_dim] = torch.from_numpy(episode.obs)
            action[place, 1 : steps + 1, : self.spec.action_dim] = torch.from_numpy(episode.action)
            reward[place, 1 : steps + 1] = torch.from_numpy(episode.reward)
        return {"obs": obs, "action": action, "reward": reward}

    @contextmanager
    def verifying(self, index: EpisodeIndex) -> Iterator[Verify]:
        with self.source.opened():
            yield lambda _: None


@contextmanager
def naming_damage(origin: str) -> Iterator[None]:
    """Turn whatever a library raises for a damaged file into a ValueError that names it.

    Raises:
        ValueError: in the place of any other error; those that say that something is not installed stay.
    """
    try:
        yield
    except (ValueError, ImportError):
        raise
    except Exception as error:  # libraries of files raise many kinds for bytes that they do not understand
        raise ValueError(f"{origin} is damaged ({type(error).__name__}: {cut(str(error), 120)})") from error


def checked(episode: Episode, origin: str, spec: TaskSpec) -> Episode:
    """Require the sizes of a task and actions in [-1, 1]; what is not finite is found by the importer.

    Raises:
        ValueError: naming the episode.
    """
    steps = len(episode.reward)
    expected = {
        "obs": (episode.obs, (steps + 1, spec.obs_dim)),
        "action": (episode.action, (steps, spec.action_dim)),
        "reward": (episode.reward, (steps,)),
    }
    for name, (values, shape) in expected.items():
        if values.shape != shape:
            raise ValueError(f"{origin}: {name} has shape {values.shape}, expected {shape} for task={spec.name}")
    largest = float(np.abs(episode.action).max(initial=0))
    if largest > 1 + _ABOVE_ONE:
        raise ValueError(f"{origin}: an action is {largest:g} times its bound, and must lie within its bounds")
    return episode._replace(action=episode.action.clip(-1, 1))
