"""Train a student on offline data, taught by a teacher or from scratch.

python train.py student_config.data_dir=data/mt30 teacher_config.checkpoint=teacher.pt
python train.py teacher_config=null student_config.steps=1000
python train.py --multirun student_config.distillation_weight=0,0.25,0.45
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from tdmpc2.commands import cli
from tdmpc2.config import parse_cfg
from tdmpc2.support.runtime import keep_freed_memory
from tdmpc2.training.offline import train


@hydra.main(config_name="generic", config_path=".", version_base="1.3")
@cli.one_line_errors
def main(cfg: DictConfig) -> None:
    keep_freed_memory()  # of the whole process, so it is the command's business and not the agent's
    student = parse_cfg(cli.composed(cfg.student_config), "student_config")
    taught = cfg.get("teacher_config") is not None
    teacher = parse_cfg(cli.composed(cfg.teacher_config), "teacher_config") if taught else None
    train(student, teacher)


if __name__ == "__main__":
    cli.run(main, groups=("student_config", "teacher_config"))
