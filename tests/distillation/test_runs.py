"""Training runs that distil: every target is learned, and killed runs continue."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.distillation import distillation as distill
from tdmpc2.distillation.targets import loss_name
from tdmpc2.training.offline import train
from tests.helpers.distillation import LIVE, every_target, make_expert
from tests.helpers.runs import TINY, equal, rows

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def expert(cfg: Config, tmp_path: Path) -> Config:
    """Save a teacher to a file."""
    make_expert(cfg).save(tmp_path / "expert.pt")
    return Config(checkpoint=str(tmp_path / "expert.pt"))


LEARNING: dict[str, Any] = {"steps": 120, "log_freq": 1, "lr": 2e-3, "batch_size": 32}


@pytest.fixture(scope="module")
def untaught(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """Return the training log of a student that is measured by every target and taught by none."""
    root = tmp_path_factory.mktemp("untaught")
    keys = {**TINY, **LEARNING, "distillation_targets": [f"{target} 0" for target in LIVE]}
    cfg = Config(data_dir=str(data_dir), work_dir=str(root / "run"), **keys)
    make_expert(cfg).save(root / "expert.pt")
    train(cfg, Config(checkpoint=str(root / "expert.pt")))
    return rows(cfg.run_dir / "train.csv")


@every_target
def test_train_with_any_target_lowers_its_loss(
    cfg: Config, expert: Config, untaught: list[dict[str, float]], target: str
) -> None:
    """The loss falls further than that of a student that is measured but not taught."""
    weight = 5.0 if target not in ("value", "policy", "reward_logits") else 1.0
    cfg = cfg.replace(**LEARNING, distillation_targets=(f"{target} {weight}",))
    train(cfg, expert)
    taught, others = (
        [row[f"{loss_name(target)}_loss"] for row in log] for log in (rows(cfg.run_dir / "train.csv"), untaught)
    )
    first, last, last_untaught = np.mean(taught[:5]), np.mean(taught[-20:]), np.mean(others[-20:])
    assert last < 0.95 * first
    assert last < 0.95 * last_untaught


def test_dry_run_distilling_components_of_latents_times_it(
    cfg: Config, expert: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """It asked for the fit that a run makes first, so that only the run itself could be started."""
    train(cfg.replace(distillation_targets=("next_state_pca",), dry_run=True), expert)
    assert "updates     " in capsys.readouterr().out


def test_train_distilling_killed_continues_exactly(
    cfg: Config, expert: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = cfg.replace(
        distillation_targets=("next_state_linear", "next_state_pca 2", "policy 0.1"), distillation_schedule="cosine"
    )
    straight = train(cfg.replace(work_dir=str(cfg.run_dir) + "-straight"), expert)
    cfg = cfg.replace(save_freq=6, log_freq=1)
    updates: list[int] = []
    update, fit = TDMPC2.update, distill.fit_pca

    def killed(self: TDMPC2, *args: Any) -> Any:
        if len(updates) == 9:
            raise KeyboardInterrupt
        updates.append(1)
        return update(self, *args)

    monkeypatch.setattr(TDMPC2, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, expert)
    monkeypatch.undo()
    fitted: list[int] = []
    monkeypatch.setattr(distill, "fit_pca", lambda *args: fitted.append(1) or fit(*args))
    assert equal(train(cfg, expert), straight)
    assert not fitted  # the PCA is in the state
    log = rows(cfg.run_dir / "train.csv")
    assert [row["distillation_factor"] for row in log] == pytest.approx(
        [(1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)], abs=1e-6
    )


def test_train_continued_with_schedule_refuses_other_steps(cfg: Config, expert: Config, tmp_path: Path) -> None:
    for schedule, message in (("linear", r"another configuration \(steps: 3 there, 5 now\)"), ("gap", "")):
        own = cfg.replace(steps=3, distillation_schedule=schedule, work_dir=str(tmp_path / schedule))
        train(own, expert)
        if message:
            with pytest.raises(ValueError, match=message):
                train(own.replace(steps=5), expert)
        else:
            train(own.replace(steps=5), expert)
    alone = cfg.replace(steps=3, distillation_schedule="linear", work_dir=str(tmp_path / "alone"))
    train(alone, None)
    train(alone.replace(steps=5), None)  # nothing is distilled


def test_train_continues_run_from_before_targets(cfg: Config, expert: Config) -> None:
    path = train(cfg.replace(steps=3), expert)
    record = json.loads((path.parent / "run.json").read_text())
    for key in ("distillation_targets", "distillation_schedule"):
        del record[key]
    (path.parent / "run.json").write_text(json.dumps(record))
    train(cfg.replace(steps=5), expert)
    with pytest.raises(ValueError, match=r"distillation_targets: \['reward'\] there, \['value'\] now"):
        train(cfg.replace(steps=5, distillation_targets=("value",)), expert)


@pytest.mark.parametrize("cache", ["full", "lazy"])
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_train_with_cached_outputs_equals_live_teacher(
    cfg: Config, expert: Config, data_dir: Path, tmp_path: Path, cache: str, place: str
) -> None:
    shutil.copytree(data_dir, tmp_path / "data")
    targets: tuple[str, ...] = ("reward", "value 0.1", "reward_horizon 0.2", "value_horizon 0.2")
    if cache == "full":  # which leaves to the live teacher what it cannot hold
        targets += ("ranking 0.3",)
    cfg = cfg.replace(data_dir=str(tmp_path / "data"), distillation_targets=targets, log_freq=1)
    train(cfg, expert)
    cached = cfg.replace(distillation_cache=cache, data_device=place, work_dir=str(tmp_path / "cached"))
    train(cached, expert)
    live, same = rows(cfg.run_dir / "train.csv"), rows(cached.run_dir / "train.csv")
    assert ("distillation_ranking_loss" in same[0]) == (cache == "full")
    for name in [name for name in live[0] if name.startswith("distillation") or name == "total_loss"]:
        for row, other in zip(live, same, strict=True):
            assert other[name] == pytest.approx(row[name], rel=1e-5, abs=1e-6), name
    (folder,) = [path for path in (tmp_path / "data").rglob("targets/*/") if path.is_dir()]
    assert sorted(path.name for path in folder.iterdir()) == [
        "meta.json", "reward.check.npy", "reward.npy", "value.check.npy", "value.npy",
    ]  # fmt: skip
