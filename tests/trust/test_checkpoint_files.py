"""Checkpoint files: damage, archives that grow, unusable tensors, values that overflow, names with prefixes."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import convert, describe, load_file, read_file, save_file
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tests.helpers.layouts import state_a


@pytest.fixture(scope="module")
def config() -> Config:
    sizes: dict[str, Any] = {"enc_dim": 8, "mlp_dim": 16, "latent_dim": 16, "num_q": 3, "task_dim": 4, "num_bins": 11}
    return Config(task="mt30", model_size=None, num_samples=8, num_elites=2, num_pi_trajs=2, device="cpu", **sizes)


@pytest.fixture(scope="module")
def state(config: Config) -> dict[str, Tensor]:
    return dict(TDMPC2(config).model.state_dict())


@pytest.fixture
def path(tmp_path: Path, config: Config, state: dict[str, Tensor]) -> Path:
    save_file(tmp_path / "x.pt", {"model": state, "config": config.to_dict(), "step": 3}, overwrite=False)
    return tmp_path / "x.pt"


def test_load_file_notices_any_flipped_bit_of_a_weight(path: Path, state: dict[str, Tensor]) -> None:
    """A model.pt with one flipped bit used to load and act."""
    raw = path.read_bytes()
    for name in ("_encoder.state.0.weight", "_Qs.params.4", "_target_Qs.params.8"):
        damaged = bytearray(raw)
        damaged[raw.index(state[name].contiguous().numpy().tobytes()) + 17] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.pt, record \S*/data/\d+: Bad CRC-32"):
            load_file(path)
    path.write_bytes(raw)
    assert load_file(path).step == 3


def test_load_file_without_checksums_is_read(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """Other programs may tell torch to store no checksums; this one always stores them."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": state}, tmp_path / "theirs.pt")
        save_file(tmp_path / "own.pt", {"model": state}, overwrite=False)
    finally:
        torch.serialization.set_crc32_options(True)
    load_file(tmp_path / "theirs.pt")
    with zipfile.ZipFile(tmp_path / "own.pt") as archive:
        assert archive.testzip() is None
        assert any(record.CRC for record in archive.infolist())


def _rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, values in records.items():
            archive.writestr(name, change(name, values))


def test_read_file_of_archive_that_grows_is_refused_before_it_is_unpacked(path: Path) -> None:
    """3 MB of compressed zeros used to take 9 GB of memory and half a minute before an error."""
    _rewritten(path, lambda name, v: bytes(10**9) if name.endswith("/data/0") else v, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2 * 10**6
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"x\.pt is refused: its record .* is compressed or encrypted"):
        read_file(path)
    assert time.monotonic() - began < 2


def test_read_file_of_records_beyond_the_file_is_refused(path: Path) -> None:
    """The archive's directory claims 3 GB for a record in a file of some kilobytes."""
    raw = bytearray(path.read_bytes())
    entry = raw.index(b"PK\x01\x02")
    raw[entry + 20 : entry + 28] = (3 * 10**9).to_bytes(4, "little") * 2
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"x\.pt .*truncated, its record .* ends beyond it"):
        read_file(path)


def test_read_file_of_overlapping_records_is_refused(path: Path) -> None:
    """Entries that name the same bytes would make a small file arbitrarily large in memory."""
    raw = bytearray(path.read_bytes())
    first = raw.index(b"PK\x01\x02")
    second = raw.index(b"PK\x01\x02", first + 4)
    raw[second + 42 : second + 46] = raw[first + 42 : first + 46]
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"x\.pt is refused: its records lie on one another"):
        read_file(path)


UNUSABLE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "sparse": (lambda w: w.to_sparse(), "is a sparse_coo tensor"),
    "without values": (lambda w: w.to("meta"), "has no values"),
    "one value shown as many": (lambda w: torch.zeros(1, 1).expand(10**6, 10**6), "is a view of 4 bytes as 4,000,000"),
    "100 dimensions": (lambda w: torch.zeros([1] * 60), "has 60 dimensions"),
    "infinite in float32": (lambda w: w.double() * 1e300, r"not finite in float32 \(stored as torch.float64\)"),
    "qint8 of scale nan": (lambda w: torch.quantize_per_tensor(w, float("nan"), 0, torch.qint8), "not finite"),
    "nan": (lambda w: w * torch.nan, "has 192 values that are not finite"),
}


@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.filterwarnings("ignore")
def test_load_file_with_unusable_tensor_is_refused(tmp_path: Path, state: dict[str, Tensor], case: str) -> None:
    """Weights that are infinite in float32 used to get a score, and other odd tensors a traceback."""
    change, words = UNUSABLE[case]
    name = "_pi.2.weight"
    torch.save({"model": {**state, name: change(state[name])}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x\.pt.*{words}") as error:
        load_file(tmp_path / "x.pt")
    assert name in str(error.value)


def test_load_file_with_int8_that_overflows_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    name = "_pi.2.weight"
    wrong = {name: torch.full_like(state[name], 100).to(torch.int8), f"{name}.scale": torch.full((12, 1), 3e38)}
    for scale, good in ((3e38, False), (0.01, True)):
        wrong[f"{name}.scale"] = torch.full((12, 1), scale)
        torch.save({"model": {**state, **wrong}}, tmp_path / "x.pt")
        if good:
            load_file(tmp_path / "x.pt")
        else:
            with pytest.raises(ValueError, match=rf"x\.pt: '{name}' has 192 values that are not finite in float32"):
                load_file(tmp_path / "x.pt")


def test_save_file_of_weights_that_are_not_finite_writes_nothing(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="values that are not finite"):
        save_file(tmp_path / "x.pt", {"model": {**state, "a": torch.tensor([torch.inf])}}, overwrite=False)
    assert not list(tmp_path.iterdir())


SPEC = {"name": "walker-walk", "obs_dim": 24, "action_dim": 6, "episode_length": 500, "success_score": False}
WRONG_ENTRIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "name of a weight": (lambda c: c["model"].update({5: torch.ones(1)}), "5 is the name of a weight"),
    "name of a key": (lambda c: c["config"].update({7: 1}), "7 is the name of a key"),
    "step": (lambda c: c.update(step=-1), "'step' is -1"),
    "step that is a bool": (lambda c: c.update(step=True), "'step' an integer"),
    **{
        f"task_specs {specs}": (lambda c, specs=specs: c["config"].update(task_specs=specs), words)
        for specs, words in (
            ("abc", "expected a list"),
            ([None], r"task_specs\[0\] is a NoneType"),
            ([{**SPEC, "extra": 1}], "'extra' is missing or not known"),
            ([{**SPEC, "name": 7}], "name is 7, expected a text"),
            ([{**SPEC, "obs_dim": "7"}], "obs_dim is '7'"),
            ([{**SPEC, "obs_dim": 24.0}], "obs_dim is 24.0"),
            ([{**SPEC, "obs_dim": 10**9}], "obs_dim is 1000000000"),
            ([{**SPEC, "episode_length": "a"}], "episode_length is 'a'"),
            ([{**SPEC, "name": "a\x1b[2J"}], r"name is 'a\\x1b\[2J'"),
        )
    },
}


@pytest.mark.parametrize("case", WRONG_ENTRIES)
def test_load_file_with_entry_of_wrong_kind_is_refused(
    tmp_path: Path, config: Config, state: dict[str, Tensor], case: str
) -> None:
    change, words = WRONG_ENTRIES[case]
    content: dict[str, Any] = {"model": dict(state), "config": config.to_dict(), "step": 1}
    change(content)
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x\.pt.*{words}"):
        load_file(tmp_path / "x.pt")


def test_load_agent_with_sizes_beyond_the_file_builds_no_model(
    tmp_path: Path, config: Config, state: dict[str, Tensor]
) -> None:
    """Widths in a configuration that no machine can hold used to end in the allocator's traceback."""
    for width, words in (
        (10**6, r" \(mlp_dim 16 instead of 1000000\)"),
        (10**9, ": mlp_dim=1000000000 must be at most"),
    ):
        torch.save({"model": state, "config": {**config.to_dict(), "mlp_dim": width}}, tmp_path / "x.pt")
        with pytest.raises(ValueError, match=rf"x\.pt.*{words}"):
            load_agent(tmp_path / "x.pt", device="cpu")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("entry", ["model", "state_dict", "model_state_dict"])
def test_load_file_of_wrapped_model_reads_it(
    tmp_path: Path, config: Config, state: dict[str, Tensor], prefix: str, entry: str
) -> None:
    """The prefixes of torch.compile and DataParallel and the usual names of the entry are accepted."""
    content = {entry: {prefix + name: value for name, value in state.items()}, "config": config.to_dict()}
    torch.save(content, tmp_path / "p.pt")
    agent = load_agent(tmp_path / "p.pt", device="cpu", compile=False)
    assert all(torch.equal(value, state[name]) for name, value in agent.model.state_dict().items())


@pytest.mark.parametrize("use", [lambda f: load_agent(f, device="cpu"), describe, lambda f: convert(f, "b")])
def test_weights_of_another_model_are_named_with_their_file(tmp_path: Path, use: Callable[[Any], Any]) -> None:
    """With two files on the command line, the message used to leave open which one was meant."""
    torch.save({"model": {"layer.weight": torch.ones(2, 2)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: Not the weights of a TD-MPC2 model: found layer\.weight"):
        use(load_file(tmp_path / "other.pt"))


@pytest.mark.parametrize("name", ["_encoder.state.0.weight", "_dynamics.2.weight", "_Qs.params.0", "_pi.2.weight"])
def test_weights_of_odd_shapes_are_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' has the shape"):
        load_agent({"model": state_a() | {name: torch.ones(())}}, device="cpu", task="walker-walk")
