"""Replacing files: whatever happens, either the old file or the complete new one is there, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from pathlib import Path

import pytest

from tdmpc2.support.files import json_text, replacing, write_text
from tests.helpers.disks import largest_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write a file alone in its directory."""
    (tmp_path / "x.txt").write_text("old")
    return tmp_path / "x.txt"


def alone(path: Path, content: str) -> bool:
    return path.read_text() == content and os.listdir(path.parent) == [path.name]


def test_replacing_makes_file_appear_when_block_ends(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent  # on the same file system, for an atomic rename
        assert path.read_text() == "old"
    assert alone(path, "new")


def test_replacing_makes_directories_and_expands_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_text("~/a/b/x.txt", "α\n")
    assert alone(tmp_path / "a" / "b" / "x.txt", "α\n")


@pytest.mark.parametrize("kind", [KeyError, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("written", [True, False])
def test_replacing_with_error_leaves_old_file(path: Path, kind: type[BaseException], written: bool) -> None:
    def fail() -> None:
        with replacing(path) as temporary:
            if written:
                temporary.write_text("half")
            raise kind("stop")

    with pytest.raises(kind, match="stop"):
        fail()
    assert alone(path, "old")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("No space left on device")])
def test_replacing_passes_on_errors_of_the_disk(path: Path, error: Exception) -> None:
    with pytest.raises(ValueError, match=rf"Could not write {path}: .*No space left.*is unchanged"), replacing(path):
        raise error
    assert alone(path, "old")


def test_replacing_without_written_file_is_an_error(path: Path) -> None:
    with pytest.raises(ValueError, match=f"Could not write {path}"), replacing(path):
        pass
    assert alone(path, "old")


def test_replacing_on_full_disk_leaves_old_file(path: Path) -> None:
    with pytest.raises(ValueError, match=f"Could not write {path}: .*File too large"), largest_file(8192):
        write_text(path, "new" * 10_000)
    assert alone(path, "old")


def test_replacing_existing_file_without_overwrite_is_refused(path: Path) -> None:
    begun = False
    with pytest.raises(ValueError, match=f"{path} exists: choose another name"), replacing(path, overwrite=False):
        begun = True
    assert not begun
    assert alone(path, "old")


def test_replacing_keeps_file_that_appeared_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"

    def race() -> None:
        with replacing(path, overwrite=False) as temporary:
            temporary.write_text("ours")
            path.write_text("theirs")

    with pytest.raises(ValueError, match="exists"):
        race()
    assert alone(path, "theirs")


def test_replacing_a_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.mkdir()
    with pytest.raises(ValueError, match=f"Could not write {path}"):
        write_text(path, "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.txt"]


def test_replacing_does_not_follow_a_link_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="exists"), replacing(path, overwrite=False):
        raise AssertionError
    assert path.is_symlink()


def test_replacing_keeps_the_one_of_two_writers_that_was_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking first and renaming then left a moment in which another's file was lost."""
    path, link = tmp_path / "x.txt", os.link

    def race(source: Path, target: Path) -> None:
        path.write_text("theirs")
        link(source, target)

    monkeypatch.setattr(os, "link", race)
    with pytest.raises(ValueError, match="exists"), replacing(path, overwrite=False) as temporary:
        temporary.write_text("ours")
    assert alone(path, "theirs")


def test_replacing_without_second_names_still_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):
        with contextlib.suppress(ValueError), replacing(tmp_path / "x.txt", overwrite=False) as temporary:
            temporary.write_text("new")
    assert alone(tmp_path / "x.txt", "new")


def test_replacing_keeps_a_private_file_private(path: Path) -> None:
    path.chmod(0o600)
    write_text(path, "new")
    assert path.stat().st_mode & 0o777 == 0o600


def test_replaced_link_has_permissions_of_its_own(tmp_path: Path) -> None:
    """Those of a link are all that there are, and mean nothing."""
    (tmp_path / "there").write_text("theirs")
    for number, target in enumerate(("there", "nowhere")):
        (link := tmp_path / f"link{number}").symlink_to(tmp_path / target)
        write_text(link, "new")
        assert not link.is_symlink()
        assert link.stat().st_mode & 0o022 == 0
    assert (tmp_path / "there").read_text() == "theirs"


def test_private_file_is_private_while_it_is_written(path: Path) -> None:
    path.chmod(0o600)
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.stat().st_mode & 0o077 == 0


def test_json_has_no_numbers_that_are_not_finite() -> None:
    content = {"a": [1.5, math.inf], "b": (math.nan, None)}
    assert json.loads(json_text(content)) == {"a": [1.5, None], "b": [None, None]}
    assert json.loads(json_text(content, instead=str)) == {"a": [1.5, "inf"], "b": ["nan", None]}
