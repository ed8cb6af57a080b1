"""Leftovers of killed processes, free disk, JSON files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tdmpc2.support.files import (
    check_free_disk,
    delete_leftovers,
    free_disk,
    read_json,
    replacing,
    size_text,
    write_text,
)


def _leave(directory: Path, name: str) -> Path:
    """Leave a temporary file as a kill in the middle of writing ``name`` does."""
    with suppress(KeyboardInterrupt), replacing(directory / name) as temporary:
        raise KeyboardInterrupt
    temporary.write_text("half")
    return temporary


def test_leftovers_of_one_file_are_deleted(tmp_path: Path) -> None:
    mine, other = _leave(tmp_path, "a.pt"), _leave(tmp_path, "b.pt")
    (tmp_path / "a.pt").write_text("whole")
    delete_leftovers(tmp_path, "a.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other.name, "a.pt"])
    assert not mine.exists()


def test_file_with_the_longest_name_is_written_and_its_leftovers_are_deleted(tmp_path: Path) -> None:
    name = "ä" * 126 + ".pt"  # 255 bytes
    write_text(tmp_path / name, "before")
    left = _leave(tmp_path, name), _leave(tmp_path, "ä" * 125 + "..pt")
    write_text(tmp_path / name, "whole")
    delete_leftovers(tmp_path, name)
    assert {path.name for path in tmp_path.iterdir()} == {name, left[1].name}
    assert (tmp_path / name).read_text() == "whole"


def test_leftovers_of_all_files_are_deleted(tmp_path: Path) -> None:
    _leave(tmp_path, "a.pt"), _leave(tmp_path, "b.pt")
    (tmp_path / "notes.tmp").write_text("not ours")
    delete_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.tmp"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells by /proc whether a process has ended")
def test_leftover_of_a_killed_process_is_deleted_by_the_next_one_that_writes_the_file(tmp_path: Path) -> None:
    """Temporary files of living processes, of other machines and of other files are kept."""
    waiting = """
import sys, time
from tdmpc2.support.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    time.sleep(600)
"""
    path = tmp_path / "a[1].txt"
    children = [
        subprocess.Popen([sys.executable, "-c", waiting, str(path)], stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    try:
        names = [child.stdout.readline().strip() for child in children if child.stdout]
        others = [f".a[1].txt.0123abcd-{children[0].pid}-1.0123abcd.tmp", names[0].replace("a[1]", "b")]
        for name in others:
            (tmp_path / name).write_text("half")
        children[0].kill()
        children[0].wait()
        write_text(path, "whole")
        assert {file.name for file in tmp_path.iterdir()} == {path.name, names[1], *others}
    finally:
        for child in children:
            child.kill()
            child.communicate()


def test_free_disk_of_a_directory_to_be_made_is_that_of_its_disk(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "not" / "yet") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def test_small_disk_is_refused_with_sizes_and_advice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x needs 2\.00 GB more and its disk has 12\.5 MB free: make room, or wait\."):
        check_free_disk(tmp_path / "x", 2 * 10**9, "wait", free=12_500_000)
    check_free_disk(tmp_path / "x", 12_500_000, "wait", free=12_500_000)


@pytest.mark.parametrize(
    ("size", "text"), [(900, "900 bytes"), (12_900_000, "12.9 MB"), (43_119_000_000, "43.12 GB"), (0, "0 bytes")]
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize("content", ["[1]", "{", ""])
def test_damaged_json_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_json(tmp_path / "run.json", {})


def test_absent_json_is_the_given_object_or_an_error(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json", {"a": 1}) == {"a": 1}
    with pytest.raises(ValueError, match=r"none\.json does not exist"):
        read_json(tmp_path / "none.json")
