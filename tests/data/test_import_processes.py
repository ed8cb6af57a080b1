"""Several processes that import the same data."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.data.store.importer import import_episodes
from tdmpc2.data.store.store import EpisodeStore
from tests.helpers.data import SPECS
from tests.helpers.forks import ForkServer, Job
from tests.helpers.reference import REPO
from tests.helpers.stores import TASKS, make_chunks

SLOW_IMPORT = """
import sys, time
from pathlib import Path
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.data.store.parts import Part
from tests.helpers.data import SPECS
root, read = Path(sys.argv[1]), Part.read
def wait(self, episodes):
    (root / "reading").touch()
    while not (root / "go").exists():
        time.sleep(0.01)
    return read(self, episodes)
Part.read = wait
import_episodes([root / "chunks"], root / "out", "three", SPECS, block=2, max_per_task=MAX)
"""


def _slow_import(forks: ForkServer, root: Path, max_per_task: int | None = None) -> Job:
    """Run a process that holds the lock and waits for the file ``go``."""
    process = forks.start(["-c", SLOW_IMPORT.replace("MAX", str(max_per_task)), root], REPO)
    while not (root / "reading").exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_import_in_second_process_waits_for_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reads: list[int], same: bool, forks: ForkServer
) -> None:
    make_chunks(tmp_path / "chunks")
    process = _slow_import(forks, tmp_path, None if same else 1)
    result: list[Any] = []

    def import_too() -> None:
        try:
            result.append(import_episodes([tmp_path / "chunks"], tmp_path / "out", "three", SPECS, block=2))
        except ValueError as error:
            result.append(error)

    thread = threading.Thread(target=import_too)
    thread.start()
    said = ""
    while "\n" not in said:
        assert thread.is_alive()
        said += capsys.readouterr().out
        time.sleep(0.02)
    assert said == f"Another process is writing {tmp_path}/out: waiting for it\n"
    (tmp_path / "go").touch()
    thread.join(60)
    assert process.wait(60) == 0
    assert reads == []
    if same:
        assert len(result[0].task) == len(TASKS)
    else:  # the other process imported something else
        assert "out exists: name another directory" in str(result[0])
        assert EpisodeStore.open(tmp_path / "out").meta.episodes == 3


@pytest.mark.slow
def test_import_killed_holds_no_lock(tmp_path: Path, forks: ForkServer) -> None:
    make_chunks(tmp_path / "chunks")
    process = _slow_import(forks, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert (tmp_path / ".out.partial").exists()
    assert len(import_episodes([tmp_path / "chunks"], tmp_path / "out", "three", SPECS).task) == len(TASKS)
    assert not (tmp_path / ".out.partial").exists()
