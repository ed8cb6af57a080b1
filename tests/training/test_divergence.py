"""A run that diverges on damaged data blames the data and not the learning rate."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.data.store.importer import ensure_store
from tdmpc2.data.tools.verify import verify
from tdmpc2.training.divergence import diagnose_stored
from tdmpc2.training.offline import train
from tdmpc2.training.online import train_online
from tests.helpers.online import config as online_config
from tests.helpers.toy_envs import STANDS


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


def spoil(agent: TDMPC2) -> None:
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter.fill_(math.nan)


@pytest.mark.parametrize("keys", [{}, {"collect_policy": 1.0}], ids=["planned", "policy"])
def test_online_run_that_diverges_between_two_training_lines_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, float]
) -> None:
    """The next turn cannot choose actions, long before the losses are looked at."""
    update = TDMPC2.update

    def diverging(self: TDMPC2, batch: Batch) -> dict[str, torch.Tensor]:
        metrics = update(self, batch)
        spoil(self)
        return {**metrics, "total_loss": metrics["total_loss"] * math.nan}

    monkeypatch.setattr(TDMPC2, "update", diverging)
    cfg = online_config(tmp_path, steps=60, log_freq=1000, **keys)
    with pytest.raises(ValueError, match=r"Training diverged: .* not finite at step \d+\. .*[Nn]othing was saved"):
        train_online(cfg, None)


@pytest.mark.parametrize("keys", [{}, {"collect_policy": 1.0}], ids=["planned", "policy"])
def test_online_run_without_a_finite_action_names_the_step_of_the_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, float]
) -> None:
    """The losses are finite here, so that the training has not diverged."""
    update = TDMPC2.update

    def spoiling(self: TDMPC2, batch: Batch) -> dict[str, torch.Tensor]:
        metrics = update(self, batch)
        spoil(self)
        return {name: torch.zeros_like(value) for name, value in metrics.items()}

    monkeypatch.setattr(TDMPC2, "update", spoiling)
    with pytest.raises(ValueError, match=rf"^{re.escape(STANDS)} \(seed \d+, step \d+\): .* (is|is not) finite"):
        train_online(online_config(tmp_path, steps=60, **keys), None)
