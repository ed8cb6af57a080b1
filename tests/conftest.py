"""Fixtures for all tests: recorded numbers, a tiny model, a little data and a run on it."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tdmpc2.config import Config
from tests.helpers.agents import small_config
from tests.helpers.forks import ForkServer, fork_server
from tests.helpers.reference import load_golden
from tests.helpers.runs import TASKS, TINY


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow-files-first", action="store_true", help="begin with the files that have slow tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run files with many slow tests first if --slow-files-first is given, so that none is left for the end."""
    if config.getoption("--slow-files-first"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])  # stable: files without slow tests keep their order


@pytest.fixture(scope="session", autouse=True)
def _signals() -> None:
    """Restore the default handlers, which background shells and nohup replace, so that signals end what is tested."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Start every test with one thread, whatever an earlier test in this process has set."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _renderer_as_before() -> Iterator[None]:
    """Fail a test that leaves another OpenGL backend chosen, with which later tests of this process could not draw."""
    chosen = os.environ.get("MUJOCO_GL")
    yield
    assert os.environ.get("MUJOCO_GL") == chosen, "the test or what it called has left MUJOCO_GL changed"


@pytest.fixture
def without_meta_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Meta-World look as if it were not installed."""
    monkeypatch.setattr("tdmpc2.envs.registry.find_spec", lambda name: None if name == "metaworld" else find_spec(name))


@pytest.fixture(autouse=True)
def _own_console(_renderer_as_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset Rich's shared console, which remembers whether the first test that used it ran on a terminal."""
    monkeypatch.setattr("rich._console", None)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, torch.Tensor]]:
    return load_golden


@pytest.fixture(scope="session")
def published() -> dict[str, torch.Tensor]:
    """Load the published student's weights in float32, in layout (a)."""
    return {name: tensor.float() for name, tensor in load_golden("weights.npz").items()}


@pytest.fixture
def tiny_cfg() -> Config:
    return small_config()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collect three random episodes of each task."""
    from tdmpc2.play.collector import collect

    path = tmp_path_factory.mktemp("data")
    collect(Config(tasks=TASKS, episodes_per_task=3), None, path)
    return path


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """Return a server that runs commands in processes of their own, which start at once."""
    with fork_server() as server:
        yield server


@pytest.fixture
def cfg(data_dir: Path, tmp_path: Path) -> Config:
    """Configure a run of 20 steps on the data of ``data_dir``."""
    return Config(data_dir=str(data_dir), work_dir=str(tmp_path / "run"), **TINY)


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in a folder of the test's own and check that nothing was written to it."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    assert not list((tmp_path / "cwd").iterdir())
