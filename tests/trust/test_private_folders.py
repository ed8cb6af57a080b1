"""No code is loaded that another user could have put there."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from filelock import FileLock

from tdmpc2.acceleration import compile_cache, compiled_update
from tdmpc2.acceleration.unfinished import delete_unfinished
from tdmpc2.support import programs, runtime
from tdmpc2.support.places import cache_dir
from tdmpc2.support.private_folder import foreign_entry, make_private, why_not_private
from tests.trust.conftest import NOBODY

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="users and modes are those of POSIX")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="builds a small library with g++")
Give = Callable[[Path], None]

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


# -- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in compile_cache.VARIABLES:
        monkeypatch.setenv(name, "")  # remembered, to be put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(compile_cache, "_move_headers", lambda folder: None)
    monkeypatch.setattr(compile_cache, "_PREPARED", set())


def test_compile_cache_lies_in_the_users_own_cache(cache_home: Path, variables: None) -> None:
    """By default torch takes a name in /tmp that anybody can make first."""
    compile_cache.use_private_cache()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder == cache_home / "tdmpc2" / "torchinductor"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_compile_cache_is_looked_through_once(
    cache_home: Path, variables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of thousands of files was walked for every function that was compiled."""
    walks: list[Path] = []
    monkeypatch.setattr(compile_cache, "foreign_entry", lambda folder: walks.append(folder) or "")
    for _ in range(3):
        compile_cache.use_private_cache()
    assert walks == [cache_home / "tdmpc2" / "torchinductor"]


def test_compile_cache_that_torch_named_is_not_taken_for_the_users(cache_home: Path, variables: None) -> None:
    """torch sets its variable to the folder in /tmp as soon as its compiler is imported, and that was obeyed."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == os.environ["TORCHINDUCTOR_CACHE_DIR"]
    compile_cache.use_private_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache_home / "tdmpc2" / "torchinductor")


@pytest.mark.parametrize("left", [slice(0), slice(100), slice(-1), None], ids=["empty", "begun", "cut", "no header"])
def test_library_that_a_kill_left_unfinished_is_compiled_again(
    cache_home: Path, variables: None, caplog: pytest.LogCaptureFixture, left: slice | None
) -> None:
    """A kill while the linker wrote left an empty library, or one that begins with zeros; neither can be loaded."""
    whole = (Path(torch.__file__).parent / "lib" / "libtorch_global_deps.so").read_bytes()
    folder = compile_cache.compile_cache() / "ab"
    folder.mkdir(parents=True)
    good, bad = folder / "cabc.main.so", folder / "cabd.main.so"
    good.write_bytes(whole)
    bad.write_bytes(bytes(64) + whole[64:] if left is None else whole[left])
    cache_home.chmod(0o700)
    compile_cache.use_private_cache()
    assert good.exists()
    assert not bad.exists()
    assert f"Deleted {bad}" in caplog.text


def test_library_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    """Another process links it at this moment: it holds torch's lock."""
    library = tmp_path / "ab" / "cabc.main.so"
    library.parent.mkdir()
    library.write_bytes(b"")
    (tmp_path / "locks").mkdir()
    with FileLock(tmp_path / "locks" / "cabc.lock"):
        assert delete_unfinished(tmp_path) == []
    assert delete_unfinished(tmp_path) == [library]


@pytest.mark.parametrize(("mode", "refused"), [(0o644, False), (0o664, False), (0o666, True), (0o646, True)])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_entry_of_a_cache_that_others_can_write_to_is_found(
    tmp_path: Path, kind: str, mode: int, refused: bool
) -> None:
    """Files of mode 0666 in a folder of the right mode passed; group-writable ones are fine in one's own group."""
    entry = tmp_path / "cache" / "entry"
    entry.parent.mkdir(mode=0o700)
    entry.write_text("code") if kind == "file" else entry.mkdir()
    entry.chmod(mode | (0o111 if kind == "folder" else 0))
    assert bool(foreign_entry(entry.parent)) == refused


def test_entry_of_a_cache_that_another_group_can_write_to_is_found(tmp_path: Path, foreign: Give) -> None:
    entry = tmp_path / "cache" / "entry"
    entry.parent.mkdir(mode=0o700)
    entry.write_text("code")
    os.chown(entry, os.geteuid(), NOBODY)
    entry.chmod(0o664)
    assert "other users can write to" in foreign_entry(entry.parent)


@pytest.mark.parametrize("name", compile_cache.VARIABLES)
@pytest.mark.parametrize("attack", ["folder", "entry", "mode"])
def test_compile_cache_that_others_can_change_is_not_used(
    cache_home: Path, tmp_path: Path, variables: None, monkeypatch: pytest.MonkeyPatch, foreign: Give,
    caplog: pytest.LogCaptureFixture, name: str, attack: str,
) -> None:  # fmt: skip
    """Pickles that another user put into the cache were executed at the second compilation."""
    shared = tmp_path / "shared"
    (shared / "fxgraph").mkdir(parents=True, mode=0o700)
    shared.chmod(0o777 if attack == "mode" else 0o700)
    if attack != "mode":
        foreign(shared if attack == "folder" else shared / "fxgraph")
    monkeypatch.setenv(name, str(shared))
    compile_cache.use_private_cache()
    used = Path(os.environ[name])
    assert used != shared
    assert why_not_private(used) == ""
    assert f"{name}={shared}: torch.compile keeps nothing after this process" in caplog.text


def test_compile_cache_named_by_the_user_is_used(
    tmp_path: Path, cache_home: Path, variables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    compile_cache.use_private_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "mine")


def test_compile_cache_holds_the_compiled_headers_too(cache_home: Path) -> None:
    """torch keeps them in the temporary directory whatever its variable says."""
    from torch._inductor import codecache

    before = codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR
    try:
        compile_cache._move_headers(cache_home)
        assert codecache._HEADER_DIR.startswith(str(cache_home))
    finally:
        codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR = before


# -- broken compilers -------------------------------------------------------------------------------------------------


def compiler(folder: Path, body: str) -> str:
    """A compiler that answers --version and then does this."""
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\n{body}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "body", ["exit 1", "kill -SEGV $$", "exit 0", 'for last; do :; done; echo garbage > "$last"', "sleep 600"]
)
def test_compiler_that_does_not_work_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Evaluations ended in a traceback of torch's where the compiler was there and broken."""
    monkeypatch.setattr(runtime, "_COMPILER_SECONDS", 0.5)
    monkeypatch.setenv("CXX", compiler(tmp_path, body))
    assert not runtime.has_cpp_compiler()


@needs_compiler
def test_compiler_that_works_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setattr(Path, "exists", lambda self: True)  # Python's headers, which are not the question here
    assert runtime.has_cpp_compiler()


def test_compilation_that_fails_goes_on_plainly_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: object, **_: object) -> Callable[..., object]:
        def fails(*_: object) -> object:
            raise RuntimeError("No working C++ compiler found\n and more")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(compiled_update, "use_private_cache", lambda: None)

    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    fast = compiled_update.compiled_or_plain(double, "planning")
    with caplog.at_level(logging.WARNING, "tdmpc2"):
        assert [fast(torch.ones(1)).item() for _ in range(3)] == [2, 2, 2]
    assert caplog.messages == [
        "The compiler failed (RuntimeError: No working C++ compiler found): planning without compilation"
    ]
