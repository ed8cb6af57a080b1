"""Checkpoint files that cannot be used: missing, truncated, malicious, of another kind."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdmpc2.checkpoints.files import FORMAT, load_file, save_file


def test_load_file_of_missing_file_names_the_nearest(tmp_path: Path) -> None:
    save_file(tmp_path / "student_fp16.pt", {"step": 1}, overwrite=False)
    with pytest.raises(ValueError, match=r"student_fp61\.pt does not exist\. Did you mean 'student_fp16\.pt'\?"):
        load_file(tmp_path / "student_fp61.pt")
    with pytest.raises(ValueError, match="nor does its directory"):
        load_file(tmp_path / "elsewhere" / "x.pt")
    with pytest.raises(ValueError, match="is a directory"):
        load_file(tmp_path)


def test_load_file_of_truncated_file_keeps_the_cause(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(tmp_path / "x.pt", {"model": state}, overwrite=False)
    content = (tmp_path / "x.pt").read_bytes()
    cut = tmp_path / "cut.pt"
    for size in (0, 1, 2, 4, 100, len(content) // 4, len(content) // 2, len(content) - 1000, len(content) - 1):
        cut.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"cut\.pt .*(truncated|damaged)") as error:
            load_file(cut)
        assert error.value.__cause__ is not None
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"hello world\n" * 10, b"{}", b"\x80" * 100, b"PK\x03\x04" + b"x" * 100])
def test_load_file_of_other_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pt .*(not a checkpoint|damaged)"):
        load_file(tmp_path / "x.pt")


class Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def _write_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _write_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [torch.save, _write_legacy, _write_pickle])
@pytest.mark.parametrize("inside", [True, False])
def test_load_file_of_malicious_pickle_is_refused(tmp_path: Path, write: Any, inside: bool) -> None:
    mark = tmp_path / "was run"
    path = tmp_path / "evil.pt"
    write({"model": {"a": torch.zeros(1)}, "config": Touch(mark)} if inside else Touch(mark), path)
    with pytest.raises(ValueError, match=r"evil\.pt was refused: .*Nothing in it was executed") as error:
        load_file(path)
    if write is not _write_pickle:
        assert "'posix.system', which is not a tensor" in str(error.value)
    assert not mark.exists()
    torch.load(path, weights_only=False) if write is not _write_pickle else pickle.loads(path.read_bytes())
    assert mark.exists()  # read without checks, the file does what it was refused for


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": FORMAT + 1, "model": {"a": torch.zeros(1)}}, f"has format {FORMAT + 1}, .* up to {FORMAT}: update"),
        ({"format": "1", "model": {"a": torch.zeros(1)}}, "has format 1"),
        ({"weights": [1, 2], "epoch": 3}, r"holds no weights \(found weights, epoch\)"),
        ({"model": {"a": 1}}, r"holds no weights \(found a\)"),
        ({}, r"holds no weights \(found nothing\)"),
        (torch.zeros(3), "holds a Tensor, not a dict"),
        ({"model": {"a": torch.zeros(1)}, "config": "mt30"}, "'config' must be a dict"),
        ({"model": {"a": torch.zeros(1)}, "step": 1.5}, "'step' an integer"),
        (
            {"model": {"a": torch.zeros(1), "b": torch.tensor([1.0, float("nan"), float("inf")])}},
            "'b' has 2 values that are not finite",
        ),
        ({"model": {"a.scale": torch.tensor(float("inf")).half()}}, "'a.scale' has 1 values"),
    ],
)
def test_load_file_with_unusable_content_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x\.pt.* {message}"):
        load_file(tmp_path / "x.pt")
