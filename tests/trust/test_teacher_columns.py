"""Cached teacher outputs have check numbers, and damaged ones are computed again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.store.teacher_columns import check_numbers, open_targets
from tdmpc2.data.tools.verify import verify
from tdmpc2.training.teacher_cache import compute_all
from tests.helpers.data import make_store
from tests.helpers.teacher_cache import SHA256, empty


@pytest.fixture(scope="module")
def teacher() -> TDMPC2:
    sizes = {"enc_dim": 8, "mlp_dim": 8, "latent_dim": 8, "task_dim": 4, "num_q": 2, "num_samples": 8}
    return TDMPC2(Config(model_size=None, num_elites=2, num_pi_trajs=2, device="cpu", **sizes))  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path, teacher: TDMPC2) -> EpisodeStore:
    return make_store(tmp_path / "store", teacher.cfg, episodes=3)


def test_check_number_differs_after_any_flipped_bit() -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (2000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    bits[:3] = torch.tensor([0, -1, 1065353216])  # 0, a NaN and 1.0 as floats
    values = bits.view(torch.float32)
    for bit in range(32):
        flipped = (bits ^ torch.tensor(1 << bit).to(torch.int32)).view(torch.float32)
        assert bool((check_numbers(flipped) != check_numbers(values)).all())


def _damage(store: EpisodeStore, name: str, episode: int, row: int, change: float) -> None:
    """Change a number of a column, as a disk or another program might."""
    path = next((store.path / "targets").glob("*/")) / f"{name}.npy"
    column = np.load(path, mmap_mode="r+")
    column[episode, row] += change
    column.flush()


def test_damaged_number_is_noticed_and_computed_again(store: EpisodeStore, teacher: TDMPC2) -> None:
    """A cached reward that changed on the disk used to be distilled as it was."""
    targets = empty(store)
    compute_all(targets, teacher)
    whole = targets.column()
    assert verify(store.path).problems == []
    _damage(store, "reward", 1, 7, 0.25)
    (problem,) = verify(store.path).problems
    assert "reward.npy holds" in problem
    assert "with another one's check number in episode 1, row 7" in problem
    again = empty(store)
    assert not again.complete()
    assert again.missing().tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"reward\.npy is not complete"):
        again.column()
    assert again.take(torch.tensor([501 + 7, 501 + 8])).isnan().tolist() == [True, False]
    compute_all(again, teacher)
    assert torch.equal(again.column()[:, 1:], whole[:, 1:])
    assert verify(store.path).problems == []


def test_column_of_older_version_is_taken_over(store: EpisodeStore, teacher: TDMPC2) -> None:
    """Columns of versions without check numbers are used and not computed again."""
    compute_all(empty(store), teacher)
    targets = empty(store)
    whole = targets.column()
    targets.check_file.unlink()
    assert torch.equal(empty(store).column()[:, 1:], whole[:, 1:])
    assert targets.check_file.exists()


@pytest.mark.parametrize("name", ["meta.json", "reward.npy", "reward.check.npy"])
def test_column_with_named_pipe_in_place_of_a_file_is_refused(store: EpisodeStore, name: str) -> None:
    path = empty(store).path / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{name} is a named pipe"):
        open_targets(store, SHA256, "teacher.pt")
