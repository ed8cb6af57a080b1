"""Training with a teacher, and training from given weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import file_sha256, load_file
from tdmpc2.config import Config, parse_cfg
from tdmpc2.distillation.outputs import check_teacher
from tdmpc2.distillation.teachers import check_task_teachers
from tdmpc2.play.collector import collect
from tdmpc2.training.offline import train
from tests.helpers.runs import TASKS, TINY, equal, rows, weights
from tests.helpers.toy_envs import STANDS

pytestmark = pytest.mark.usefixtures("own_folder")


def test_train_with_teacher_distils(cfg: Config, trained_teacher: Config, tmp_path: Path) -> None:
    assert trained_teacher.checkpoint is not None
    before = Path(trained_teacher.checkpoint).read_bytes()
    path = train(cfg, trained_teacher)
    log = rows(cfg.run_dir / "train.csv")
    assert all(row["distillation_loss"] > 0 for row in log)
    assert json.loads((cfg.run_dir / "run.json").read_text())["teacher_sha256"] == file_sha256(
        trained_teacher.checkpoint
    )
    assert not equal(path, train(cfg.replace(work_dir=str(tmp_path / "alone")), None))
    assert Path(trained_teacher.checkpoint).read_bytes() == before
    assert weights(path)["_encoder.state.1.weight"].shape[0] == 16  # the student's own width


def test_train_with_weight_zero_equals_no_teacher(cfg: Config, trained_teacher: Config, tmp_path: Path) -> None:
    alone = train(cfg, None)
    taught = train(cfg.replace(work_dir=str(tmp_path / "taught"), distillation_weight=0), trained_teacher)
    assert equal(alone, taught)


def test_teacher_architecture_is_that_of_its_file(cfg: Config, trained_teacher: Config) -> None:
    train(cfg.replace(steps=1), trained_teacher.replace(model_size=317))
    assert load_file(cfg.run_dir / "model.pt").step == 1


def test_train_with_teacher_of_other_task_set_is_refused(cfg: Config, tmp_path: Path) -> None:
    single = parse_cfg({"task": "cup-spin", **{k: v for k, v in TINY.items() if k != "tasks"}})
    TDMPC2(single).save(tmp_path / "single.pt")
    with pytest.raises(ValueError, match=r"student task=mt30 \(30 tasks\), teacher task=cup-spin \(1 tasks\).*id 0"):
        train(cfg, Config(checkpoint=str(tmp_path / "single.pt")))
    assert not cfg.run_dir.exists()
    with pytest.raises(ValueError, match="different task sets"):
        check_teacher(Config(), parse_cfg({"task": "mt80"}))
    check_teacher(Config(tasks=TASKS), Config(model_size=5))


@pytest.mark.parametrize("target", ["value", "value_horizon", "ranking"])
def test_teacher_that_discounts_otherwise_gives_no_values(target: str) -> None:
    student, teacher = Config(distillation_targets=("reward", target)), Config(discount_max=0.98)
    message = rf"={target} needs a teacher.*discount of walker-stand is 0.99 and its teacher's 0.98: .*discount_max"
    with pytest.raises(ValueError, match=message):
        check_teacher(student, teacher)
    with pytest.raises(ValueError, match=message.replace("stand", "run")):
        check_task_teachers(student, {"walker-run": teacher})
    check_teacher(student, Config())
    check_teacher(Config(distillation_targets=("reward", "policy")), teacher)
    check_task_teachers(student, {"walker-run": parse_cfg({"task": "walker-run"})})
    mt80 = {"task": "mt80", "tasks": ["walker-walk"], "discount_min": 0.97, "distillation_targets": [target]}
    check_teacher(parse_cfg(mt80), parse_cfg({"task": "mt80"}))  # other discounts of tasks that are not trained


def test_teacher_of_single_task_without_name_is_used(tmp_path: Path) -> None:
    """A file of another code base has bare weights, so teacher_config.task names the task they play."""
    keys = {**TINY, "task": STANDS, "tasks": None, "steps": 1, "horizon": 2, "episodes_per_task": 2}
    cfg = parse_cfg({**keys, "data_dir": tmp_path / "data", "work_dir": tmp_path / "run"})
    collect(cfg, None, Path(cfg.data_dir))
    torch.save({"model": TDMPC2(cfg).model.state_dict()}, tmp_path / "legacy.pt")
    train(cfg, parse_cfg({"task": STANDS, "checkpoint": tmp_path / "legacy.pt"}))
    assert "distillation_loss" in rows(cfg.run_dir / "train.csv")[0]


def test_train_from_checkpoint_starts_at_its_weights(cfg: Config, trained_teacher: Config, tmp_path: Path) -> None:
    first = train(cfg, None)
    start = cfg.replace(work_dir=str(tmp_path / "next"), checkpoint=str(first), lr=0, steps=1, tau=0)
    assert equal(train(start, None), first)
    with pytest.raises(ValueError, match="latent_dim 24 instead of 16"):
        train(start.replace(checkpoint=trained_teacher.checkpoint, work_dir=str(tmp_path / "wide")), None)
    assert not (tmp_path / "wide").exists()
