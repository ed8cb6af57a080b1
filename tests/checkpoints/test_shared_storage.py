"""Files whose small tensors share storages, as a run's training state has them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import save_file
from tdmpc2.checkpoints.reading import read_file, read_outline
from tdmpc2.checkpoints.shared_storage import pack
from tdmpc2.config import Config
from tdmpc2.training import run_dir
from tests.helpers.runs import TINY


@pytest.fixture
def content() -> dict[str, Any]:
    shared = torch.tensor(7.0)
    return {
        "matrix": torch.arange(12.0).view(3, 4),
        "nested": [{"count": shared}, (shared, torch.arange(5, dtype=torch.uint8), "text", torch.Size([2]))],
        "empty": torch.zeros(0, 3),
        "large": torch.ones(1 << 19),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and all(map(same, one, other))
    return bool(one == other)


def test_pack_keeps_every_value(content: dict[str, Any]) -> None:
    """A reader of the file sees the same tensors, however they are stored."""
    assert same(pack(content), content)


def test_save_file_packed_reads_back_equal(tmp_path: Path, content: dict[str, Any]) -> None:
    save_file(tmp_path / "x.pt", content, overwrite=False, packed=tuple(content))
    read = read_file(tmp_path / "x.pt")
    del read["format"]
    assert same(read, content)


def test_pack_copies_no_large_tensor(content: dict[str, Any]) -> None:
    """The state of a model of 317M parameters must not be in memory twice."""
    assert pack(content)["large"] is content["large"]


def test_pack_aligns_every_tensor(content: dict[str, Any]) -> None:
    """Packed tensors start at multiples of 64 bytes, where torch would have put them."""
    packed = pack(content)
    places = [tensor.storage_offset() * 4 for tensor in (packed["matrix"], packed["nested"][0]["count"])]
    assert len(set(places)) == 2
    assert [place % 64 for place in places] == [0, 0]


def test_run_state_has_few_records(tmp_path: Path) -> None:
    """torch takes as long for a record of four bytes as for a matrix, and a state has some 200 small tensors."""
    agent = TDMPC2(Config(**TINY))
    for optimiser in (agent.optim, agent.pi_optim):
        for parameter in (parameter for group in optimiser.param_groups for parameter in group["params"]):
            parameter.grad = torch.ones_like(parameter)
        optimiser.step()
    run_dir.save(agent, tmp_path, 1, None)
    with zipfile.ZipFile(tmp_path / "state.pt") as archive:
        assert len([name for name in archive.namelist() if "/data/" in name]) < 10


def test_read_outline_has_all_but_the_values(tmp_path: Path, content: dict[str, Any]) -> None:
    save_file(tmp_path / "x.pt", {**content, "step": 12}, overwrite=False)
    outline = read_outline(tmp_path / "x.pt")
    assert outline["step"] == 12
    assert outline["matrix"].is_meta
    assert outline["matrix"].shape == (3, 4)


def test_read_outline_of_damaged_values_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    """A flipped bit is found even in values that are not kept, so that a run can repair its checkpoint."""
    save_file(tmp_path / "x.pt", content, overwrite=False)
    damaged = bytearray((tmp_path / "x.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1  # in the large tensor
    (tmp_path / "x.pt").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"Bad CRC-32"):
        read_outline(tmp_path / "x.pt")


def test_restored_moments_are_no_views(tmp_path: Path) -> None:
    """Views would carry the storage of all moments along when a state is sent to another process."""
    agent = TDMPC2(Config(**TINY))
    for parameter in (parameter for group in agent.optim.param_groups for parameter in group["params"]):
        parameter.grad = torch.ones_like(parameter)
    agent.optim.step()
    run_dir.save(agent, tmp_path, 1, None)
    run_dir.restore(agent, tmp_path)
    entries = agent.training_state()["optim"]["state"].values()
    assert all(t.untyped_storage().nbytes() == t.nbytes for entry in entries for t in entry.values())
