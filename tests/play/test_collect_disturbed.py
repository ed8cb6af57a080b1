"""Collecting on full disks, in two processes at once, and after kills."""

from __future__ import annotations

import shutil
import signal
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tdmpc2.config import Config
from tdmpc2.play.collector import collect
from tests.helpers.disks import largest_file
from tests.helpers.forks import ForkServer, Job
from tests.helpers.playing import chunks, toy
from tests.helpers.reference import REPO

# Disks


def test_collect_on_small_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Config(tasks=("cup-spin", "pendulum-spin"), episodes_per_task=100)
    needed = 2 * 100 * 501 * 128  # bytes of the values
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, needed))
    with pytest.raises(ValueError, match=r"needs 12\.. MB more and its disk has 12\.. MB free"):
        collect(cfg, None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["collect.lock"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 20_000))
    collect(toy(), None, tmp_path)
    (tmp_path / "chunk_2.pt").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 0))
    with pytest.raises(ValueError, match=r"needs .* more and its disk has 0 bytes free"):  # existing files need no room
        collect(toy(), None, tmp_path)


def test_collect_on_full_disk_loses_no_file(tmp_path: Path) -> None:
    """A file that does not fit on the disk ends the collection, and all earlier files stay."""
    cfg = Config(tasks=("pendulum-spin",), episodes_per_task=3, episodes_per_file=1)
    good = collect(cfg, None, tmp_path / "good")
    size = good[0].stat().st_size
    monster = cfg.replace(seed=2, episodes_per_task=2, episodes_per_file=2)
    before = chunks(tmp_path / "good")
    with largest_file(size + 1000), pytest.raises(ValueError, match=r"Could not write .*chunk_3.pt.*unchanged"):
        collect(monster, None, tmp_path / "good")
    assert chunks(tmp_path / "good") == before
    assert not list((tmp_path / "good").glob(".*"))
    assert collect(monster, None, tmp_path / "good")[0].name == "chunk_3.pt"


def test_collect_into_readonly_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"Could not write .*collect.lock"):
        collect(toy(), None, tmp_path / "file" / "data")


# Processes


COMMAND = "collect.py tasks=[pendulum-spin,cup-spin] episodes_per_task=40 episodes_per_file=2 data_dir=data"


@pytest.fixture
def running(tmp_path: Path, forks: ForkServer) -> Iterator[Job]:
    """Start a collection and wait until at least one file is done."""
    script, *arguments = COMMAND.split()
    process = forks.start([REPO / script, *arguments], tmp_path)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "data").glob("chunk_*.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_collect_twice_at_once_is_refused(running: Job, tmp_path: Path) -> None:
    cfg = Config(tasks=("pendulum-spin", "cup-spin"), episodes_per_task=40, episodes_per_file=2)
    with pytest.raises(ValueError, match=r"data: another process is collecting these episodes .*chunk_0.pt"):
        collect(cfg, None, tmp_path / "data")
    other = collect(cfg.replace(seed=2, episodes_per_task=1), None, tmp_path / "data")
    assert [path.name for path in other] == ["chunk_40.pt", "chunk_41.pt"]
    assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.wait()
    with FileLock(tmp_path / "data" / "collect_0.lock", timeout=0):
        pass  # the lock is free
    assert len(chunks(tmp_path / "data")) < 42


def test_collect_removes_leftovers_of_a_kill(tmp_path: Path) -> None:
    paths = collect(toy(), None, tmp_path)
    expected = chunks(tmp_path)
    paths[1].unlink()
    (tmp_path / ".chunk_1.pt.0a0a0a0a.tmp").write_bytes(b"half")
    (tmp_path / ".chunk_11.pt.0a0a0a0a.tmp").write_bytes(b"of another collection")
    (tmp_path / ".collect.json.0a0a0a0a.tmp").write_bytes(b"half")
    collect(toy(), None, tmp_path)
    assert chunks(tmp_path) == expected
    collect(toy(seed=2), None, tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == [".chunk_11.pt.0a0a0a0a.tmp"]
