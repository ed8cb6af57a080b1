"""Checkpoints as one file in the safetensors format, which other programs and languages read.

A file is a length of 8 bytes, a JSON header of that length, and the values of all tensors in a row. The header says of
each tensor ``dtype``, ``shape`` and ``data_offsets``; its entry ``__metadata__`` is text by name:

- ``format``: ``pt``, as other programs expect it;
- ``tdmpc2``: JSON of everything in a checkpoint but the tensors (``config``, ``step``, ``format``, ...);
- ``crc32``: JSON of checksums, that of the text ``tdmpc2`` and one for each tensor, of its name, form and values.

Files without the last two, as others write them, are read as bare weights. This module reads and writes the format
itself: checksums, sizes and the file's SHA-256 are then of the same bytes, and acting needs no further package.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tdmpc2.support.entries import check_entries, list_of, one_of, record, text, whole
from tdmpc2.support.reading import MOST_RECORD
from tdmpc2.support.text import cut, shown

SUFFIX = ".safetensors"
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH = 8  # bytes that say how long the header is
_METADATA, _ENTRIES, _CHECKSUMS = "__metadata__", "tdmpc2", "crc32"
_MOST_DIMENSIONS = 8
_MOST_ELEMENTS = 2**53
_PIECE = 1 << 23  # bytes read at a time

_TENSOR = {
    "dtype": one_of(tuple(_DTYPES)),
    "shape": list_of(whole()),
    "data_offsets": list_of(whole(), least=2),
}
_CRCS = {"entries": whole(0, 2**32 - 1), "tensors": record()}


class _Place(NamedTuple):
    """A tensor of a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


# -- writing ----------------------------------------------------------------------------------------------------------


def write(file: BinaryIO, payload: Mapping[str, Any]) -> None:
    """Write a checkpoint to an open file.

    Args:
        file: empty, open for writing bytes.
        payload: ``model``, tensors by name, and plain entries.

    Raises:
        ValueError: an entry is nothing that JSON holds, or a tensor is of a kind that the format does not have.
    """
    tensors = _storable(payload["model"])
    entries = _json_of({key: value for key, value in payload.items() if key != "model"})
    # The largest numbers first, so that each tensor begins at a multiple of the size of its numbers.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    parts, checksums, offset = [], {}, 0
    for name in order:
        tensor = tensors[name]
        if (dtype := _NAMES.get(tensor.dtype)) is None or name == _METADATA:
            raise ValueError(f"'{name}' holds {tensor.dtype}, which the safetensors format cannot store here")
        values = _bytes_of(tensor)
        end = offset + len(values)
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        checksums[name] = _checksum(name, dtype, tensor.shape, values)
        parts.append(values)
        offset = end
    crcs = {"entries": zlib.crc32(entries.encode()), "tensors": checksums}
    metadata = {"format": "pt", _ENTRIES: entries, _CHECKSUMS: json.dumps(crcs)}
    head = json.dumps({_METADATA: metadata, **header}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % _LENGTH)
    file.write(len(head).to_bytes(_LENGTH, "little") + head)
    for values in parts:
        file.write(values.data)


def _storable(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return CPU tensors in forms that the format has: the published files' ``qint8`` as int8 with its scale."""
    stored: dict[str, Tensor] = {}
    for name, tensor in model.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"'{name}' is no tensor, and the safetensors format stores nothing else: write a .pt file")
        tensor = tensor.detach().cpu()
        if tensor.is_quantized and tensor.qscheme() == torch.per_tensor_affine and tensor.q_zero_point() == 0:
            stored[name] = tensor.int_repr().contiguous()
            stored[f"{name}.scale"] = torch.tensor(tensor.q_scale(), dtype=torch.float32)
        else:
            stored[name] = (tensor.dequantize() if tensor.is_quantized else tensor).contiguous()
    return stored


def _json_of(entries: Mapping[str, Any]) -> str:
    """Write plain entries as JSON that is read back as it was, tuples as lists.

    Raises:
        ValueError: one is nothing that JSON holds.
    """
    for key, value in entries.items():
        if wrong := _not_json(value):
            raise ValueError(f"'{key}' holds {wrong}, which a safetensors file cannot carry: write a .pt file")
    return json.dumps(entries)


def _not_json(value: Any) -> str:
    """Say what in a value JSON does not hold; nothing if it holds all of it."""
    if isinstance(value, Mapping):
        keys = (f"the key {shown(key)}" for key in value if not isinstance(key, str))
        return next(keys, "") or next(filter(None, map(_not_json, value.values())), "")
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_not_json, value)), "")
    if isinstance(value, (float, int, str, bool, type(None))):
        return ""
    return f"a {type(value).__name__}"


# -- reading ----------------------------------------------------------------------------------------------------------


def is_safetensors(file: BufferedReader) -> bool:
    """Tell by its first bytes if a file is one: a length, and the beginning of a JSON object."""
    file.seek(0)
    start = file.read(_LENGTH + 1)
    return start[_LENGTH:] == b"{" and not start.startswith(b"PK\x03\x04")


def read(path: Path, file: BufferedReader, size: int, device: str) -> dict[str, Any]:
    """Read a checkpoint: ``model`` and its other entries.

    All lengths are compared with the file's before anything of that length is read.

    Args:
        path: its name, for messages.
        file: the file, open.
        size: its bytes.
        device: ``cpu``, or ``meta`` to check everything and keep no values.

    Raises:
        ValueError: damaged, cut short, or no such file.
    """
    file.seek(0)
    length = int.from_bytes(file.read(_LENGTH), "little")
    if not 2 <= length <= min(size - _LENGTH, MOST_RECORD):
        raise ValueError(
            f"{path} ({size:,} bytes) is truncated or not a checkpoint: its header would have {length:,} bytes"
        )
    try:
        header = json.loads(file.read(length), object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"{path} is damaged: its header is nested too deeply") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: its header is no JSON ({cut(str(error), 80)})") from error
    metadata = _metadata(path, header)
    places = _places(path, header, size - _LENGTH - length)
    entries, checksums = _entries(path, metadata, [place.name for place in places])
    model = {place.name: _tensor(path, file, place, checksums, device) for place in places}
    return {**entries, "model": model}


def _metadata(path: Path, header: Any) -> dict[str, str]:
    if not isinstance(header, dict):
        raise ValueError(f"{path} is damaged: its header is {shown(header)}")
    metadata = header.pop(_METADATA, {})
    entry = text(r"(?s).*")
    if not isinstance(metadata, dict) or not all(entry.allows(value) for value in metadata.values()):
        raise ValueError(f"{path} is damaged: {_METADATA} is {shown(metadata)}, expected text by name")
    if (_ENTRIES in metadata) != (_CHECKSUMS in metadata):
        raise ValueError(f"{path} is damaged: it has only one of the entries '{_ENTRIES}' and '{_CHECKSUMS}'")
    return metadata


def _places(path: Path, header: Mapping[str, Any], data: int) -> list[_Place]:
    """Read where the tensors are, in the order of the file; ``data`` is the number of bytes after the header."""
    places = []
    for name, entry in header.items():
        content = check_entries(f"{path}: '{cut(name, 80)}'", entry, _TENSOR)
        shape, (begin, end, *more) = tuple(content["shape"]), content["data_offsets"]
        dtype = _DTYPES[content["dtype"]]
        fits = len(shape) <= _MOST_DIMENSIONS and math.prod(max(size, 1) for size in shape) <= _MOST_ELEMENTS
        if more or not fits or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(
                f"{path} is damaged: '{cut(name, 80)}' has the bytes {begin} to {end} for {shown(list(shape))} numbers "
                f"of {dtype.itemsize} bytes"
            )
        places.append(_Place(name, dtype, shape, begin, end))
    places.sort(key=lambda place: (place.begin, place.end))
    ends = [0, *(place.end for place in places)]
    if any(place.begin != end for place, end in zip(places, ends, strict=False)):
        raise ValueError(f"{path} is damaged: its tensors lie on one another or leave gaps")
    if ends[-1] != data:
        raise ValueError(f"{path} is truncated or damaged: its tensors have {ends[-1]:,} bytes, the file {data:,}")
    return places


def _entries(path: Path, metadata: Mapping[str, str], names: list[str]) -> tuple[dict[str, Any], dict[str, int] | None]:
    """Read what a file of ours holds besides tensors, and the checksums; of others' files there are none."""
    if _ENTRIES not in metadata:
        return {}, None
    try:
        crcs = check_entries(f"{path}: {_CHECKSUMS}", json.loads(metadata[_CHECKSUMS], object_pairs_hook=_once), _CRCS)
        whole_number = whole(0, 2**32 - 1)
        if crcs["tensors"].keys() != set(names) or not all(map(whole_number.allows, crcs["tensors"].values())):
            raise ValueError("checksums and tensors are not the same ones")
        if zlib.crc32(metadata[_ENTRIES].encode("utf-8", "surrogatepass")) != crcs["entries"]:
            raise ValueError(f"Bad CRC-32 of '{_ENTRIES}'")
        entries = json.loads(metadata[_ENTRIES])
        if not isinstance(entries, dict) or "model" in entries:
            raise ValueError(f"'{_ENTRIES}' is {shown(entries)}")
    except RecursionError:
        raise ValueError(f"{path} is damaged: its metadata are nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {cut(str(error).removeprefix(f'{path}: '), 160)}") from error
    return entries, crcs["tensors"]


def _tensor(path: Path, file: BufferedReader, place: _Place, checksums: dict[str, int] | None, device: str) -> Tensor:
    """Read the next tensor of an open file, and compare it with its checksum."""
    tensor = torch.empty(place.shape, dtype=place.dtype)
    values = _bytes_of(tensor)
    view, done = values.data, 0
    while done < len(view):
        count = file.readinto(view[done : done + _PIECE])
        if not count:
            raise ValueError(f"{path} has become shorter while it was read")
        done += count
    if checksums is not None:
        crc = _checksum(place.name, _NAMES[place.dtype], place.shape, values)
        if crc != checksums[place.name]:
            raise ValueError(
                f"{path}, tensor {cut(place.name, 80)}: Bad CRC-32 {crc:08x} instead of {checksums[place.name]:08x}. "
                "Download or make the file again"
            )
    return tensor if device == "cpu" else tensor.to(device)


def _checksum(name: str, dtype: str, shape: tuple[int, ...], values: np.ndarray) -> int:
    form = json.dumps([name, dtype, list(shape)], separators=(",", ":"))
    return zlib.crc32(values.data, zlib.crc32(form.encode()))


def _bytes_of(tensor: Tensor) -> np.ndarray:
    """View the values of a contiguous tensor as bytes, [n] uint8."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of the pairs of a JSON object, in which no name may come twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice in it")
    return found
