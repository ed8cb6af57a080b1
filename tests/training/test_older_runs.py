"""Runs begun by version 0.1.0 go on, or are refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import Config
from tdmpc2.data.store.selection import chunk_fingerprints
from tdmpc2.support.csv_files import read_csv
from tdmpc2.tracking import read_curves
from tdmpc2.training.offline import train
from tests.helpers.older_run import LAST, SAVED_AT, unpack
from tests.helpers.runs import rows, snapshot


@pytest.fixture
def older(tmp_path: Path) -> tuple[Config, Config]:
    """Unpack the run and its teacher, and record the fingerprints that its data have on this machine."""
    cfg, teacher = unpack(tmp_path)
    path = cfg.run_dir / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": chunk_fingerprints(cfg.data_dir)}))
    return cfg, teacher


def test_older_run_continues_with_the_losses_of_its_version(older: tuple[Config, Config], tmp_path: Path) -> None:
    """Losses have a tolerance because processors round differently; on the original one all weights are equal."""
    cfg, teacher = older
    model = train(cfg, teacher)
    assert load_file(model).step == LAST
    log, expected = rows(cfg.run_dir / "train.csv"), rows(tmp_path / "expected.csv")
    assert [row["step"] for row in log] == list(range(1, LAST + 1))
    assert log[:SAVED_AT] == expected[:SAVED_AT]
    for row, other in zip(log[SAVED_AT:], expected[SAVED_AT:], strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_older_run_hours_count_on_from_its_speed_file(older: tuple[Config, Config]) -> None:
    """The older ``speed.csv`` has no ``wall_seconds``, and ``state.pt`` says nothing about time."""
    cfg, teacher = older
    columns, before = read_csv(cfg.run_dir / "speed.csv")
    assert "wall_seconds" not in columns
    train(cfg, teacher)
    columns, after = read_csv(cfg.run_dir / "speed.csv")
    assert columns == ["step", "seconds", "it_per_s", "data_wait", "wall_seconds"]
    assert [row["seconds"] for row in after[:SAVED_AT]] == [row["seconds"] for row in before]
    assert [row["wall_seconds"] for row in after[:SAVED_AT]] == [""] * SAVED_AT
    hours = read_curves(cfg.run_dir)["train/total_loss"].hours
    assert len(hours) == LAST
    assert (hours[1:] > hours[:-1]).all()
    assert 3600 * hours[SAVED_AT - 1] == pytest.approx(sum(float(row["seconds"]) for row in before))


def test_older_run_with_other_data_is_refused(older: tuple[Config, Config]) -> None:
    cfg, teacher = older
    path = cfg.run_dir / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": {"chunk_0.pt": "1-2", "chunk_1.pt": "3-4"}}))
    before = snapshot(cfg.run_dir)
    with pytest.raises(ValueError, match=r"data: chunk_0\.pt has other episodes, chunk_1\.pt is missing \[data_dir="):
        train(cfg, teacher)
    assert snapshot(cfg.run_dir) == before
