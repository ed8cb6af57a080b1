"""``collect.json``: the collections of a directory of chunk files, their settings and the file numbers they reserved.

A chunk file is a function of its collection's settings and of its number, so the record says what is still missing, and
a file that was deleted can be played again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tdmpc2.data.chunk_form import Layout, check_layout
from tdmpc2.data.chunks import chunk_paths, read_chunk
from tdmpc2.data.store.meta import StoreMeta
from tdmpc2.support.entries import check_entries, list_of, record, text, whole
from tdmpc2.support.files import delete_leftovers, write_text
from tdmpc2.support.reading import load_json
from tdmpc2.support.text import cut
from tdmpc2.tasks import TaskSpec

FORMAT = 1
#: Entries of the file, and of each of its collections.
_RECORD = {"format": whole(1), "task": text(), "tasks": list_of(record()), "collections": list_of(record())}
_COLLECTION = {
    "first": whole(0, 2**31),
    "count": whole(1, 2**31),
    "settings": record(),
    "computing": record(),
    "players": list_of(text()),
}


@dataclass(frozen=True)
class Collection:
    """Collection of the files chunk_<first>.pt to chunk_<first + count - 1>.pt.

    Attributes:
        first: number of the first file.
        count: number of files.
        settings: what decides which episodes they hold, as plain values.
        computing: settings that change actions in the last bits: device, threads, precision and the like.
        players: the mixture in words, for people.
    """

    first: int
    count: int
    settings: dict[str, Any]
    computing: dict[str, Any]
    players: list[str]

    def check_computing(self, computing: Mapping[str, Any], record: Path) -> None:
        """Raise unless device, threads and precision are those the collection began with.

        Otherwise its files would differ from those of an uninterrupted run.

        Raises:
            ValueError: naming what differs.
        """
        differing = [key for key in {**self.computing, **computing} if self.computing.get(key) != computing.get(key)]
        if differing:
            there, now = ({key: values.get(key) for key in differing} for values in (self.computing, computing))
            raise ValueError(
                f"{record}: the unfinished collection of these settings was begun with {_listed(there)}, now it is "
                f"{_listed(now)}, which changes results in the last digits. Continue it as it was begun, or give "
                "another seed for a collection of its own"
            )


@dataclass
class Record:
    """Content of ``collect.json``."""

    path: Path
    task: str
    tasks: list[dict[str, Any]]
    collections: list[Collection]

    @classmethod
    def read(cls, data_dir: Path, task: str, specs: Sequence[TaskSpec]) -> Record:
        """Read the record of a directory, an empty one where there is none.

        Args:
            data_dir: the directory.
            task: name of the task set that is to be collected.
            specs: its tasks in id order.

        Raises:
            ValueError: damaged, of a newer version, or the directory holds data of another task set or a store.
        """
        path = data_dir / "collect.json"
        tasks = [spec.plain() for spec in specs]
        if (data_dir / "meta.json").exists():
            raise ValueError(f"data_dir={data_dir} is an episode store: collect into another directory, then import it")
        if not path.exists():
            if chunk_numbers(data_dir):
                there = chunk_paths(data_dir)[0]
                check_layout(there, read_chunk(there), Layout.of(specs))
            return cls(path, task, tasks, [])
        try:
            plain = load_json(path)
            version = check_entries("it", plain, {"format": _RECORD["format"]}, others=True)["format"]
            if version <= FORMAT:
                plain = check_entries("it", plain, _RECORD)
                found = [check_entries("a collection", entry, _COLLECTION) for entry in plain["collections"]]
                record = cls(path, plain["task"], plain["tasks"], [Collection(**entry) for entry in found])
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {cut(str(error))}"
            raise ValueError(
                f"{path} is damaged [{reason}]: move it away; the files it records then stay as they are, and new ones "
                "are added"
            ) from error
        if version > FORMAT:
            raise ValueError(f"{path} has format {version}, this version reads up to {FORMAT}: update tdmpc2")
        if record.tasks != tasks:
            raise ValueError(
                f"data_dir={data_dir} holds data of task={record.task} ({len(record.tasks)} tasks), not of "
                f"task={task} ({len(tasks)} tasks) as it is now: name another directory"
            )
        return record

    def find(self, settings: dict[str, Any]) -> Collection | None:
        """Find the collection of these settings."""
        return next((collection for collection in self.collections if collection.settings == _plain(settings)), None)

    def next_number(self) -> int:
        """Count on from the numbers of all files and collections, and of files that a store was imported from."""
        reserved = [collection.first + collection.count for collection in self.collections]
        store = self.path.parent / "store" / "meta.json"
        imported = StoreMeta.read(store).source if store.exists() else {}
        numbers = [*chunk_numbers(self.path.parent), *map(_number, imported)]
        return max([0, *reserved, *(number + 1 for number in numbers)])

    def add(self, collection: Collection) -> None:
        """Record one more collection.

        Raises:
            ValueError: the disk refused.
        """
        entry = Collection(**_plain(dataclasses.asdict(collection)))
        dataclasses.replace(self, collections=[*self.collections, entry]).write()
        self.collections.append(entry)

    def write(self) -> None:
        """Write the record; without collections it only names the task set.

        Raises:
            ValueError: the disk refused.
        """
        delete_leftovers(self.path.parent, self.path.name)
        content = {
            "format": FORMAT,
            "task": self.task,
            "tasks": self.tasks,
            "collections": [dataclasses.asdict(each) for each in self.collections],
        }
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def drawn_seeds(seed: int, number: int, episodes: int) -> tuple[int, list[int]]:
    """Draw the seeds of a collected file: that of the actor, and for each episode that of its environment.

    Args:
        seed: of the collection.
        number: of the file.
        episodes: of the file.
    """
    actor, *environments = np.random.SeedSequence((seed, number)).generate_state(episodes + 1).tolist()
    return actor, environments


def chunk_numbers(data_dir: Path) -> list[int]:
    """List the numbers of the chunk files in a directory, in order."""
    return sorted(number for path in data_dir.glob("chunk_*.pt") if (number := _number(path.name)) >= 0)


def _number(name: str) -> int:
    """Read the number in the name of a chunk file; -1 if it has none."""
    number = name.removeprefix("chunk_").removesuffix(".pt")
    return int(number) if number.isdecimal() else -1


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    plain = json.loads(json.dumps(value))
    assert isinstance(plain, dict)
    return plain


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())
