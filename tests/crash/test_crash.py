"""The tool for kill runs: which faults it notices, and a short run of some commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.crash import session
from tests.crash.comparing import content, differences
from tests.crash.running import FullDisk, Kill, run
from tests.crash.scenarios import SCENARIOS, Scenario
from tests.crash.session import crash, table
from tests.helpers.forks import ForkServer, fork_server

#: Writes ten files in half a second; ``{}`` is what it does with one that is there.
_WRITER = """
import os, time
for i in range(10):
    if os.path.exists(f"{i}.txt"): KEEP
    with open(f"{i}.txt.tmp", "w") as file:
        file.write("x" * 100 * (i + 1))
    time.sleep(0.05)
    os.replace(f"{i}.txt.tmp", f"{i}.txt")
"""


def scripted(text: str, ended: str = "") -> Scenario:
    return Scenario(lambda directory: None, ("-c", text), ended)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "train",
        "cache",
        "online",
        "both",
        "shown",
        "share_body",
        "images",
        "many",
        "tune",
        "collect",
        "import",
        "from-run",
        "targets",
    ],
)
def test_command_killed_at_random_moments_ends_as_undisturbed(tmp_path: Path, name: str, forks: ForkServer) -> None:
    (tally,) = crash(forks, [name], kills=2, seed=1, root=tmp_path)
    assert tally.problems == []
    assert tally.kills == 2


@pytest.mark.parametrize(
    ("keep", "problem"),
    [
        ("continue", ""),
        ("open('again', 'w').close()", "again is left over"),
        ("raise SystemExit(2)", "code 2 when it was to go on"),
        ("open(f'{i}.txt', 'a').write('y') and exit()", "differs"),
    ],
)
def test_crash_notices_commands_that_do_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: ForkServer, keep: str, problem: str
) -> None:
    """A command that loses, repeats or spoils its work after a kill is told from one that goes on."""
    monkeypatch.setitem(SCENARIOS, "writer", scripted(_WRITER.replace("KEEP", keep)))
    monkeypatch.setattr(session, "_FULL_DISKS", 0)
    (tally,) = crash(forks, ["writer"], kills=2, seed=3, root=tmp_path)
    assert tally.kills == 2
    assert bool(tally.problems) == bool(problem)
    assert problem in " ".join(tally.problems)


def test_crash_kills_each_command_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: ForkServer) -> None:
    for name in ("one", "two"):
        monkeypatch.setitem(SCENARIOS, name, scripted(_WRITER.replace("KEEP", "continue")))
    monkeypatch.setattr(session, "_FULL_DISKS", 0)
    assert [tally.kills for tally in crash(forks, ["one", "two"], 2, 3, tmp_path, each=True)] == [2, 2]


def test_crash_takes_a_refusal_for_the_end_only_where_that_is_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: ForkServer
) -> None:
    text = "import os, sys\nif os.path.exists('out'): print('out exists'); sys.exit(2)\nopen('out', 'w').write('x')"
    for ended, problems in (("exists", 0), ("", 1)):
        monkeypatch.setitem(SCENARIOS, "writer", scripted(text, ended))
        command = session.Command("writer", tmp_path / (ended or "none"), forks)
        command._is_good(run(forks, command.scenario.command, command._root / "undisturbed"), [])
        assert len(command.tally.problems) == problems


def test_full_disk_reaches_the_command(tmp_path: Path, forks: ForkServer) -> None:
    outcome = run(forks, ("-c", "with open('x', 'wb') as f: f.write(bytes(5000))"), tmp_path, FullDisk(1000))
    assert outcome.code == 1
    assert "File too large" in outcome.output


def test_killed_command_has_no_code(tmp_path: Path, forks: ForkServer) -> None:
    outcome = run(forks, ("-c", "import time; time.sleep(60)"), tmp_path, Kill(0.2, from_start=True))
    assert outcome.code is None
    assert outcome.seconds < 30


def test_times_are_not_compared(tmp_path: Path) -> None:
    """Times may differ; everything else is compared, tensors bit by bit."""

    def write(directory: Path, seconds: float, weight: float) -> dict[str, Any]:
        directory.mkdir(exist_ok=True)
        (directory / "speed.csv").write_text(f"step,seconds\n1,{seconds}\n")
        (directory / "train.log").write_text(f"{seconds}")
        torch.save({"wall_seconds": seconds, "weights": {"a": torch.tensor([weight])}}, directory / "state.pt")
        return content(directory)

    first = write(tmp_path / "a", 1.0, 0.0)
    assert sorted(first) == ["speed.csv", "state.pt"]
    assert differences(first, write(tmp_path / "b", 2.0, 0.0)) == []
    assert differences(first, write(tmp_path / "b", 1.0, -0.0)) == ["state.pt differs"]
    assert differences(first, {}) == ["speed.csv is missing", "state.pt is missing"]


def test_table_adds_up() -> None:
    tallies = [session.Tally("train", 3, 1, 4, 2), session.Tally("report", 2, problems=["x"])]
    lines = table(tallies).splitlines()
    assert lines[-1].split() == ["all", "5", "1", "4", "2", "1"]
    assert [line.split()[0] for line in lines] == ["command", "train", "report", "all"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process does not learn that its parent has ended")
def test_job_of_a_server_that_is_killed_ends_with_it(tmp_path: Path) -> None:
    """Two jobs of killed servers used to compute for an hour beside everything that was timed."""
    with pytest.raises(AssertionError), fork_server() as server:  # noqa: PT012 - it is the end of the context that raises
        job = server.start(["-c", "import time; print('at work', flush=True); time.sleep(600)"], tmp_path)
        job.wait_for("at work")
        process = psutil.Process(job.pid)
        server._process.kill()
        psutil.wait_procs([process], 30)
        ended = not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        if not ended:
            process.kill()
    assert ended
