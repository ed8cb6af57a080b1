"""Train a student on offline data, distilled from a teacher or from scratch.

tdmpc2 train data_dir=data/mt30 teacher_config.checkpoint=teacher.pt
tdmpc2 train teacher_config=null steps=1000
tdmpc2 train --multirun distillation_weight=0,0.25,0.45

Keys are the student's; those of its teacher are written teacher_config.KEY, and teacher_config=null trains without one.
"""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from tdmpc2.commands.hydra_app import App, composed, job, launch
from tdmpc2.config import has_teacher, parse_cfg

APP = App("train", __doc__, "generic", groups=("student_config", "teacher_config"))


@job
def run(cfg: DictConfig) -> None:
    """Train what a composed configuration describes."""
    from tdmpc2.support.runtime import is_main_process, keep_freed_memory
    from tdmpc2.training.offline import train

    keep_freed_memory()  # of the whole process, so it is the command's business and not the agent's
    student = parse_cfg(composed(cfg.student_config), "student_config")
    distilled = has_teacher(cfg.get("teacher_config"))
    train(student, parse_cfg(composed(cfg.teacher_config), "teacher_config") if distilled else None)
    if student.save_csv and not student.dry_run and is_main_process():
        from tdmpc2.studies.curves import draw_run

        print(draw_run(student.run_dir))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    launch(APP, run, argv)
