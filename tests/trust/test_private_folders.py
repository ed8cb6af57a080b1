"""No code is loaded that another user could have put there."""

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

from tdmpc2.acceleration.cpu import library
from tdmpc2.support import programs
from tdmpc2.support.places import cache_dir
from tdmpc2.support.private_folder import make_private, why_not_own, why_not_private
from tests.trust.conftest import Give, build_library, compiler, needs_compiler

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="users and modes are those of POSIX")

# -- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022])
def test_private_folder_made_is_the_users_alone_whatever_the_umask(cache_home: Path, mask: int) -> None:
    """Under umask 002 or 000 others of the group, or everybody, could write to the cache."""
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
    """A shared XDG_CACHE_HOME, a folder that somebody made first, a link to somebody's folder."""
    folder = cache_home / "tdmpc2"
    folder.mkdir(mode=0o700)
    attack(folder, foreign)
    assert reason in make_private(folder)


def test_private_folder_in_a_sticky_directory_is_good(cache_home: Path) -> None:
    """As below /tmp: others can make files there and cannot rename ours."""
    cache_home.chmod(0o1777)
    assert make_private(cache_home / "tdmpc2") == ""


def test_private_folder_reached_through_a_link_above_it_is_good(cache_home: Path, tmp_path: Path) -> None:
    """Homes are links on many machines."""
    (tmp_path / "home").symlink_to(cache_home)
    assert make_private(tmp_path / "home" / "tdmpc2") == ""
    assert why_not_private(tmp_path / "home") != ""


@pytest.mark.parametrize("value", ["", "relative/cache", "."])
def test_cache_dir_ignores_a_relative_path(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """It would be another cache in every working directory, also in one that others write to."""
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_dir() == Path.home() / ".cache" / "tdmpc2"


# -- libraries --------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("attack", ["chown", "mode", "link", "hard link"])
def test_library_that_another_user_could_have_written_is_not_loaded(
    cache_home: Path, tmp_path: Path, foreign: Give, attack: str
) -> None:
    canary, path = tmp_path / "canary", cache_home / "lib.so"
    build_library(path, ("run",), canary)
    if attack == "chown":
        foreign(path)
    elif attack == "mode":
        path.chmod(0o777)
    else:
        path.rename(other := tmp_path / "other.so")
        path.symlink_to(other) if attack == "link" else path.hardlink_to(other)
    with pytest.raises(RuntimeError, match=r"another user|other users|not a regular file|second name"):
        library.opened(path, ["run"])
    assert not canary.exists()


@needs_compiler
def test_library_of_the_users_own_is_loaded(cache_home: Path) -> None:
    assert library.opened(build_library(cache_home / "own.so", ("run",)), ["run"]).run() == 7


@needs_compiler
def test_library_without_its_functions_gives_a_reason(cache_home: Path) -> None:
    """A compiler that links an empty library ended in an AttributeError at the first plan."""
    path = build_library(cache_home / "empty.so", ("other",))
    with pytest.raises(RuntimeError, match="has no function run"):
        library.opened(path, ["run"])
    assert not path.exists()


@pytest.fixture
def any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with all instructions, for what comes before the build."""
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset(library._INSTRUCTIONS))


def test_library_in_a_foreign_cache_is_built_for_this_process_alone(
    cache_home: Path, tmp_path: Path, any_cpu: None, foreign: Give, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The case of a planted folder: it is named, nothing in it is touched, and the library is built elsewhere."""
    planted = cache_home / "tdmpc2"
    planted.mkdir(mode=0o777)
    foreign(planted)
    places = []
    monkeypatch.setattr(library, "build", lambda folder, sources: places.append(folder) or folder / "none.so")
    assert "No such file" in library.reason()
    assert places[0] != planted
    assert not places[0].exists()
    assert "belongs to another user" in caplog.text
    assert library.cached_path() is None
    assert not list(planted.iterdir())


@needs_compiler
def test_library_named_by_a_pipe_or_planted_file_is_passed_over(
    cache_home: Path, tmp_path: Path, any_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO in the cache was waited for without end."""
    good = build_library(tmp_path / "good.so", library.FUNCTIONS[library.UPDATE])
    monkeypatch.setenv("CXX", compiler(tmp_path, f'for last; do :; done; cp {good} "$last"'))
    folder = cache_home / "tdmpc2"
    assert make_private(folder) == ""
    first = library.build(folder, library.UPDATE)
    name = first.name
    first.unlink()
    os.mkfifo(folder / f"{name.rpartition('-')[0]}-x.so")
    os.mkfifo(folder / name)
    assert library.build(folder, library.UPDATE).name == name
    assert why_not_own(folder / name) == ""
    assert library.opened(folder / name, library.FUNCTIONS[library.UPDATE]).norm_mish() == 7


def test_library_with_a_compiler_that_hangs_gives_a_reason(
    cache_home: Path, tmp_path: Path, any_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, "sleep 600"))
    monkeypatch.setattr(library, "_run", lambda command, seconds=0.3: programs.run_program(command, seconds).stdout)
    assert "took more than 0.3 s" in library.reason()
    assert not list((cache_home / "tdmpc2").iterdir())


def test_build_abandoned_by_a_kill_is_deleted_when_it_is_old(cache_home: Path) -> None:
    old, new, other = cache_home / "building-old", cache_home / "building-new", cache_home / "mine"
    for folder in (old, new, other):
        folder.mkdir()
        (folder / "built.so").write_text("")
    os.utime(old, (1, 1))
    os.utime(other, (1, 1))
    library.delete_abandoned(cache_home)
    assert sorted(path.name for path in cache_home.iterdir()) == ["building-new", "mine"]


# -- helper programs --------------------------------------------------------------------------------------------------


def gone(pid: int) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:  # where nobody buries what has ended
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
    """SIGKILL during a build left the compiler running."""
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
