"""The steps of examples/reproduce.py: what is trained, played and measured, each as the command that a user types."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reproduce_scale import BATCHES, EPISODE, NOTHING, Scale, Work

from tdmpc2.checkpoints.reading import read_outline
from tdmpc2.studies.error_files import error_file

STAGES = ("teachers", "data", "student", "evaluation", "quantising", "cards", "comparison")
#: Stages that need the student that was chosen.
LATER = STAGES[STAGES.index("student") + 1 :]
#: How a checkpoint is evaluated.
WAYS = ("planned", "alone")
#: Of evaluations: those that choose are never those that are reported.
SELECTION_SEED, REPORT_SEED = 500, 1000
#: Seed of the episodes that the student visits in round 0, if it did; those of teachers are of seed 1.
VISITED_SEED = 10


class Origin(NamedTuple):
    """Where a working directory was begun."""

    processor: str
    commit: str | None  # of the source; None outside a repository


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        stage: one of :data:`STAGES`.
        name: of its record and its log.
        words: the command line behind ``tdmpc2``.
        work: what it takes, for the plan.
        store: data that are complete as soon as they are there.
        trained: a checkpoint, and the step at which it is trained.
        begins_anew: directory of an evaluation, which is not continued.
    """

    stage: str
    name: str
    words: tuple[str, ...]
    work: Work = NOTHING
    store: Path | None = None
    trained: tuple[Path, int] | None = None
    begins_anew: Path | None = None

    @property
    def line(self) -> str:
        """The line as it is typed."""
        return shlex.join(["tdmpc2", *self.words])

    def is_there(self) -> bool:
        """Tell if its result is complete, although it was killed before it was on record."""
        if self.store is not None:
            return (self.store / "meta.json").exists()
        if self.trained is None:
            return False
        path, steps = self.trained
        try:
            return int(read_outline(path)["step"]) >= steps
        except (ValueError, KeyError, TypeError):  # not there yet
            return False


def _list(names: Sequence[str]) -> str:
    return f"[{','.join(names)}]"


def steps_of(scale: Scale, work: str, student: str | None, origin: Origin, chosen: int | None = None) -> list[Step]:
    """List all steps in the order in which they are taken.

    Args:
        scale: sizes.
        work: directory of everything.
        student: checkpoint that the student begins with, and that plays the tasks without a teacher.
        origin: for the cards.
        chosen: the round whose student everything after its training is about; None: not known yet, so that the lines
            of these steps name the last one.
    """
    chosen = scale.rounds if chosen is None else chosen
    return [
        *_teachers(scale, work),
        *_data(scale, work, student),
        *_student(scale, work, student),
        *_evaluations(scale, work, student, chosen),
        *_copies(scale, work, student, chosen),
        *_cards(scale, work, student, origin, chosen),
        *_comparisons(scale, work, student),
    ]


def _teachers(scale: Scale, work: str) -> Iterator[Step]:
    for name, tasks in scale.teachers.items():
        shared = name in scale.bodies
        steps = scale.steps[0 if shared else 1]
        words = (
            f"train task=mt30 mode=online tasks={_list(tasks)} share_body={str(shared).lower()} task_balance=tasks "
            f"steps={steps} {scale.model} {scale.planner} {scale.collecting} {scale.training} {scale.teacher} "
            f"work_dir={work}/teachers/{name}"
        )
        amount = Work(updates=steps, cheap_plans=steps, steps=steps, rows=_replayed(scale, name))
        trained = (Path(work, "teachers", name, "model.pt"), steps)
        yield Step("teachers", f"teacher-{name}", tuple(words.split()), amount, trained=trained)


def _replayed(scale: Scale, name: str) -> int:
    """Count the rows of a teacher's replay, in which a body's steps are stored for each of its tasks."""
    return scale.steps[0 if name in scale.bodies else 1] * len(scale.teachers[name])


def _collect(
    step: str, stage: str, scale: Scale, tasks: Sequence[str], out: str, episodes: int, *who: str, planned: float
) -> Step:
    """Play episodes, of which the share ``planned`` is planned and the rest is played by policies alone."""
    words = ["collect", *who, f"tasks={_list(tasks)}", f"episodes_per_task={episodes}", f"data_dir={out}"]
    count = EPISODE * episodes * len(tasks)
    amount = Work(plans=planned * count, acts=(1 - planned) * count, steps=count, rows=count)
    return Step(stage, step, (*words, *scale.planner.split()), amount)


_NOISY_PLANNED = 0.6


def _noisy(checkpoint: str) -> str:
    """Let a checkpoint play: by its policy with noise, planned with noise, and planned."""
    players = ("0.4 policy {} noise 0.3", "0.3 planner {} noise 0.3", "0.3 planner {} noise 0")
    return f"mix=[{', '.join(player.format(checkpoint) for player in players)}]"


def _data(scale: Scale, work: str, student: str | None) -> Iterator[Step]:
    parts = []
    for name, tasks in scale.teachers.items():
        run, replay, noisy = f"{work}/teachers/{name}", f"{work}/data/{name}_replay", f"{work}/data/{name}_noisy"
        rows, mix = Work(rows=_replayed(scale, name)), _noisy(f"{run}/model.pt")
        yield Step("data", f"replay-{name}", ("data", "from-run", run, replay), rows, store=Path(replay))
        yield _collect(f"noisy-{name}", "data", scale, tasks, noisy, scale.episodes[0], mix, planned=_NOISY_PLANNED)
        parts += [replay, noisy]
    if scale.rest:
        out = f"{work}/data/rest"
        who = (f"checkpoint={student}",) if student else ()
        yield _collect("rest", "data", scale, scale.rest, out, scale.episodes[1], *who, planned=float(bool(student)))
        parts.append(out)
    yield _merge("data", "data-0", parts, f"{work}/data/all-0", _rows(scale, 0))


def _merge(stage: str, name: str, parts: Sequence[str], out: str, rows: int) -> Step:
    return Step(stage, name, ("data", "convert", *parts, out), Work(rows=rows), store=Path(out))


def _student(scale: Scale, work: str, student: str | None) -> Iterator[Step]:
    files = {task: f"{work}/teachers/{name}/model.pt" for name, tasks in scale.teachers.items() for task in tasks}
    files |= {task: student for task in scale.rest if student}
    teachers = ", ".join(f"{task}: {file}" for task, file in files.items())
    start = student
    for number in range(scale.rounds + 1):
        run, data, rows = f"{work}/student/{number}", f"{work}/data/all-{number}", _rows(scale, number)
        if number:
            visited, who = f"{work}/data/visited-{number}", (f"seed={VISITED_SEED + number}", _noisy(str(start)))
            yield _collect(
                f"visited-{number}", "student", scale, scale.tasks, visited, scale.episodes[2], *who,
                planned=_NOISY_PLANNED,
            )  # fmt: skip
            yield _merge("student", f"data-{number}", (f"{work}/data/all-{number - 1}", visited), data, rows)
        known = (f"known={work}/data/all-{number - 1}",) if number else ()
        labelling = ("targets", data, f"teachers={{{teachers}}}", "columns=plan", *known, *scale.labels)
        amount = Work(labels=rows - (_rows(scale, number - 1) if number else 0), plan_rows=rows)
        yield Step("student", f"labels-{number}", labelling, amount)
        words = (
            *f"train task=mt30 mode=offline tasks={_list(scale.tasks)} data_dir={data} task_balance=tasks".split(),
            f"distillation_targets={_list(scale.targets)}",
            *f"distillation_cache=full steps={scale.updates} {scale.model} {scale.planner}".split(),
            *f"{scale.training} {scale.student} work_dir={run}".split(),
            f"teachers={{{teachers}}}",
            *([f"checkpoint={start}"] if start else []),
        )
        trained = (Path(run, "model.pt"), scale.updates)
        amount = Work(updates=scale.updates, value_rows=rows)
        yield Step("student", f"student-{number}", words, amount, trained=trained)
        start = averaged_weights(work, number)
        for way, episodes in zip(WAYS, scale.selection_episodes, strict=True):
            out = selection(work, number, way)
            yield _score("student", f"select-{number}-{way}", scale, start, scale.tasks, way, episodes, out)


def averaged_weights(work: str, number: int) -> str:
    """Name the student of a round: its averaged weights, which its run writes beside ``model.pt``."""
    return f"{work}/student/{number}/ema.pt"


def selection(work: str, number: int, way: str) -> str:
    """Name the directory of an evaluation that chooses among the rounds."""
    return f"{work}/selection/{number}-{way}"


def _rows(scale: Scale, number: int) -> int:
    """Count the rows of the student's data in a round."""
    noisy, rest, visited, _ = scale.episodes
    episodes = noisy * len(scale.taught) + rest * len(scale.rest) + number * visited * len(scale.tasks)
    return sum(_replayed(scale, name) for name in scale.teachers) + EPISODE * episodes


def _score(
    stage: str, name: str, scale: Scale, file: str, tasks: Sequence[str], way: str, episodes: int, out: str
) -> Step:
    planned, seed = way == WAYS[0], SELECTION_SEED if name.startswith("select") else REPORT_SEED
    words = (
        f"evaluate checkpoint={file} tasks={_list(tasks)} mpc={str(planned).lower()} eval_episodes={episodes} "
        f"eval_seed={seed} {scale.planner} work_dir={out}"
    )
    count = EPISODE * episodes * len(tasks)
    amount = Work(plans=count * planned, acts=count * (not planned), steps=count)
    return Step(stage, name, tuple(words.split()), amount, begins_anew=Path(out))


def _scores(scale: Scale, work: str, stage: str, name: str, file: str, tasks: Sequence[str]) -> Iterator[Step]:
    """Evaluate a file by planning and by its policy alone, on seeds that nothing was chosen on."""
    for way in WAYS:
        out = f"{work}/scores/{name}-{way}"
        yield _score(stage, f"score-{name}-{way}", scale, file, tasks, way, scale.eval_episodes, out)


def _heldout(stage: str, name: str, scale: Scale, work: str, files: Sequence[str], student: str | None) -> Step:
    reference = (f"teacher={student}",) if student else ()
    words = ("heldout", *files, f"data={work}/data/heldout", "write=true", *reference, *scale.heldout)
    return Step(stage, name, words, Work(updates=BATCHES * len(files)))


def _evaluations(scale: Scale, work: str, student: str | None, chosen: int) -> Iterator[Step]:
    teachers = {name: f"{work}/teachers/{name}/model.pt" for name in scale.teachers}
    for name, tasks in scale.teachers.items():
        yield from _scores(scale, work, "evaluation", name, teachers[name], tasks)
    if student:
        yield from _scores(scale, work, "evaluation", "published", student, scale.tasks)
    file, held = averaged_weights(work, chosen), f"{work}/data/heldout"
    yield from _scores(scale, work, "evaluation", "student", file, scale.tasks)
    who = ("seed=2", _noisy(file))
    yield _collect(
        "heldout-data", "evaluation", scale, scale.tasks, held, scale.episodes[3], *who, planned=_NOISY_PLANNED
    )
    yield _heldout("evaluation", "heldout", scale, work, [file], student)
    yield _heldout("evaluation", "heldout-teachers", scale, work, list(teachers.values()), student)


def _copy_files(scale: Scale, work: str) -> dict[str, str]:
    return {recipe: f"{work}/copies/ema_{recipe}.pt" for recipe in scale.recipes}


def _copies(scale: Scale, work: str, student: str | None, chosen: int) -> Iterator[Step]:
    source, copies = averaged_weights(work, chosen), _copy_files(scale, work)
    recipes = ",".join(scale.recipes)
    words = ("quantize", source, f"recipes={recipes}", f"out={work}/copies", "force=true", *scale.quantize)
    yield Step("quantising", "copies", words)
    for recipe, copy in copies.items():
        yield from _scores(scale, work, "quantising", f"student_{recipe}", copy, scale.tasks)
    yield _heldout("quantising", "heldout-copies", scale, work, list(copies.values()), student)


def _cards(scale: Scale, work: str, student: str | None, origin: Origin, chosen: int) -> Iterator[Step]:
    about = ["license=mit", f"processor={origin.processor}", "overwrite=true"]
    about += [f"commit={origin.commit}"] if origin.commit else []

    def card(name: str, file: str, runs: Sequence[str], scores: str, *more: str) -> Step:
        found = f"evaluation=[{work}/scores/{scores}-planned,{work}/scores/{scores}-alone]"
        found_too = (f"run={_list(runs)}", found, f"heldout={error_file(Path(file))}")
        words = ("checkpoint", "card", file, *found_too, *more, *about, f"out={work}/models/{name}.pt")
        return Step("cards", f"card-{name}", words)

    for name in scale.teachers:
        run = f"{work}/teachers/{name}"
        yield card(f"teacher_{name}", f"{run}/model.pt", [run], name)
    rounds = [f"{work}/student/{number}" for number in range(chosen + 1)]
    begin = (f"start={Path(student).name}" if student else "start=random weights",)
    more = (f"data={work}/data/all-{chosen}", *begin)
    yield card("student", averaged_weights(work, chosen), rounds, "student", *more)
    for recipe, copy in _copy_files(scale, work).items():
        yield card(f"student_{recipe}", copy, rounds, f"student_{recipe}", *more)


def _comparisons(scale: Scale, work: str, student: str | None) -> Iterator[Step]:
    pairs = {f"student_{recipe}": ("student", f"student_{recipe}") for recipe in scale.recipes}
    pairs |= {"published": ("published", "student")} if student else {}
    for name, names in pairs.items():
        for way in WAYS:
            scores = [f"{work}/scores/{one}-{way}" for one in names]
            words = ("report", *scores, "paired=true", f"out={work}/compared/{name}-{way}", "force=true")
            yield Step("comparison", f"compare-{name}-{way}", words)
