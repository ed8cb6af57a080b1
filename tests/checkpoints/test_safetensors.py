"""Checkpoints in the safetensors format: nothing is lost, other programs read them, damaged ones are refused."""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import convert, describe, load_file, precision_of, save_file
from tdmpc2.checkpoints.reading import read_outline
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tdmpc2.quantization.copies import payload
from tdmpc2.quantization.recipes import RECIPES, Recipe
from tests.helpers.agents import small_config
from tests.helpers.checkpoints import published_file

MIXED = Recipe("mixed", frozenset({"dynamics", "pi"}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model.pt"
    TDMPC2(small_config()).save(path, step=7)
    return path


@pytest.fixture(scope="module")
def small(saved: Path) -> Path:
    path = saved.with_suffix(".safetensors")
    save_file(path, convert(load_file(saved), "safetensors"), overwrite=False)
    return path


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(
        tensor.dtype == two[name].dtype and torch.equal(tensor, two[name]) for name, tensor in one.items()
    )


@pytest.mark.parametrize("recipe", [None, *RECIPES.values(), MIXED], ids=lambda recipe: getattr(recipe, "name", "fp32"))
def test_safetensors_copy_of_any_precision_holds_what_the_file_holds(
    saved: Path, tmp_path: Path, recipe: Recipe | None
) -> None:
    source = load_file(saved)
    if recipe is not None:
        source = load_file(payload(source, recipe))
    path = tmp_path / "copy.safetensors"
    save_file(path, convert(source, "safetensors"), overwrite=False)
    copy = load_file(path)
    assert same(source.model, copy.model)
    assert (copy.config, copy.step, copy.format) == (source.config, 7, 1)
    assert copy.extra == source.extra
    assert precision_of(copy.model) == precision_of(source.model)
    obs = torch.linspace(-1, 1, source_dim(source.config))
    actions = [
        load_agent(file, device="cpu", quiet=True).act(obs, t0=True, eval_mode=True, task="pendulum-spin")
        for file in (source, copy)
    ]
    assert torch.equal(*actions)


def source_dim(config: dict[str, Any] | None) -> int:
    assert config is not None
    return Config(**config).obs_dim


@pytest.mark.parametrize("name", ["fp16", "int8", "mixed"])
def test_safetensors_copy_of_published_file_computes_the_same(tmp_path: Path, name: str) -> None:
    """The format has no quantised tensors, so each scale is stored beside its int8 values."""
    source = load_file(published_file(name))
    path = tmp_path / "copy.safetensors"
    save_file(path, convert(source, "safetensors"), overwrite=False)
    agents = [load_agent(file, device="cpu", precision="fp32", quiet=True) for file in (source, path)]
    assert same(*(dict(agent.model.state_dict()) for agent in agents))


def test_agent_saved_under_such_a_name_is_described_and_checked_like_any_other(
    tmp_path: Path, tiny_cfg: Config
) -> None:
    path = tmp_path / "model.safetensors"
    agent = TDMPC2(tiny_cfg)
    agent.save(path, step=3)
    facts = describe(load_file(path, identify=True))
    assert facts["step"] == "3"
    assert facts["layout"] == "(a)"
    assert all(tensor.device.type == "meta" for tensor in read_outline(path)["model"].values())
    with pytest.raises(ValueError, match="exists: choose another name"):
        agent.save(path)


def test_safetensors_library_reads_what_we_write_and_we_read_what_it_writes(small: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    model = load_file(small).model
    assert same(model, library.load_file(small))
    library.save_file(model, tmp_path / "theirs.safetensors")
    theirs = load_file(tmp_path / "theirs.safetensors")
    assert same(model, theirs.model)
    assert theirs.config is None


# -- damage -----------------------------------------------------------------------------------------------------------


def test_any_flipped_bit_is_noticed_or_changes_nothing(small: Path, tmp_path: Path) -> None:
    """A bit that flips in the header or in the values is refused, or the file reads the same."""
    data, good = small.read_bytes(), load_file(small)
    header = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(3)
    places = [
        *range(8),
        *(rng.randrange(8, header) for _ in range(120)),
        *(rng.randrange(len(data)) for _ in range(60)),
    ]
    path, refused = tmp_path / "flipped.safetensors", 0
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            found = load_file(path)
        except ValueError:
            refused += 1
            continue
        assert same(good.model, found.model), place
        assert (found.config, found.step, found.extra) == (good.config, good.step, good.extra), place
    assert refused > 0.9 * len(places)


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: Any, values: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values


def tensor_of(header: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in header.items() if name != "__metadata__")


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        header, values = parts(data)
        change(header)
        return joined(header, values)

    return apply


def with_entries(text: str) -> Callable[[bytes], bytes]:
    """Replace the metadata and renew its checksum, as somebody with intent would."""

    def change(header: dict[str, Any]) -> None:
        crcs = json.loads(header["__metadata__"]["crc32"])
        crcs["entries"] = zlib.crc32(text.encode())
        header["__metadata__"] |= {"tdmpc2": text, "crc32": json.dumps(crcs)}

    return changed(change)


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "truncated or not a checkpoint"),
    "header length alone": (lambda data: data[:8], "it is a damaged file"),
    "header longer than the file": (
        lambda data: (2**60).to_bytes(8, "little") + data[8:], "its header would have 1,152,921,504,606,846,976 bytes",
    ),
    "header cut": (lambda data: data[:200], "its header would have"),
    "values cut": (lambda data: data[:-4], "truncated or damaged: its tensors have"),
    "values added": (lambda data: data + b"x", "truncated or damaged: its tensors have"),
    "no JSON": (lambda data: joined(b'{"a": nonsense}', b""), "its header is no JSON"),
    "a name twice": (lambda data: joined(b'{"a": 1, "a": 2}', b""), "a name comes twice"),
    "too deep": (lambda data: joined(b'{"a":' * 30_000, b""), "nested too deeply"),
    "a huge shape": (changed(lambda h: tensor_of(h).update(shape=[2**40, 2**40])), "for [1099511627776"),
    "more dimensions": (changed(lambda h: tensor_of(h).update(shape=[1] * 70)), "numbers of 4 bytes"),
    "negative offset": (changed(lambda h: tensor_of(h).update(data_offsets=[-4, 0])), "data_offsets is [-4, 0]"),
    "overlap": (
        changed(lambda h: h.update(again={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})), "lie on one another",
    ),
    "unknown numbers": (changed(lambda h: tensor_of(h).update(dtype="F8_E4M3")), "dtype is 'F8_E4M3'"),
    "metadata that is no text": (changed(lambda h: h.update(__metadata__={"a": 1})), "expected text by name"),
    "checksums left out": (changed(lambda h: h["__metadata__"].pop("crc32")), "only one of the entries"),
    "metadata left out": (changed(lambda h: h["__metadata__"].pop("tdmpc2")), "only one of the entries"),
    "a list as entries": (with_entries("[]"), "'tdmpc2' is []"),
    "entries too deep": (with_entries('{"a":' * 30_000), "metadata are nested too deeply"),
    "weights among the entries": (with_entries('{"model": {}}'), "'tdmpc2' is"),
    "a wrong step": (with_entries('{"step": -1}'), "'step' is -1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_malformed_file_is_refused_in_one_line(small: Path, tmp_path: Path, name: str) -> None:
    change, message = BAD[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(change(small.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_entry_that_the_format_cannot_carry_is_refused_by_name(tmp_path: Path) -> None:
    weights: dict[str, Tensor] = {"_reward.2.weight": torch.ones(2)}
    for entry, words in ((torch.ones(2), "a Tensor"), ({3: 4}, "the key 3")):
        with pytest.raises(ValueError, match=f"'more' holds {words}, which a safetensors"):
            save_file(tmp_path / "x.safetensors", {"model": weights, "more": [entry]}, overwrite=False)
    with pytest.raises(ValueError, match=r"'_reward.2.weight' holds torch.complex64"):
        save_file(tmp_path / "x.safetensors", {"model": {"_reward.2.weight": torch.ones(2) * 1j}}, overwrite=False)
    assert not list(tmp_path.iterdir())
