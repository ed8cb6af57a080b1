"""A bit that flips anywhere in a file of numbers is noticed, or changes nothing that is read."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import Config
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.tools.verify import verify
from tdmpc2.training.online import train_online
from tdmpc2.training.saved_replay import replay_to_store
from tdmpc2.training.state_file import read_state
from tests.helpers.data import ALL, SPECS
from tests.helpers.data_command import episodes, write_store
from tests.helpers.online import config
from tests.helpers.stores import make_chunks
from tests.helpers.toy_envs import FALLS
from tests.helpers.unequal import LENGTHS, TASKS, TERMINATED, index_of, write_parts

_FLIPS = 60


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Train a run whose environment terminates, with a replay buffer beside its state."""
    cfg = config(tmp_path_factory.mktemp("played"), FALLS, episodic=True, steps=30)
    train_online(cfg, None)
    return cfg


def _equal_chunks(root: Path, _: Config) -> Path:
    return make_chunks(root / "data", [[0, 1, 2]])


def _unequal_chunks(root: Path, _: Config) -> Path:
    (root / "data").mkdir()
    return write_parts(root / "data", index_of(LENGTHS, TERMINATED, TASKS), cut=len(TASKS))


def _stored(make: Callable[[Path, Config], Path]) -> Callable[[Path, Config], Path]:
    def write(root: Path, cfg: Config) -> Path:
        chunks = make(root, cfg)
        return import_episodes([chunks], root / "store", "three", SPECS, block=2, quiet=True).path

    return write


def _good_store(root: Path, _: Config) -> Path:
    return write_store(root / "store", episodes())


def _played_store(root: Path, cfg: Config) -> Path:
    return replay_to_store(cfg.run_dir, root / "store", quiet=True).path


def _run(root: Path, cfg: Config) -> Path:
    return Path(shutil.copytree(cfg.run_dir, root / "run"))


def _plain(value: Any) -> Any:
    """Turn values into ones that can be compared, even where they are NaN."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.contiguous().flatten().view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _chunks(data: Path, _: Config) -> Any:
    dataset = EpisodeDataset.load(data, SPECS, ALL)
    return _plain([dataset.obs, dataset.action, dataset.reward, dataset.task])


def _store(data: Path, _: Config) -> Any:
    store = EpisodeStore.open(data)
    dataset = EpisodeDataset.read(store, torch.arange(store.meta.episodes))
    index = store.index
    return _plain([dataset.obs, dataset.reward, index.task, index.lengths, index.terminated])


def _verified(data: Path, _: Config) -> Any:
    """Verify the data and return all bytes, since verify has to notice each flipped bit."""
    if problems := verify(data).problems:
        raise ValueError(problems[0])
    return [path.read_bytes() for path in sorted(data.glob("*.npy"))]


def _replay(run: Path, _: Config) -> Any:
    out = run.with_name("out")
    shutil.rmtree(out, ignore_errors=True)
    return (replay_to_store(run, out, quiet=True).path / "rows.npy").read_bytes()


def _state(run: Path, cfg: Config) -> Any:
    return _plain(tuple(read_state(run / "state.pt", TDMPC2(cfg))))


def _model(run: Path, _: Config) -> Any:
    return _plain(load_file(run / "model.pt").model)


CASES: dict[str, tuple[Callable[[Path, Config], Path], tuple[str, ...], Callable[[Path, Config], Any]]] = {
    "chunks": (_equal_chunks, ("*.pt",), _chunks),
    "chunks of unequal lengths": (_unequal_chunks, ("*.pt",), _chunks),
    "store": (_stored(_equal_chunks), ("*.npy",), _store),
    "store of unequal lengths": (_stored(_unequal_chunks), ("*.npy",), _store),
    "verified store": (_good_store, ("*.npy",), _verified),
    "verified store of unequal lengths": (_played_store, ("*.npy",), _verified),
    "replay buffer": (_run, ("replay/*.pt", "state.pt"), _replay),
    "training state": (_run, ("state.pt",), _state),
    "checkpoint": (_run, ("model.pt",), _model),
}


@pytest.mark.parametrize("case", CASES)
def test_flipped_bit_is_noticed_or_changes_nothing(case: str, played: Config, tmp_path: Path) -> None:
    """Bits may flip in headers and directories of archives as well as in numbers."""
    make, patterns, read = CASES[case]
    data = make(tmp_path, played)
    whole = read(data, played)
    draw, noticed = random.Random(case), 0
    files = sorted(path for pattern in patterns for path in data.glob(pattern))
    for _ in range(_FLIPS):
        path = draw.choice(files)
        content = path.read_bytes()
        place = draw.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        try:
            found, said = read(data, played), ""
        except ValueError as error:
            found, said = None, str(error)
        assert path.name in said if said else found == whole, f"byte {place} of {path.name}: {said}"
        noticed += bool(said)
        path.write_bytes(content)
    assert noticed > _FLIPS / 4
