"""Damaged model files, and the library under sanitizers and on another processor."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.export.native_library import NativeLibrary, build
from tests.helpers.native import agent_program, runnable

pytestmark = pytest.mark.slow
ARM, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def taken_apart(content: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def put_together(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def with_card(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change the card of a file."""
    header, data = taken_apart(content)
    card = json.loads(header["__metadata__"]["tdmpc2"])
    change(card)
    header["__metadata__"]["tdmpc2"] = json.dumps(card)
    return put_together(header, data)


def with_tensor(content: bytes, name: str, **changes: object) -> bytes:
    header, data = taken_apart(content)
    header[name].update(changes)
    return put_together(header, data)


#: Damage, and what the library says of it.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "it is no safetensors file": lambda content: content[:5],
    "it ends in its header": lambda content: content[:500],
    "it is no model: its header would have more than 1 MiB": lambda content: b"\xff" * 8 + content[8:],
    "the header is damaged: too many brackets": lambda content: put_together(b"[" * 100_000, b""),
    "the header is damaged: there is no value": lambda content: put_together(b'{"a": }', b""),
    "the header is damaged: a key is there twice": lambda content: put_together(b'{"a": 1, "a": 2}', b""),
    "is not where the header says": lambda content: content[:-1],
    "it is longer than its tensors": lambda content: content + b"more",
    "its header is no object": lambda content: put_together(b"[]", b""),
    "none that `tdmpc2 export --to native` wrote": lambda content: put_together(b"{}", b""),
    "tensor '?[31mbins' is of type 'red'": lambda content: put_together(
        b'{"\\u001b[31mbins": {"dtype": "red", "shape": [], "data_offsets": [0, 0]}}', b""
    ),
    "it has no tensor 'bins'": lambda content: content.replace(b'"bins"', b'"bats"'),
    "tensor 'bins' has no sound shape": lambda content: with_tensor(content, "bins", shape=[-101]),
    "a tensor is larger than the file": lambda content: with_tensor(content, "bins", shape=[2**31, 2**31, 2**31]),
    "tensor 'bins' is of type 'I4'": lambda content: with_tensor(content, "bins", dtype="I4"),
    "tensor 'bins' is of type I32, expected": lambda content: with_tensor(content, "bins", dtype="I32"),
    "its tensors overlap or leave gaps": lambda content: with_tensor(
        content, "bins", data_offsets=[0, 4 * taken_apart(content)[0]["bins"]["shape"][0]]
    ),
    "has numbers that are not finite": lambda content: content[:-4] + struct.pack("<f", float("nan")),
    "'num_bins' is not a whole number from 2": lambda content: with_card(
        content, lambda card: card["networks"].update(num_bins=1)
    ),
    "'horizon' is not a whole number from 1": lambda content: with_card(
        content, lambda card: card["budget"].update(horizon=1e300)
    ),
    "a task's name holds a control character": lambda content: with_card(
        content, lambda card: card["tasks"][0].update(name="\x1b[2J")
    ),
    "'num_elites' is not a whole number from 1 to 2": lambda content: with_card(
        content, lambda card: card["budget"].update(num_samples=2, num_elites=3)
    ),
    "has shape": lambda content: with_card(content, lambda card: card["networks"].update(latent_dim=65536)),
    "it lists no products": lambda content: with_card(content, lambda card: card["networks"].update(num_q=250)),
    "it computes in 'int4'": lambda content: with_card(
        content, lambda card: card["networks"].update(products=["int4"] * len(card["networks"]["products"]))
    ),
    "which is newer than this library": lambda content: with_card(
        content, lambda card: card["networks"].update(format=4)
    ),
    "it does not say 'tasks'": lambda content: with_card(content, lambda card: card.pop("tasks")),
    "it lists no tasks": lambda content: with_card(content, lambda card: card.update(tasks=[])),
    "SimNorm of 6 does not fit": lambda content: with_card(
        content, lambda card: card["networks"].update(simnorm_dim=6)
    ),
}  # fmt: skip


def _without_head(content: bytes) -> bytes:
    """Remove the termination head's numbers, which are between those of the Q heads and the tables."""
    header, data = taken_apart(content)
    own = {name: entry["data_offsets"] for name, entry in header.items() if name.startswith("termination.")}
    first, last = min(start for start, _ in own.values()), max(end for _, end in own.values())
    kept = {name: entry for name, entry in header.items() if name not in own}
    for name, entry in kept.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= last:
            entry["data_offsets"] = [place - last + first for place in entry["data_offsets"]]
    return put_together(kept, data[:first] + data[last:])


#: Damage to an episodic model. The library must not plan with any of these as if no episode ever ended.
EPISODIC_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "it has no tensor 'termination.0.bias'": _without_head,
    "tensor 'termination.2.bias' has shape": lambda content: with_tensor(content, "termination.2.bias", shape=[1, 1]),
    "it does not say 'episodic'": lambda content: with_card(content, lambda card: card["networks"].pop("episodic")),
    "'episodic' is not a whole number from 0 to 1": lambda content: with_card(
        content, lambda card: card["networks"].update(episodic=2)
    ),
    "it lists no products (episodic=0)": lambda content: with_card(
        content, lambda card: card["networks"].update(episodic=0)
    ),
    "it lists no products (format 2)": lambda content: with_card(
        content, lambda card: card["networks"].update(format=2)
    ),
}


@pytest.mark.parametrize("said", EPISODIC_DAMAGES)
def test_model_with_a_damaged_termination_head_is_refused(
    episodic: Path, opened: NativeLibrary, tmp_path: Path, said: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(EPISODIC_DAMAGES[said]((episodic / "int8.safetensors").read_bytes()))
    with pytest.raises(ValueError, match=re.escape(said.partition(" (")[0])):
        opened.open(path)


@pytest.mark.parametrize("said", DAMAGES)
def test_damaged_model_is_refused_and_says_why(folder: Path, opened: NativeLibrary, tmp_path: Path, said: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(DAMAGES[said]((folder / "int8.safetensors").read_bytes()))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: .*{re.escape(said)}"):
        opened.open(path)


def test_path_that_is_no_file_is_refused(opened: NativeLibrary, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes into it
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(ValueError, match=str(path)):
            opened.open(path)


def test_reason_has_room_behind_a_long_path(opened: NativeLibrary, tmp_path: Path) -> None:
    path = tmp_path.joinpath(*["a" * 200] * 4, "model.safetensors")
    with pytest.raises(ValueError, match=r"^\.\.\.a+/.*model\.safetensors: .*[Nn]o such file"):
        opened.open(path)


# -- under sanitizers -------------------------------------------------------------------------------------------------


def mutations(content: bytes, rng: random.Random, count: int) -> Iterator[bytes]:
    """Yield damaged files: changed bytes, mostly in the header, cut or repeated parts, exchanged numbers."""
    header, data = taken_apart(content)
    size = len(content) - len(data)
    text = content[8:size]
    digits = [place for place, byte in enumerate(text) if chr(byte).isdigit()]
    for number in range(count):
        kind = number % 4
        if kind == 0:  # bytes
            changed = bytearray(content)
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(size if rng.random() < 0.8 else len(content))] = rng.randrange(256)
            yield bytes(changed)
        elif kind == 1:  # cut, or a part twice
            at = rng.randrange(len(content))
            yield content[:at] if rng.random() < 0.5 else content[:at] + content[rng.randrange(len(content)) :]
        elif kind == 2:  # numbers in the header
            changed = bytearray(text)
            for _ in range(rng.randint(1, 3)):
                changed[rng.choice(digits)] = ord(rng.choice("0123456789-e."))
            yield put_together(bytes(changed), data)
        else:  # structure: another number in the card or in a tensor's entry
            card = json.loads(header["__metadata__"]["tdmpc2"])
            part = rng.choice([card["networks"], card["budget"], card["tasks"][0]])
            key = rng.choice(sorted(part))
            part[key] = rng.choice([0, 1, 2, 3, 255, 65535, 65536, 2**31, -1, 1e308, "x", None, [], {}])
            tensors = {**header, "__metadata__": {"tdmpc2": json.dumps(card)}}
            if rng.random() < 0.3:
                name = rng.choice([name for name in header if name != "__metadata__"])
                shape = [rng.choice([0, 1, 24, 2**20]) for _ in range(rng.randint(0, 3))]
                tensors[name] = {**header[name], "shape": shape}
            yield put_together(tensors, data)


#: What sanitizers look at: the plain code, and that for vectors where it runs.
VARIANTS = [name for name in ("scalar", "avx2") if name in runnable()]


def sanitized(folder: Path, kinds: str, name: str) -> Path:
    """Compile agent.cpp with a library under sanitizers."""
    flags = f"-fsanitize={kinds} -fno-sanitize-recover=all"
    flags_list = f"-O1;{flags.replace(' ', ';')}"
    made = build(folder, f"TDMPC2_VARIANTS={';'.join(VARIANTS)}", f"TDMPC2_MORE_FLAGS={flags_list}",
                 "TDMPC2_EXAMPLE=OFF", target="tdmpc2_static", name=name)  # fmt: skip
    return agent_program(folder, made, *flags.split())


def called(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1:max_allocation_size_mb=512"}
    environment.pop("LD_PRELOAD", None)
    command = [str(program), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)


def test_library_under_address_and_undefined_sanitizers_is_clean(
    folder: Path, episodic: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    """The library plans in every precision and opens 400 damaged files, most of which it refuses."""
    program = sanitized(folder, "address,undefined", "build-address")
    for name in ("fp32", "bf16", "int8", "episodic/int8"):
        path = folder / f"{name}.safetensors"
        for variant in VARIANTS:
            done = called(program, "plan", path, 3, 2, 2, variant)
            assert done.returncode == 0, done.stderr[-3000:]
            assert done.stdout == run("plan", path, 1, 2, 2, variant)
    files = []
    for number, (whole, count) in enumerate([(folder, 300), (episodic, 100)]):
        content = (whole / "int8.safetensors").read_bytes()
        for i, damaged in enumerate(mutations(content, random.Random(1), count)):
            files.append(tmp_path / f"{number}_{i}.safetensors")
            files[-1].write_bytes(damaged)
    done = called(program, "open", VARIANTS[-1], *files)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]
    said = [line.split()[0] for line in done.stdout.splitlines()]
    assert len(said) == len(files)
    assert said.count("refused") > len(files) / 2


def test_library_under_the_thread_sanitizer_is_clean(folder: Path) -> None:
    """Two agents plan in two threads, each with helper threads."""
    program = sanitized(folder, "thread", "build-thread")
    for variant in VARIANTS:
        done = called(program, "threads", folder / "int8.safetensors", variant)
        assert done.returncode == 0, done.stderr[-3000:]


# -- on another processor ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (shutil.which(ARM) and shutil.which(EMULATOR)), reason=f"needs {ARM} and {EMULATOR}")
def test_library_for_arm_plans_the_same_bits_in_int8(folder: Path, episodic: Path, run: Callable[..., str]) -> None:
    """A robot with an ARM processor does what the workstation did, with the library's own random numbers."""
    toolchain = f"CMAKE_TOOLCHAIN_FILE={folder / 'cmake' / 'aarch64-linux.cmake'}"
    made = build(folder, toolchain, "TDMPC2_VARIANTS=scalar;neon", target="tdmpc2_static", name="build-arm")
    program = agent_program(folder, made, "-static", compiler=ARM)
    for whole in (folder, episodic):
        words = ["plan", str(whole / "int8.safetensors"), "1", "1", "2", "neon"]
        done = subprocess.run([EMULATOR, program, *words], capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == run(*words[:-1], "scalar")
