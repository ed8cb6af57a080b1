"""Code is never loaded from a place that another user could have written to."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tdmpc2.support import programs
from tdmpc2.support.places import cache_dir
from tdmpc2.support.private_folder import make_private, why_not_private
from tests.trust.conftest import Give

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="users and modes are those of POSIX")

# -- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022])
def test_private_folder_made_is_the_users_alone_whatever_the_umask(cache_home: Path, mask: int) -> None:
    """Under umask 002 or 000, others used to be able to write to the cache."""
    before = os.umask(mask)
    try:
        assert make_private(cache_home / "a" / "b") == ""
    finally:
        os.umask(before)
    assert [stat.S_IMODE((cache_home / name).stat().st_mode) for name in ("a", "a/b")] == [0o700, 0o700]


def _open_to_all(folder: Path, give: Give) -> None:
    folder.chmod(0o777)


def _open_to_group(folder: Path, give: Give) -> None:
    folder.chmod(0o770)


def _of_another(folder: Path, give: Give) -> None:
    give(folder)


def _a_link(folder: Path, give: Give) -> None:
    folder.rename(folder.with_name("real"))
    folder.symlink_to(folder.with_name("real"))


def _parent_open(folder: Path, give: Give) -> None:
    folder.parent.chmod(0o777)


def _parent_of_another(folder: Path, give: Give) -> None:
    give(folder.parent)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (_open_to_all, "other users can write"),
        (_open_to_group, "other users can write"),
        (_of_another, "belongs to another user"),
        (_a_link, "is a link"),
        (_parent_open, "other users can write"),
        (_parent_of_another, "belongs to another user"),
    ],
)
def test_private_folder_that_others_can_change_is_refused(
    cache_home: Path, foreign: Give, attack: Callable[[Path, Give], None], reason: str
) -> None:
    """Refused are shared cache folders, folders that somebody else made first, and links to others' folders."""
    folder = cache_home / "tdmpc2"
    folder.mkdir(mode=0o700)
    attack(folder, foreign)
    assert reason in make_private(folder)


def test_private_folder_in_a_sticky_directory_is_good(cache_home: Path) -> None:
    """In a sticky directory such as /tmp, others can make files but cannot rename ours."""
    cache_home.chmod(0o1777)
    assert make_private(cache_home / "tdmpc2") == ""


def test_private_folder_reached_through_a_link_above_it_is_good(cache_home: Path, tmp_path: Path) -> None:
    """Home directories are links on many machines."""
    (tmp_path / "home").symlink_to(cache_home)
    assert make_private(tmp_path / "home" / "tdmpc2") == ""
    assert why_not_private(tmp_path / "home") != ""


@pytest.mark.parametrize("value", ["", "relative/cache", "."])
def test_cache_dir_ignores_a_relative_path(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A relative path would give every working directory its own cache, even where others can write."""
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_dir() == Path.home() / ".cache" / "tdmpc2"


# -- helper programs --------------------------------------------------------------------------------------------------


def gone(pid: int) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:  # no parent has collected its exit status
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_program_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    script = f"sleep 600 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(RuntimeError, match=r"sh took more than 0\.5 s"):
        programs.run_program(["sh", "-c", script], 0.5)
    assert gone(int((tmp_path / "pid").read_text()))


def test_program_ends_with_the_process_that_runs_it(tmp_path: Path) -> None:
    """SIGKILL during a build used to leave the compiler running."""
    code = textwrap.dedent(f"""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("programs", {programs.__file__!r})
        module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
        module.run_program(["sh", "-c", "echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; sleep 600"], 600)
    """)
    child = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "pid").exists():
        time.sleep(0.02)
        assert child.poll() is None
    child.kill()
    child.wait()
    assert gone(int((tmp_path / "pid").read_text()))


def test_program_result_has_code_and_output() -> None:
    done = programs.run_program(["sh", "-c", "echo out; echo err >&2; exit 3"], 20)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
