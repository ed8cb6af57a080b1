"""Train a student on offline data, distilled from a teacher or from scratch; or online, by acting.

tdmpc2 train data_dir=data/mt30 teacher_config.checkpoint=teacher.pt
tdmpc2 train teacher_config=null steps=1000
tdmpc2 train --multirun distillation_weight=0,0.25,0.45
tdmpc2 train task=walker-walk steps=50000
tdmpc2 train task=walker-walk checkpoint=student.pt steps=10000

Keys are the student's; those of its teacher are written teacher_config.KEY, and teacher_config=null trains without one.
One task without data_dir is learned online; there is a teacher only if one is named. From a checkpoint of many tasks
the model is fine-tuned to the one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from tdmpc2.checkpoints.run_state import state_path
from tdmpc2.commands.hydra_app import App, composed, job, launch, note_unread, typed_names
from tdmpc2.config import Config, defaults, has_teacher, help_rows, parse_cfg, policy_is_from_file

_OF_BOTH = {"episodic", "termination_coef", "env_workers"}  # keys of learning online that offline runs read, too
_OF_TEACHING = re.compile("distillation_").match
APP = App("train", __doc__, "generic", groups=("student_config", "teacher_config"))


@job
def run(cfg: DictConfig) -> None:
    """Train what a composed configuration describes."""
    from tdmpc2.support.runtime import is_main_process, keep_freed_memory
    from tdmpc2.training.offline import train
    from tdmpc2.training.online import train_online
    from tdmpc2.training.tuning import keys_from_checkpoint

    keep_freed_memory()  # of the whole process, so it is the command's business and not the agent's
    keys = composed(cfg.student_config)
    student = parse_cfg(keys_from_checkpoint(keys, chosen(keys)), "student_config")
    online = student.mode == "online"
    check_mode(student, {name for name in typed_names() if keys.get(name) is not None})
    composed_one = not online and not student.teachers  # the teacher that the configuration files name
    distilled = has_teacher(cfg.get("teacher_config")) and (names_teacher() or composed_one)
    teacher = parse_cfg(composed(cfg.teacher_config), "teacher_config") if distilled else None
    if teacher is None and not student.teachers:
        note_unread("a run without a teacher", sorted(filter(_OF_TEACHING, typed_names())))
    (train_online if online else train)(student, teacher)
    if student.save_csv and not student.dry_run and is_main_process():
        from tdmpc2.studies.curves import draw_run

        print(draw_run(student.run_dir))


def check_mode(student: Config, typed: Collection[str]) -> None:
    """Look for typed keys of the other way to learn, and name them.

    Raises:
        ValueError: ``data_dir`` of a run that learns online, which would learn from nothing instead.
    """
    if student.mode == "online" and "data_dir" in typed and not state_path(student.run_dir).exists():
        raise ValueError(
            f"data_dir={student.data_dir}: a run that learns online does not read it. Stored episodes beside its own "
            "are demonstrations=DIR, and mode=offline learns from them alone"
        )
    if student.mode == "online" and student.demonstrations is None and "max_episodes_per_task" in typed:
        note_unread("a run that learns online without demonstrations", ["max_episodes_per_task"])
    if "seed_actions" in typed and student.mode == "online" and policy_is_from_file(student.checkpoint, student.reset):
        note_unread("a run that begins with its checkpoint's policy in a task that the file knows", ["seed_actions"])
    if "fit_encoder" in typed and student.fit_encoder and student.mode == "online":
        from tdmpc2.training.learner import fits_encoder

        if not fits_encoder(student):
            note_unread("a run without an encoder of images that begins at random", ["fit_encoder"])
    if "lr_end" in typed and student.lr_schedule == "constant":
        note_unread("a run with lr_schedule=constant", ["lr_end"])
    of_online = {row.key for row in help_rows("train") if row.section == "Learning online"} - _OF_BOTH
    if student.mode == "offline":
        note_unread("a run that learns offline", sorted(of_online & set(typed)))


def chosen(keys: Mapping[str, Any]) -> set[str]:
    """The keys of the student that were typed, or that a configuration file sets to something else than the default."""
    return typed_names() | {name for name, default in defaults().items() if keys.get(name, default) != default}


def names_teacher() -> bool:
    """True if the command line says something of a teacher; the composed one is that of offline training."""
    return any("teacher_config" in name for name in typed_names())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    launch(APP, run, argv)
