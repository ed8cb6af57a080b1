"""Imports to disks that are full or too small."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tdmpc2.data.store.importer import import_episodes
from tests.helpers.data import SPECS
from tests.helpers.disks import largest_file
from tests.helpers.reference import REPO
from tests.helpers.stores import TASKS, content, make_chunks, refused


def test_import_to_small_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_chunks(tmp_path / "chunks")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(tmp_path, r"out needs .* more and its disk has 1,000 bytes free: make room.* Nothing was written")


def test_import_on_disk_refusing_reservation_is_refused(tmp_path: Path) -> None:
    make_chunks(tmp_path / "chunks", [TASKS * 50])
    with largest_file(8192):
        refused(tmp_path, "Could not write .*out: .*File too large.*What was there before is unchanged")


@pytest.mark.parametrize("error", ["AttributeError", "EOPNOTSUPP"])
def test_import_without_fallocate_writes_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    def absent(*_: int) -> None:
        if error == "AttributeError":
            raise AttributeError
        raise OSError(getattr(errno, error), "not supported")

    make_chunks(tmp_path / "chunks", [TASKS * 50])
    expected = import_episodes([tmp_path / "chunks"], tmp_path / "reserved", "three", SPECS).checksum
    monkeypatch.setattr(os, "posix_fallocate", absent)
    assert import_episodes([tmp_path / "chunks"], tmp_path / "zeros", "three", SPECS).checksum == expected
    for name in ("zeros", "reserved"):
        shutil.rmtree(tmp_path / name)
        (tmp_path / f".{name}.lock").unlink()
    with largest_file(8192):
        refused(tmp_path, "Could not write .*out: .*File too large")


FULL_DISK = """
import shutil, sys
from pathlib import Path
from tdmpc2.data.store.importer import import_episodes
from tests.helpers.data import SPECS
root = Path(sys.argv[1])
if sys.argv[2] == "quota":
    much = shutil.disk_usage(root)._replace(free=1 << 40)
    shutil.disk_usage = lambda _: much
import_episodes([root / "small"], root / "disk/finished", "three", SPECS)
before = {path.name: path.read_bytes() for path in (root / "disk/finished").iterdir()}
try:
    import_episodes([root / "large"], root / "disk/out", "three", SPECS)
except ValueError as error:
    print("refused:", error)
assert before == {path.name: path.read_bytes() for path in (root / "disk/finished").iterdir()}
print("left:", sorted(path.name for path in (root / "disk").iterdir()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "message"), [("plain", "more and its disk has "), ("quota", "No space left")])
def test_import_on_full_disk_is_refused_cleanly(tmp_path: Path, kind: str, message: str) -> None:
    """The disk has 256 kB; with ``quota`` the system reports free room, and reserving it fails."""
    namespace = ["unshare", "-rm"]
    mount = "mount -t tmpfs -o size=256k tmpfs"
    (tmp_path / "disk").mkdir()
    trial = shutil.which("unshare") and subprocess.run(
        [*namespace, "sh", "-c", f"{mount} {tmp_path}/disk"], capture_output=True, text=True
    )
    if not trial or trial.returncode:
        pytest.skip(f"cannot mount a small disk: {trial.stderr if trial else 'unshare is not installed'}")
    make_chunks(tmp_path / "small")
    make_chunks(tmp_path / "large", [TASKS * 300])
    before = content(tmp_path / "large")
    command = f'{mount} {tmp_path}/disk && exec "$0" -c "$1" {tmp_path} {kind}'
    done = subprocess.run(
        [*namespace, "sh", "-c", command, sys.executable, FULL_DISK], capture_output=True, text=True, cwd=REPO
    )
    assert done.returncode == 0, done.stderr  # -7 would be a bus error
    assert "refused: " in done.stdout
    assert message in done.stdout
    assert done.stdout.splitlines()[-1] == "left: ['.finished.lock', '.out.lock', 'finished']"
    assert content(tmp_path / "large") == before
