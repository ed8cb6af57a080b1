"""Compute a teacher's outputs for all stored episodes, once. Training with distillation_cache=full then asks no
teacher for them. Interrupt it at any moment and start it again to go on.

tdmpc2 targets data/mt30 teacher.pt
tdmpc2 targets data/mt30 teacher.pt columns=reward,value,policy
tdmpc2 targets data/mt30 teacher.pt columns=plan num_samples=256 iterations=4
tdmpc2 targets data/mt30 "teachers={walker-walk: walk.pt, walker-run: run.pt}" columns=value,policy,plan
tdmpc2 targets data/more teacher.pt columns=plan known=data/mt30
tdmpc2 targets data_dir=data/mt30 teacher=teacher.pt --device cuda --batch-rows 65536

`plan` plans for every stored observation, from a cold start, with the settings of the file or the planning keys typed
here, which are recorded beside the plans; a thousand plans take about as long as two episodes of evaluation. Where data
grew, `known` names the stores from before: what the same teachers said of their episodes is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmpc2.commands.options import Option
from tdmpc2.commands.plain import read_options
from tdmpc2.config import PLANNER_KEYS, typed_values
from tdmpc2.config.teachers import parse_teachers
from tdmpc2.support.cli import one_line_errors

if TYPE_CHECKING:
    from tdmpc2.data.store.store import EpisodeStore
    from tdmpc2.data.store.teacher_columns import TeacherTargets
    from tdmpc2.training.teacher import Teacher, Teachers

OPTIONS = (
    Option("data_dir", "an episode store, or a directory of chunk files, which are imported first", required=True,
           bare=True, aliases=("data",)),
    Option("teacher", "the teacher's checkpoint", kind=Path, bare=True, aliases=("checkpoint",)),
    Option("teachers", "in its place, teachers of single tasks: {TASK: FILE, ...}"),
    Option("columns", "what to compute", ("reward",), many=True, choices=("reward", "value", "policy", "plan")),
    Option("task", "the task of a single-task file that does not name it"),
    Option("known", "stores whose outputs of the same teachers are copied for the episodes that are here too", (),
           many=True),
    Option("device", "where the teacher computes", "auto"),
    Option("precision", "what plans are computed in; auto: the fastest that is correct for the file here", "auto",
           choices=("auto", "fp32", "bf16", "fp16", "int8")),
    Option("batch_rows", "rows it takes at a time; by default 4096, or as many plans as keep the device busy", kind=int,
           least=1),
)  # fmt: skip


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    values, texts = read_options("targets", __doc__, argv, OPTIONS, PLANNER_KEYS)
    names, planning = tuple(dict.fromkeys(values["columns"])), typed_values(texts)
    if values["precision"] != "auto":
        planning = {"precision": values["precision"], **planning}
    if planning and "plan" not in names:
        key = next(iter(planning))
        raise ValueError(
            f"{key}={planning[key]} is a setting of plans, and columns={','.join(names)} has none: add plan"
        )
    planning.setdefault("precision", "auto")
    from tdmpc2.data.store.teacher_columns import open_targets
    from tdmpc2.support.runtime import resolve_device, set_num_threads
    from tdmpc2.training.plan_labels import compute_plans, plans_at_once, settings
    from tdmpc2.training.teacher_cache import compute_all

    set_num_threads(None)
    teacher, device = _teacher(values), resolve_device(values["device"])
    outputs = [name for name in names if name != "plan"]
    store, known = None, Known(values["known"], teacher)
    if outputs:
        agent = teacher.load(device)
        store = _store(values["data_dir"], agent)
        columns = [open_targets(store, teacher.sha256, teacher.label, name) for name in outputs]
        known.take_over(columns, agent)
        compute_all(columns, agent, batch_rows=values["batch_rows"] or 4096)
    if "plan" in names:
        planner = teacher.load(device, **planning)
        store, at_once = store or _store(values["data_dir"], planner), values["batch_rows"] or plans_at_once(device)
        columns = [open_targets(store, teacher.sha256, teacher.label, "plan", settings(planner, at_once))]
        known.take_over(columns, planner)
        compute_plans(columns[0], planner, at_once=at_once)
    print(f"{columns[0].path} is complete: {', '.join(names)}")


class Known:
    """Stores from before, whose outputs of the same teacher are copied.

    Args:
        places: where the stores are.
        teacher: whose outputs.
    """

    def __init__(self, places: Sequence[str], teacher: Teacher | Teachers) -> None:
        self._places, self._teacher = places, teacher
        self._same: dict[str, dict[int, int]] = {}  # by place: episodes are read once for all columns

    def take_over(self, columns: Sequence[TeacherTargets], agent: Any) -> None:
        """Copy what each store has of these columns of one store, and say of how many episodes."""
        from tdmpc2.data.store.same_episodes import check_same_making, same_episodes, take_over
        from tdmpc2.data.store.teacher_columns import find_targets

        for place in self._places:
            old, wanted = _known_store(place), [column for column in columns if not column.complete()]
            sources = {column.name: find_targets(old, self._teacher.sha256, column.name) for column in wanted}
            pairs = [(column, source) for column in wanted if (source := sources[column.name]) is not None]
            for column, source in pairs:  # before episodes are read, which takes long
                check_same_making(column, source)
            if pairs and place not in self._same:
                self._same[place] = same_episodes(columns[0].store, old)
            copied = {column.name: take_over(column, source, self._same[place]) for column, source in pairs}
            for column in columns:
                count = copied.get(column.name, 0)
                print(f"{column.name} of {count:,} episodes is taken over from {old.path}", flush=True)


def _known_store(place: str) -> EpisodeStore:
    """Open the store of a directory as it is: importing its files anew would delete the outputs to be copied."""
    from tdmpc2.data.store.store import EpisodeStore

    root = Path(place).expanduser()
    path = next((path for path in (root, root / "store") if (path / "meta.json").exists()), None)
    if path is None:
        raise ValueError(f"known: {place} holds no episode store, and so no outputs of a teacher: leave it out")
    return EpisodeStore.open(path)


def _teacher(values: dict[str, Any]) -> Teacher | Teachers:
    """Look up the file that is named, or those of single tasks."""
    from tdmpc2.checkpoints.files import file_sha256
    from tdmpc2.training.teacher import Teacher, teachers_of

    path, teachers = values["teacher"], values["teachers"]
    if (path is None) == (teachers is None):
        raise ValueError(
            "name the teacher's checkpoint, teacher=FILE, or teachers of single tasks, teachers={TASK: FILE}"
        )
    if teachers is None:
        return Teacher(path, file_sha256(path), values["task"])
    if values["task"] is not None:
        raise ValueError(f"task={values['task']} beside teachers, which names the task of each file: leave it out")
    return teachers_of(parse_teachers(typed_values({"teachers": teachers})["teachers"]))


def _store(data_dir: str, agent: Any) -> Any:
    """Open the data, which are of a teacher's tasks, or of their own where teachers teach a task each."""
    from tdmpc2.data.source import kind_of
    from tdmpc2.data.store.importer import ensure_store

    if not isinstance(agent, dict):
        return ensure_store(data_dir, agent.cfg.task, agent.cfg.task_specs)
    kind = kind_of(data_dir)
    return ensure_store(data_dir, kind.task, kind.specs)
