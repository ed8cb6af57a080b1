"""A reader of offline Weights & Biases runs, which are LevelDB-style logs of ``wandb.proto`` messages.

The file is a 7-byte header and blocks of 32 KiB. A block holds chunks of (checksum, length, kind) and payload; a record
is one chunk, or several of them when it crosses blocks.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """The content of one ``.wandb`` file. Keys of nested items are joined with dots."""

    run_id: str = ""
    project: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    step_metrics: dict[str, str] = field(default_factory=dict)  # metric or glob -> its step axis
    artifacts: dict[str, str] = field(default_factory=dict)  # name -> type
    aliases: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)  # name and aliases of each artifact
    contents: list[tuple[str, ...]] = field(default_factory=list)  # names of the files of each artifact
    alerts: list[tuple[str, str, str]] = field(default_factory=list)  # title, text, level
    exit_code: int | None = None

    def series(self, name: str) -> list[tuple[Any, Any]]:
        """List (step, value) of every history row that holds metric ``name``."""
        return [(row["step"], row[name]) for row in self.history if name in row]


def read_run(path: Path) -> OfflineRun:
    """Read a ``.wandb`` file; raises an AssertionError if it is damaged."""
    run = OfflineRun()
    for payload in _payloads(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.run_id, run.project, run.tags = record.run.run_id, record.run.project, tuple(record.run.tags)
            run.config.update(_items(record.run.config.update))
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "metric":
            run.step_metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            run.artifacts[record.artifact.name] = record.artifact.type
            run.aliases.append((record.artifact.name, tuple(record.artifact.aliases)))
            run.contents.append(tuple(entry.path for entry in record.artifact.manifest.contents))
        elif kind == "alert":
            run.alerts.append((record.alert.title, record.alert.text, record.alert.level))
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _payloads(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B", f"not a W&B log: {data[:7]!r}"
    position = 7
    parts: list[bytes] = []
    while position + 7 <= len(data):
        space = BLOCK - position % BLOCK
        if space < 7:  # too small for a chunk header: padding
            position += space
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        chunk = data[position + 7 : position + 7 + length]
        assert zlib.crc32(bytes([kind]) + chunk) == checksum, f"bad checksum at byte {position}"
        position += 7 + length
        assert bool(parts) == (kind in (MIDDLE, LAST)), f"record torn at byte {position}"
        parts.append(chunk)
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []
    assert not parts, "the file ends inside a record"


def _items(items: Iterable[Any]) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
