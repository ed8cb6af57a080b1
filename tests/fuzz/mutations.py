"""Changes to a file's bytes and content, drawn from the generator that is passed."""

from __future__ import annotations

import io
import json
import random
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

_PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n"
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4216\n"

#: Values that any key may have in a stranger's file.
VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: None,
    lambda rng: rng.choice((True, False)),
    lambda rng: rng.choice((0, -1, 1, 7, 2**31, 2**62, 2**63, -(2**70), 10**4999)),
    lambda rng: rng.choice((0.0, -0.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan"))),
    lambda rng: rng.choice(
        ("", "x", "nan", "-1", "1e400", "../../etc/passwd", "/dev/zero", "os:x-v0", "\x1b[31mred\x07")
    ),
    lambda rng: rng.choice(("Hopper-v5", "mw-drawer-open", "myo-pose", "pendulum-spin", "mt80", "encoder")),
    lambda rng: rng.choice(("walker-walk", "ünï\u202ecode", "a" * 300, "${oc.env:HOME}", "\udc80", "line\nline")),
    lambda rng: rng.choice(([], {}, [[]], [None], {"a": {}}, [1, 2, 3], ["a", 5], {"walker-walk": float("nan")})),
    lambda rng: _nested(rng.choice((50, 2000, 100_000))),
    lambda rng: "long " * 200_000,
)


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Change some bytes: flipped bits, zeros, cuts, insertions, repetitions, numbers at their limits, another file."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1) if rng.random() < 0.7 else max(0, len(changed) - rng.randrange(1, 400))
        size = rng.choice((1, 1, 4, 8, 64, 5000))
        match rng.randrange(9):
            case 0 | 1 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                changed[at : at + size] = bytes(len(changed[at : at + size]))
            case 3:
                del changed[at:]
            case 4:
                del changed[at : at + size]
            case 5:
                changed[at:at] = rng.randbytes(size)
            case 6:
                changed[at:at] = changed[max(0, at - size) : at]
            case 7:
                number = rng.choice((b"\xff", b"\x00", b"\x7f", b"\x80"))
                changed[at : at + size] = number * len(changed[at : at + size])
            case 8 if rng.random() < 0.1:
                return rng.choice(
                    (b"", b"\n", b"\x80\x02.", _PAGE, _POINTER, b"\x89PNG\r\n\x1a\n", rng.randbytes(2000))
                )
            case _:
                changed += rng.randbytes(size)
    return bytes(changed)


def change_archive(rng: random.Random, data: bytes) -> bytes:
    """Change one record of a zip archive and write valid checksums again: what somebody with intent would do."""
    try:
        source = zipfile.ZipFile(io.BytesIO(data))
        names = source.namelist()
    except zipfile.BadZipFile:
        return change_bytes(rng, data)
    if not names:
        return change_bytes(rng, data)
    pickles = [name for name in names if name.endswith("data.pkl")]
    chosen, kind = rng.choice(names + 3 * pickles), rng.randrange(8)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if kind == 0 else zipfile.ZIP_STORED) as archive:
        for name in names:
            content = source.read(name)
            if name == chosen and kind == 1:
                continue
            if name == chosen and kind == 2:
                name = rng.choice(("../out", "/etc/x", name + "x", "data.pkl", "x/"))
            elif name == chosen and kind > 2:
                content = change_bytes(rng, content)
            archive.writestr(name, content)
    return out.getvalue()


def change_tree(rng: random.Random, tree: Any, values: tuple[Callable[[random.Random], Any], ...] = VALUES) -> Any:
    """Change one place of nested dicts and lists: another value, a missing, an additional or a renamed key."""
    tree = _copy(tree)
    places = list(_places(tree))
    if not places or rng.random() < 0.03:
        return rng.choice(values)(rng)
    weights = [1 / (1 + sum(other is holder for other, _ in places)) for holder, _ in places]  # equal for small dicts
    holder, key = rng.choices(places, weights)[0]
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(("x", "", 5, "a.b", "scale", "__class__"))] = rng.choice(values)(rng)
        case 2 if isinstance(holder, dict):
            holder[rng.choice((f"{key}x", f"_orig_mod.{key}", str(key).upper()))] = holder.pop(key)
        case 3:
            other = rng.choice(places)
            holder[key] = _copy(other[0][other[1]]) if _has(*other) else None
        case _:
            holder[key] = _near(rng, holder[key], values)
    return tree


def _near(rng: random.Random, value: Any, values: tuple[Callable[[random.Random], Any], ...]) -> Any:
    """Draw something in the place of a value, half of the time of the same kind."""
    if rng.random() < 0.5:
        return rng.choice(values)(rng)
    if isinstance(value, torch.Tensor):
        return change_tensor(rng, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1, 10**6, -(10**6), 2**40))
    if isinstance(value, float):
        return rng.choice((-value, value * 1e30, value + 1e-9, int(value) if abs(value) < 1e300 else 0))
    if isinstance(value, str):
        return change_bytes(rng, value.encode(errors="replace")).decode(errors="replace")
    if isinstance(value, list):
        return rng.choice((value[:-1], value + value, value[::-1], [value]))
    if isinstance(value, dict):
        return rng.choice((list(value), {**value, "x": 1}, {}))
    return rng.choice(values)(rng)


def change_tensor(rng: random.Random, tensor: torch.Tensor) -> Any:
    """Change the type, shape, layout or value of a tensor."""
    values: tuple[Callable[[], Any], ...] = (
        lambda: tensor.double() * 1e300,
        lambda: tensor.double().mul(1e30).float(),
        lambda: tensor.to(rng.choice((torch.int64, torch.float16, torch.uint8, torch.bool, torch.complex64))),
        lambda: tensor.flatten(),
        lambda: tensor[None],
        lambda: tensor[..., :0],
        lambda: tensor.new_zeros(()),
        lambda: tensor.new_zeros(1).expand(10**6, 10**6),
        lambda: torch.cat([tensor.flatten(), tensor.flatten()]),
        lambda: tensor.float().to_sparse(),
        lambda: torch.empty(3, 3, device="meta"),
        lambda: torch.quantize_per_tensor(tensor.float(), float("nan"), 0, torch.qint8),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: tensor.new_zeros([1] * 60),
        lambda: tensor.tolist() if tensor.numel() < 10_000 else None,
        lambda: _with_one(rng, tensor, float("nan")),
        lambda: _with_one(rng, tensor, float("inf")),
        lambda: _with_one(rng, tensor, -1.0),
        lambda: tensor.clone().fill_(0),
    )
    try:
        return rng.choice(values)()
    except (RuntimeError, TypeError, IndexError, ValueError):
        return None


def _with_one(rng: random.Random, tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone().contiguous()
    if changed.numel():
        changed.view(-1)[rng.randrange(changed.numel())] = value if changed.is_floating_point() else 99
    return changed


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every dict or list of a tree with each of its keys."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in list(keys):
        yield tree, key
        yield from _places(tree[key])


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def change_torch(rng: random.Random, data: bytes) -> bytes:
    """Change a place of what ``torch.save`` wrote and write it again, sometimes in the format of old versions."""
    tree = torch.load(io.BytesIO(data), weights_only=False, map_location="cpu")  # written by ourselves a moment ago
    out = io.BytesIO()
    try:
        if isinstance(tree, TensorDict):
            changed = _tensordict(change_tree(rng, tree.to_dict()), tree)
        else:
            changed = change_tree(rng, tree)
        torch.save(changed, out, _use_new_zipfile_serialization=rng.random() > 0.05)
    except (RecursionError, RuntimeError, NotImplementedError, ValueError):  # nobody can write such a file
        return change_bytes(rng, data)
    return out.getvalue()


def _tensordict(tree: Any, like: TensorDict) -> Any:
    """Turn the tree into a TensorDict where that is possible."""
    for batch_size in (like.batch_size, [], None):
        try:
            return TensorDict(tree, batch_size=batch_size)
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError):
            continue
    return tree


def change_json(rng: random.Random, data: bytes) -> bytes:
    """Change a place of a JSON document."""
    try:
        changed = change_tree(rng, json.loads(data))
        return json.dumps(changed, indent=rng.choice((None, 2))).encode()
    except (RecursionError, ValueError):  # nested too deeply, or an integer too long to print
        return rng.choice((b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}", b'{"a": 1, "a": 2}'))


def change_csv(rng: random.Random, data: bytes) -> bytes:
    """Change one cell, row or column of a CSV file."""
    rows = [line.split(",") for line in data.decode().splitlines()]
    row = rng.choice(rows)
    column = rng.randrange(len(row))
    match rng.randrange(6):
        case 0:
            rows.remove(row)
        case 1:
            rows.append(row)
        case 2:
            del row[column]
        case 3:
            row.append("1")
        case _:
            row[column] = rng.choice(
                ("", "nan", "inf", "-1", "1e400", "x", '"', "\x00", "9" * 400, "a" * 200_000, "=1+1", "\x1b[2J")
            )
    return "\n".join(",".join(cells) for cells in rows).encode() + rng.choice((b"\n", b"", b"\n\n"))


def change_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Change a place of the header of a safetensors file, or of the entries within it, with a valid checksum."""
    length = int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header["__metadata__"]
    if rng.random() < 0.5:
        metadata["tdmpc2"] = change_json(rng, metadata["tdmpc2"].encode()).decode()
        checksum = zlib.crc32(metadata["tdmpc2"].encode())
        metadata["crc32"] = json.dumps(json.loads(metadata["crc32"]) | {"entries": checksum})
        text = json.dumps(header).encode()
    else:
        text = change_json(rng, json.dumps(header).encode())
    return len(text).to_bytes(8, "little") + text + values


#: Ending of a file's name -> function that changes its structure.
STRUCTURES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    ".pt": change_torch,
    ".json": change_json,
    ".csv": change_csv,
    ".safetensors": change_safetensors,
}


def mutate(rng: random.Random, path: Path) -> tuple[str, bytes]:
    """Change a file that exists.

    Returns:
        The level of the change (``bytes``, ``archive`` or ``structure``), and the new content.
    """
    data = path.read_bytes()
    structure = STRUCTURES.get(path.suffix)
    if structure is not None and rng.random() < 0.6:
        if path.suffix == ".pt" and rng.random() < 0.3:
            return "archive", change_archive(rng, data)
        try:
            return "structure", structure(rng, data)
        except (ValueError, RuntimeError, IndexError):  # nothing to change in it
            pass
    return "bytes", change_bytes(rng, data)
