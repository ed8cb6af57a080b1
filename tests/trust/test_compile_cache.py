"""The cache of torch.compile: nothing of another user and nothing unfinished is taken from it."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tdmpc2.acceleration import compile_cache, compiled_update
from tdmpc2.acceleration.unfinished import delete_unfinished
from tdmpc2.support import runtime
from tdmpc2.support.private_folder import foreign_entry, why_not_private
from tests.trust.conftest import NOBODY, Give, compiler, needs_compiler

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="users and modes are those of POSIX")


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in compile_cache.VARIABLES:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    monkeypatch.setattr(compile_cache, "_move_headers", lambda folder: None)
    monkeypatch.setattr(compile_cache, "_PREPARED", set())


def test_compile_cache_lies_in_the_users_own_cache(cache_home: Path, variables: None) -> None:
    """By default torch uses a name in /tmp that anybody can create first."""
    compile_cache.use_private_cache()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder == cache_home / "tdmpc2" / "torchinductor"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_compile_cache_is_looked_through_once(
    cache_home: Path, variables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of thousands of files used to be walked for every compiled function."""
    walks: list[Path] = []
    monkeypatch.setattr(compile_cache, "foreign_entry", lambda folder: walks.append(folder) or "")
    for _ in range(3):
        compile_cache.use_private_cache()
    assert walks == [cache_home / "tdmpc2" / "torchinductor"]


def test_compile_cache_that_torch_named_is_not_taken_for_the_users(cache_home: Path, variables: None) -> None:
    """torch itself sets the variable to its folder in /tmp, which used to pass for the user's choice."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == os.environ["TORCHINDUCTOR_CACHE_DIR"]
    compile_cache.use_private_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache_home / "tdmpc2" / "torchinductor")


@pytest.mark.parametrize("left", [slice(0), slice(100), slice(-1), None], ids=["empty", "begun", "cut", "no header"])
def test_library_that_a_kill_left_unfinished_is_compiled_again(
    cache_home: Path, variables: None, caplog: pytest.LogCaptureFixture, left: slice | None
) -> None:
    """A kill during linking leaves an empty library or one that begins with zeros; neither can be loaded."""
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
    """Another process that links the library at this moment holds torch's lock."""
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
    """World-writable files in a private folder used to pass; group-writable ones of one's own group are fine."""
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
    """Pickles that another user put into the cache used to be executed at the second compilation."""
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
    """torch keeps compiled headers in the temporary directory, whatever its variable says."""
    from torch._inductor import codecache

    before = codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR
    try:
        compile_cache._move_headers(cache_home)
        assert codecache._HEADER_DIR.startswith(str(cache_home))
    finally:
        codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR = before


# -- broken compilers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", ["exit 1", "kill -SEGV $$", "exit 0", 'for last; do :; done; echo garbage > "$last"', "sleep 600"]
)
def test_compiler_that_does_not_work_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A compiler that exists but is broken used to end evaluations in a traceback of torch."""
    monkeypatch.setattr(runtime, "_COMPILER_SECONDS", 0.5)
    monkeypatch.setenv("CXX", compiler(tmp_path, body))
    assert not runtime.has_cpp_compiler()


@needs_compiler
def test_compiler_that_works_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setattr(Path, "exists", lambda self: True)  # as if Python's headers were there
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
    own = [record.getMessage() for record in caplog.records if record.name.startswith("tdmpc2")]
    assert own == ["The compiler failed (RuntimeError: No working C++ compiler found): planning without compilation"]
