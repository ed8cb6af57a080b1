"""A run that diverges on damaged data blames the data and not the learning rate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.store.importer import ensure_store
from tdmpc2.data.tools.verify import verify
from tdmpc2.training.divergence import diagnose_stored
from tdmpc2.training.offline import train


def forge(store: Path, change: Callable[[np.ndarray], None], name: str = "rows.npy") -> None:
    """Change a file of a store of one block, and renew its checksum."""
    values = np.load(store / name)
    change(values)
    np.save(store / name, values)
    meta = json.loads((store / "meta.json").read_text())
    meta["files"][name]["sha256"] = [hashlib.sha256(values.tobytes()).hexdigest()]
    (store / "meta.json").write_text(json.dumps(meta))


def not_finite(rows: np.ndarray) -> None:
    rows["reward"][::3] = np.nan


@pytest.fixture
def store(cfg: Config, tmp_path: Path) -> Path:
    for path in Path(cfg.data_dir).glob("*"):
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return ensure_store(tmp_path, cfg.task, cfg.task_specs, quiet=True).path


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_store_with_forged_checksums_is_blamed_and_not_the_learning_rate(cfg: Config, store: Path, place: str) -> None:
    """The store's checksums were renewed, so that only the values themselves show the damage."""
    forge(store, not_finite)
    with pytest.raises(ValueError, match="not finite at step 1") as error:
        train(cfg.replace(data_dir=str(store), data_device=place), None)
    assert f"of {store}, whose reward has values that are not finite. " in str(error.value)
    assert str(error.value).endswith(f"`tdmpc2 data verify {store}` tells what is damaged")
    assert "lr" not in str(error.value).replace(str(store), "")
    assert "reward is nan" in verify(store).problems[0]


def test_step_that_diverges_on_good_data_is_blamed_on_the_learning_rate(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = TDMPC2.update
    monkeypatch.setattr(TDMPC2, "update", lambda self, batch: {**update(self, batch), "loss": batch.obs.sum() * np.nan})
    with pytest.raises(ValueError, match=r"A lower lr or grad_clip_norm may help; `tdmpc2 data verify \S+` tells"):
        train(cfg, None)


@pytest.mark.parametrize(("shown", "more"), [(None, ""), ("d", "; `tdmpc2 data verify d` tells whether the episodes")])
def test_online_run_points_at_its_demonstrations_if_it_has_any(shown: str | None, more: str) -> None:
    assert diagnose_stored(shown)(7).remedy.startswith(f"A lower lr or grad_clip_norm may help{more}")
