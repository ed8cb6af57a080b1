"""A recorded identity is that of the bytes that were used; equal data are recognised by their content."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints import reading
from tdmpc2.checkpoints.files import file_sha256, load_file, read_file, save_file
from tdmpc2.config import Config
from tdmpc2.config.mix import MixEntry
from tdmpc2.data.placement import data_record
from tdmpc2.data.store.importer import ensure_store, import_episodes
from tdmpc2.loading import load_agent
from tdmpc2.play import scoring
from tdmpc2.play.mixture import load_policies
from tdmpc2.studies import heldout
from tdmpc2.training import offline
from tdmpc2.training.offline import train
from tdmpc2.training.run_record import share_episodes, tells_content
from tdmpc2.training.teacher import Teacher
from tests.helpers.runs import TINY


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Save two models of different weights."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in ((1, "a.pt"), (2, "b.pt")):
        TDMPC2(Config(**{**TINY, "seed": seed})).save(root / name)
    return root / "a.pt", root / "b.pt"


def _replaced_after_loading(monkeypatch: pytest.MonkeyPatch, path: Path, other: Path) -> None:
    """Replace a file as soon as it has been read, as another program might."""
    load = reading._load

    def load_and_replace(file: Any, device: str) -> Any:
        content = load(file, device)
        shutil.copy(other, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)
        return content

    monkeypatch.setattr(reading, "_load", load_and_replace)


def test_identity_is_of_what_was_loaded_though_the_file_is_replaced(
    tmp_path: Path, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file replaced after loading used to be recorded with the new checksum and the old score."""
    path = Path(shutil.copy(models[0], tmp_path / "x.pt"))
    _replaced_after_loading(monkeypatch, path, models[1])
    file = load_file(path, identify=True)
    assert file.sha256 == file_sha256(models[0]) != file_sha256(path)
    expected = read_file(models[0])["model"]
    assert all(torch.equal(value, file.model[name]) for name, value in expected.items())


def test_file_that_is_written_to_while_it_is_read_is_refused(
    tmp_path: Path, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(models[0], tmp_path / "x.pt"))
    load = reading._load

    def load_and_append(file: Any, device: str) -> Any:
        content = load(file, device)
        with open(path, "ab") as own:
            own.write(b"more")
        return content

    monkeypatch.setattr(reading, "_load", load_and_append)
    with pytest.raises(ValueError, match=r"x\.pt was changed while it was read"):
        load_file(path)


def test_scores_are_recorded_with_the_checksum_of_what_played(
    tmp_path: Path, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(models[0], tmp_path / "x.pt"))
    scored: list[Any] = []
    monkeypatch.setattr(scoring, "score", lambda file, agent: scored.append(file) or pytest.skip.Exception)
    _replaced_after_loading(monkeypatch, path, models[1])
    with pytest.raises((AttributeError, TypeError)):  # the stub has no score to print
        scoring.score_files([str(path)], {"device": "cpu", "compile": False})
    assert scored[0].sha256 == file_sha256(models[0])


def test_mixture_is_recorded_with_the_checksum_of_what_acts(
    tmp_path: Path, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(models[0], tmp_path / "x.pt"))
    _replaced_after_loading(monkeypatch, path, models[1])
    (policy,) = load_policies([MixEntry(1.0, "policy", str(path))], lambda f, mpc: load_agent(f, device="cpu", mpc=mpc))
    assert policy.sha256 == file_sha256(models[0])


def test_teacher_that_is_replaced_after_its_checksum_is_refused(tmp_path: Path, models: tuple[Path, Path]) -> None:
    path = Path(shutil.copy(models[0], tmp_path / "t.pt"))
    teacher = Teacher.from_config(Config(checkpoint=str(path)))
    assert teacher is not None
    assert teacher.load("cpu").cfg.mlp_dim == TINY["mlp_dim"]
    shutil.copy(models[1], path)
    with pytest.raises(ValueError, match=r"t\.pt is not the file any more that it was when the run was started"):
        teacher.load("cpu")


def test_data_replaced_while_it_is_read_is_refused(
    cfg: Config, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's record used to name the files at its beginning, whatever was read in the end."""
    own = Path(shutil.copytree(data_dir, tmp_path / "data"))
    chunks = sorted(own.glob("chunk_*.pt"))
    open_data = offline.open_data

    def open_and_replace(*arguments: Any) -> Any:
        data = open_data(*arguments)
        shutil.copy(chunks[0], chunks[1])
        return data

    monkeypatch.setattr(offline, "open_data", open_and_replace)
    with pytest.raises(ValueError, match=r"The files in data_dir=.*data were replaced while they were read"):
        train(cfg.replace(data_dir=str(own)), None)
    assert not (cfg.run_dir / "model.pt").exists()


# -- data by content --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model beside the record of a run that trained it on chunk files."""
    root = tmp_path_factory.mktemp("trained")
    TDMPC2(Config(**TINY)).save(root / "model.pt", step=1)
    record = {**Config(**TINY, data_dir=str(data_dir)).to_dict(), "data": data_record(str(data_dir))}
    (root / "run.json").write_text(json.dumps(record))
    return root / "model.pt"


def _copy(data_dir: Path, out: Path) -> Path:
    return Path(shutil.copytree(data_dir, out, ignore=shutil.ignore_patterns("store", ".store*")))


def _renamed(data_dir: Path, out: Path) -> Path:
    for number, path in enumerate(sorted(_copy(data_dir, out).glob("chunk_*.pt"))):
        path.rename(out / f"chunk_{number + 70}.pt")
    return out


def _one_file(data_dir: Path, out: Path) -> Path:
    for path in sorted(_copy(data_dir, out).glob("chunk_*.pt"))[1:]:
        path.unlink()
    return out


def _store(data_dir: Path, out: Path, dtype: str = "float32") -> Path:
    cfg = Config()
    return import_episodes(
        [_copy(data_dir, out / "d")], out / "s", cfg.task, cfg.task_specs, dtype=dtype, quiet=True
    ).path


def _half(data_dir: Path, out: Path) -> Path:
    return _store(data_dir, out, "float16")


def _beside(data_dir: Path, out: Path) -> Path:
    cfg = Config()
    ensure_store(_copy(data_dir, out), cfg.task, cfg.task_specs, quiet=True)
    return out


@pytest.mark.parametrize("make", [_copy, _renamed, _one_file, _store, _half, _beside])
def test_heldout_refuses_the_data_of_the_run_wherever_it_lies(
    trained: Path, data_dir: Path, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    """Held-out errors used to be measured on training data if its directory had another name."""
    other = make(data_dir, tmp_path / "other")
    with pytest.raises(ValueError, match=r"model\.pt was trained on .*: collect other episodes"):
        heldout.measure([trained], str(other), batches=1, device="cpu")


def test_share_episodes_goes_by_content() -> None:
    assert share_episodes({"chunk_0.pt": "5-0000000a"}, {"chunk_9.pt": "5-0000000a", "x": "6-1"})
    assert not share_episodes({"chunk_0.pt": "5-0000000a"}, {"chunk_0.pt": "5-0000000b"})
    assert not share_episodes({}, {})
    assert tells_content({"checksum": "ab"})
    assert tells_content({"chunk_0.pt": "5-0000000a"})
    assert not tells_content({"chunk_0.pt": "5"})  # only a size, as in early versions


def test_save_and_read_with_identity_agree(tmp_path: Path) -> None:
    save_file(tmp_path / "x.pt", {"model": {"a": torch.arange(20_000_000.0)}}, overwrite=False)  # read in threads
    content, digest = reading.read_identified(tmp_path / "x.pt")
    assert digest == file_sha256(tmp_path / "x.pt")
    assert torch.equal(content["model"]["a"], torch.arange(20_000_000.0))
